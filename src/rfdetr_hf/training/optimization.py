"""Parameter groups with layer-wise rates, the optimizer, and the learning-rate schedules."""

import json
import logging
import math
import re
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..arguments.schedules import check_schedule_options, encoder_rate
from ..choices import OWN_SCHEDULES, counted
from .checkpoint.optimizer import INITIAL, OF_THE_IMPLEMENTATION

logger = logging.getLogger(__name__)

ENCODER = "backbone.0.encoder"
DECODER = "transformer.decoder"
STEP_DROP_FACTOR = 0.1
# The schedules that `build_scheduler` has made.
BY_ARGUMENTS: WeakSet[Any] = WeakSet()

# Fragments of a name that switch weight decay off in the encoder of the official trainer. LayerScale (`lambda1`) is not
# among them.
_OFFICIAL_NO_DECAY = ("gamma", "pos_embed", "rel_pos", "bias", "norm", "embeddings")
_QUERY_EMBEDDINGS = ("query_feat", "refpoint_embed")
_LAYER = re.compile(r"\.layer\.(\d+)\.")


def build_param_groups(model: Any, args: Any) -> list[dict[str, Any]]:
    """Sort the trainable parameters into named groups with their learning rate and weight decay.

    With `L` the last tapped stage of the backbone plus one, and layer ids 0 (embeddings), i + 1 (block i), L + 1 (final
    norm), the rates are

    * encoder: `learning_rate_encoder · layer_decay^(L + 1 - id) · component_decay²`
    * decoder: `learning_rate · component_decay`
    * head (projector, class and box heads, queries, encoder proposals): `learning_rate`

    `args.param_groups` decides about weight decay and layout-frozen parameters:

    * `"default"`: none on tensors of at most one dimension (biases, norms, LayerScale), none on embeddings (the ViT's
      embedding module with its patch projection, `query_feat`, `refpoint_embed`).
    * `"official"`: as the official trainer has it. The rule of the encoder goes by name and spares LayerScale no decay;
      decoder and head decay everywhere, biases and norms too. `model.unused_parameter_names()` are listed as well,
      although they never get a gradient.

    Parameters that the user froze are in no group. Call this before `Accelerator.prepare`: sharded parameters lose
    their shape.

    Args:
        model: an RF-DETR model with `config.backbone_config.out_indices`; in official mode with
            `unused_parameter_names()`.
        args: `learning_rate`, `learning_rate_encoder`, `layer_decay`, `component_decay`, `weight_decay`,
            `param_groups`.

    Returns:
        Dicts with `params`, `lr`, `weight_decay`, `name` (`"encoder.layer.3.decay"`, `"head.no_decay"`, …) and
        `param_names`, the head's first, then the encoder from the input up, then the decoder. Each (name, weight decay)
        has one group.

    Raises:
        ValueError: `args.param_groups` is unknown, or nothing is trainable.
    """
    if args.param_groups not in ("default", "official"):
        raise ValueError(f"param_groups={args.param_groups!r} is unknown; use 'default' or 'official'.")
    official = args.param_groups == "official"
    config: Any = model.config
    last_layer_id = max(config.backbone_config.out_indices) + 2
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in _optimized_parameters(model, official):
        component, layer_id = _component(name, last_layer_id)
        if official:
            decays = ENCODER not in name or not any(fragment in name for fragment in _OFFICIAL_NO_DECAY)
        else:
            decays = parameter.ndim > 1 and not {"embeddings", *_QUERY_EMBEDDINGS} & set(name.split("."))
        group_name = f"{component}.{'decay' if decays else 'no_decay'}"
        if group_name not in groups:
            rate = args.learning_rate * args.component_decay if component == "decoder" else args.learning_rate
            if component.startswith("encoder"):
                # The order of the factors is that of the official trainer: the products agree to the last bit.
                depth = last_layer_id - layer_id
                rate = encoder_rate(args) * args.layer_decay**depth * args.component_decay**2
            groups[group_name] = {
                "params": [],
                "lr": rate,
                "weight_decay": args.weight_decay if decays else 0.0,
                "name": group_name,
                "param_names": [],
                "order": (("head", "encoder", "decoder").index(component.split(".")[0]), layer_id, not decays),
            }
        groups[group_name]["params"].append(parameter)
        groups[group_name]["param_names"].append(name)
    if not groups:
        raise ValueError(
            "The model has no trainable parameter; unfreeze a part of it (requires_grad_(True)) before training."
        )
    ordered = sorted(groups.values(), key=lambda group: group["order"])
    return [{key: value for key, value in group.items() if key != "order"} for group in ordered]


def present_rate(optimizer: torch.optim.Optimizer, args: Any) -> float:
    """What the schedule has made of `args.learning_rate`, be a group of that rate trained or not."""
    groups = optimizer.param_groups
    head = next((group for group in groups if str(group.get("name", "")).startswith("head")), None)
    if head is not None or "name" not in groups[0]:
        return (head or groups[0])["lr"]
    return args.learning_rate * groups[0]["lr"] / groups[0]["initial_lr"]


def _optimized_parameters(model: Any, official: bool) -> list[tuple[str, nn.Parameter]]:
    named = list(model.named_parameters())
    if not official:
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]
    # The official trainer keeps the layout-frozen tensors trainable, so a frozen encoder takes them out as well.
    encoder_trains = any(parameter.requires_grad for name, parameter in named if ENCODER in name)
    unused = model.unused_parameter_names() if encoder_trains else set()
    return [(name, parameter) for name, parameter in named if parameter.requires_grad or name in unused]


def _component(name: str, last_layer_id: int) -> tuple[str, int]:
    """The part of the model that a parameter belongs to, and its layer id within the encoder (0 elsewhere)."""
    if ENCODER not in name:
        return ("decoder" if DECODER in name else "head"), 0
    if "embeddings" in name:
        return "encoder.embeddings", 0
    block = _LAYER.search(name)
    if block:
        return f"encoder.layer.{block[1]}", int(block[1]) + 1
    return "encoder.norm", last_layer_id


def name_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Give the groups of a user's optimizer the names of their parameters, by which checkpoints know them.

    Raises:
        ValueError: it holds a parameter that is none of the model's, or not all that are trained.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in held
    ]
    if left:
        raise ValueError(
            f"the optimizer lacks {len(left)} parameters that are trained ({', '.join(left[:3])}, …): their gradients "
            "would pile up unused. Freeze them (requires_grad_(False)) or give them to it; adapters of lora_r are made "
            "when the training begins: override create_optimizer for them"
        )
    for group in optimizer.param_groups:
        if any(id(parameter) not in names for parameter in group["params"]):
            raise ValueError("the optimizer holds parameters that are not the model's; make it of model.parameters()")
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()
                   if key not in ("params", "param_names", INITIAL, *OF_THE_IMPLEMENTATION)
                   and not isinstance(value, Tensor)}  # fmt: skip
        if "initial_lr" in options:  # by a schedule, which has set another since
            options.pop("lr")
        kind = "AdamW" if isinstance(optimizer, FusedAdamW) else type(optimizer).__name__
        group.setdefault("param_names", [names[id(parameter)] for parameter in group["params"]])
        group.setdefault(INITIAL, {"class": kind} | options)
    return optimizer


def noted(scheduler: Any) -> Any:
    """The schedule, which notes what it was made with; of a function only that it is one."""
    state = {name: value for name, value in scheduler.state_dict().items() if name not in ("_last_lr", "lr_lambdas")}
    plain = json.loads(json.dumps({"class": type(scheduler).__name__} | state, default=lambda v: type(v).__name__))
    vars(scheduler).setdefault(INITIAL, plain)
    return scheduler


class FusedAdamW(torch.optim.AdamW):
    """AdamW on the fused kernel, which counts the steps of all groups in one launch; all tensors on one device."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; `found_inf` and `grad_scale` of a gradient scaler are heeded, as in PyTorch's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling: dict[str, Any] = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        groups, steps = [], []
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[], [], [], [], [], []]  # parameters, gradients, three moments, steps
            self._init_group(group, *lists)
            if lists[0]:
                groups.append((group, lists))
                steps += lists[-1]
        if not steps:
            return loss
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        for group, lists in groups:
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                *lists, lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                amsgrad=group["amsgrad"], maximize=group["maximize"], **scaling,
            )  # fmt: skip
        if scaling["found_inf"] is not None:
            # A step that was skipped does not count.
            torch._foreach_sub_(steps, [scaling["found_inf"]] * len(steps))  # pyright: ignore[reportPrivateImportUsage]
        return loss


def build_optimizer(param_groups: list[dict[str, Any]], args: Any, device: torch.device | str) -> torch.optim.AdamW:
    """AdamW over the groups of `build_param_groups`; the fused kernel on CUDA and CPU, PyTorch's choice elsewhere.

    Args:
        param_groups: left as they are; the optimizer gets copies of the dicts. `name` and `param_names` stay readable
            in `optimizer.param_groups` and in its `state_dict`.
        args: `learning_rate`, `weight_decay`, `adam_beta1`, `adam_beta2`, `adam_epsilon`.
        device: where the parameters live.
    """
    fused = torch.device(device).type in ("cuda", "cpu")
    return (FusedAdamW if fused else torch.optim.AdamW)(
        [dict(group) for group in param_groups],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=fused or None,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, args: Any, num_training_steps: int, steps_per_epoch: int
) -> LambdaLR:
    """The learning-rate schedule, to be stepped once after every optimizer step that took place.

    The factor `m(s)` multiplies the rate of every group at optimizer step `s = 0 … T - 1`. With `W` warm-up steps:

    * warm-up: `(s + 1) / W` for `s < W`. The official trainer uses `s / W`, whose first step has rate 0 and so changes
      no weight.
    * `"constant"`: 1.
    * `"step"`: 1 while `s < lr_drop_epochs · steps_per_epoch`, then 0.1.
    * `"cosine"`: `f + (1 - f) · (1 + cos(π p)) / 2` with `f = min_lr_ratio` and `p = (s - W) / (T - 1 - W)`, so the
      last step has exactly `f`. The official trainer divides by `T - W` and stops one step short of it.
    * with `recipe="official"` warm-up and cosine are the official trainer's;
    * any other `transformers.SchedulerType`: transformers' own function with its own warm-up, laid out so that the last
      step has its final value.

    From step `T - 1` on the factor stays what it is. With `T - 1 <= W` there is no room to descend: the run ends at the
    top of the warm-up.

    Args:
        optimizer: each group's `lr` at this point is the base rate.
        args: `lr_scheduler_type`, `warmup_steps` (a count, or a share of the run below 1), `warmup_epochs` (may be
            fractional; at most one of the two), `min_lr_ratio` (cosine only), `lr_drop_epochs` (step only),
            `lr_scheduler_kwargs` (transformers' schedules only), `recipe`.
        num_training_steps: `T`, optimizer steps of the run.
        steps_per_epoch: optimizer steps of an epoch.

    Raises:
        ValueError: a schedule that needs a metric (`reduce_lr_on_plateau`, `greedy`) or is unknown, or an option that
            does not fit the schedule.
    """
    if num_training_steps < 1 or steps_per_epoch < 1:
        raise ValueError(
            f"num_training_steps={num_training_steps} and steps_per_epoch={steps_per_epoch} must be at least 1."
        )
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    check_schedule_options(kind, args)
    options = dict(args.lr_scheduler_kwargs or {})
    warmup = int(steps_per_epoch * (args.warmup_epochs or 0)) or args.warmup_steps or 0
    warmup = math.ceil(num_training_steps * warmup) if warmup < 1 else int(warmup)
    if warmup >= num_training_steps:
        logger.warning(
            "The warm-up takes %s, but the run has only %d: no step follows it.",
            counted(warmup, "step"), num_training_steps,
        )  # fmt: skip
    # One of a single step has the full rate, where the first step has a rate at all.
    least = 2 if kind in OWN_SCHEDULES and args.recipe != "official" else 1
    if (args.warmup_epochs or args.warmup_steps) and warmup < least:
        logger.warning("The warm-up takes %s: no step has a lower learning rate for it.", counted(warmup, "step"))
    last = num_training_steps - 1
    if kind not in OWN_SCHEDULES and warmup >= last:
        kind, options = "constant_with_warmup", {}  # theirs divide by the steps that are left after the warm-up
    if kind in OWN_SCHEDULES:
        factor = _own_factor(kind, args, warmup, last, steps_per_epoch)
        first = 0 if args.recipe == "official" else 1
        scheduler: Any = LambdaLR(
            optimizer, _clamped(lambda s: (s + first) / warmup if s < warmup else factor(s), last)
        )
    else:
        # transformers reaches the end of its schedules at step `num_training_steps`, one after the last that is taken.
        scheduler = get_scheduler(kind, optimizer, warmup, max(last, 1), options)
        scheduler.lr_lambdas = [_clamped(factor, last) for factor in scheduler.lr_lambdas]
    BY_ARGUMENTS.add(scheduler)
    return scheduler


def _own_factor(kind: str, args: Any, warmup: int, last: int, steps_per_epoch: int) -> Callable[[int], float]:
    if kind == "constant":
        return lambda step: 1.0
    if kind == "step":
        drop = args.lr_drop_epochs * steps_per_epoch
        return lambda step: 1.0 if step < drop else STEP_DROP_FACTOR
    floor = args.min_lr_ratio or 0.0
    length = last - warmup + (args.recipe == "official")

    def cosine(step: int) -> float:
        progress = (step - warmup) / length if length > 0 else 0.0
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return cosine


def _clamped(factor: Callable[[int], float], last: int) -> Callable[[int], float]:
    return lambda step: factor(min(step, last))
