"""What one optimizer step costs a GPU, counted without one: launches, arithmetic, memory traffic, saved tensors, waits.

    python benchmarks/counts.py
    python benchmarks/counts.py --rows nano-b4 seg-medium-b4 --ways ours transformers --parts --json

Beside ours, the steps of rfdetr and of transformers' own model are counted where these are installed, and the ratios of
ours to theirs printed; see `peer_steps.py`.

The step runs on fake tensors, which have shapes and no values: forward pass under bfloat16 autocast, losses, backward
pass, clipping, fused AdamW, moving average and the sums for the log. PyTorch builds no graph for CUDA tensors where no
driver is, so they are CPU tensors, and what the code or PyTorch does otherwise on CUDA is put in its place: functions
that autocast keeps in float32, fused and foreach kernels, the chunks of the costs, copies to the device. Every image
has `--objects` objects, and matching gives each the query of its number. What is counted:

- `ops`: operations that are neither views nor allocations. Each is one launch of a kernel at least;
- `GFLOP`: of matrix products, convolutions and attention, two for each multiplication with addition;
- `GB`: bytes of all inputs and outputs of these operations, each element of an expanded tensor once;
- `saved`: bytes that the forward pass keeps for the backward pass besides parameters, in the encoder and elsewhere;
- `waits`: times that the host reads something back from the device while the step is queued. Whether it was skipped is
  read when the next one is, and by then it is there. All ways match on the host.

Not in it: the copy of a batch to the device and its preparation.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRForObjectDetection,
    build_optimizer,
    build_param_groups,
)
from rfdetr_hf.losses import criterion, keypoints, masks, matcher, types
from rfdetr_hf.models import decoder
from rfdetr_hf.training.ema import ExponentialMovingAverage, averaged_tensors
from rfdetr_hf.training.meters import LossMeter
from rfdetr_hf.training.parallel import Parallel
from rfdetr_hf.training.update import update_weights

sys.path.insert(0, str(Path(__file__).parent))
import peer_steps

ENCODER, UPDATE, BACKWARD = "encoder", "update", "backward"
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
# Of autocast's list for CUDA what the models use with tensors that may be narrower; on a CPU these stay in bfloat16.
_IN_FLOAT32 = {F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, torch.pow, Tensor.pow, torch.exp, Tensor.exp,
               torch.log, Tensor.log, F.softplus, F.l1_loss, torch.cdist, torch.sum, Tensor.sum}  # fmt: skip
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class Row(NamedTuple):
    """A model and the images in its batch."""

    variant: str
    batch_size: int


ROWS = {
    "nano-b4": Row("nano", 4),
    "medium-b16": Row("medium", 16),
    "seg-medium-b4": Row("seg-medium", 4),
    "keypoint-b4": Row("keypoint-preview", 4),
}
WAYS = ("ours", *peer_steps.PEERS)
MODELS = {"seg": RFDETRForInstanceSegmentation, "keypoint": RFDETRForKeypointDetection}
OPTIONS = SimpleNamespace(
    learning_rate=1e-4, learning_rate_encoder=1.5e-4, layer_decay=0.8, component_decay=0.7, weight_decay=1e-4,
    param_groups="default", adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, max_grad_norm=0.1,
)  # fmt: skip


class Counts(TorchDispatchMode):
    """Counts what passes through the dispatcher, by the part of the step that is set.

    Args:
        answer: what a value is that the host reads: 0 to a step that asks whether a gradient is not finite, 1 to one
            that asks whether all is well.
        strict: whether a result whose size depends on the data is an error; else all elements count as non-zero.
    """

    def __init__(self, answer: int = 0, strict: bool = True) -> None:
        super().__init__()
        self.answer, self.strict = answer, strict
        self.part = ""
        self.ops: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.saved: dict[str, dict[int, Tensor]] = defaultdict(dict)

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count under another name."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in _READS:
            self.wait(name)
            if name == "nonzero" and not self.strict:
                return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
            if name != "_local_scalar_dense":
                raise RuntimeError(f"{name} has a result whose size depends on the data: the host waits for it")
            return self.answer
        result = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not (tensors or results) or _is_free(func, name):
            return result
        self.ops[self.part, name] += 1
        self.bytes[self.part] += sum(_bytes(tensor) for tensor in (*tensors, *results))
        packet = getattr(torch.ops.aten, name.replace("_for_cpu", ""), None)
        if packet in flop_registry:
            self.flops[self.part] += flop_registry[packet](*args, **kwargs, out_val=result)
        return result

    def wait(self, name: str) -> None:
        """Note that the host reads something back."""
        self.waits[name] += 1
        self.ops[self.part, name] += 1

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves."""
        if not isinstance(tensor, nn.Parameter):
            storage: Any = tensor.untyped_storage()
            if not any(storage._cdata in part for part in self.saved.values()):
                self.saved[self.part][storage._cdata] = tensor
        return tensor

    def saved_bytes(self, parameters: Sequence[Tensor]) -> dict[str, int]:
        """Bytes that are saved in each part, parameters and their views left out."""
        known = {parameter.untyped_storage()._cdata for parameter in parameters}
        return {
            part: sum(tensor.untyped_storage().nbytes() for key, tensor in tensors.items() if key not in known)
            for part, tensors in self.saved.items()
        }


def _is_free(func: Any, name: str) -> bool:
    """Whether an operation launches nothing: an allocation, or a view of its argument."""
    if name in _ALLOCATIONS or func.namespace != "aten":
        return True
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _bytes(tensor: Tensor) -> int:
    sides = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(np.prod(sides, dtype=np.int64)) * tensor.itemsize if tensor.numel() else 0


class OnCuda(TorchFunctionMode):
    """What PyTorch does otherwise on CUDA: autocast keeps more functions in float32, and the host waits for `cpu()`."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            if self.counts.strict:
                raise RuntimeError("a copy to the host, which waits for it")
            self.counts.wait("cpu")
        if func is torch._shape_as_tensor:
            return torch.tensor(args[0].shape)
        if func in _IN_FLOAT32 and torch.is_autocast_enabled("cpu") and args[0].dtype == torch.bfloat16:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def copied_array(array: np.ndarray, device: torch.device) -> Tensor:
    """In place of `to_device`: one copy, which the host does not wait for."""
    return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype).clone()


def next_queries(cost: Tensor, objects: Sequence[int], queries: Sequence[int], num_groups: int) -> np.ndarray:
    """In place of the solver on the host: every object gets the query of its number, after one value was read."""
    cost.new_empty(()).item()
    numbers = np.concatenate([np.arange(n) for n in objects])[:, None]  # (N, 1)
    shape = (len(numbers), num_groups)
    return np.stack([np.broadcast_to(np.where(numbers < q, numbers, -1), shape) for q in queries])


def fake_labels(config: RFDETRConfig, row: Row, objects: int) -> list[dict[str, Tensor]]:
    """Targets of a batch, as the trainer unpacks them: views of one tensor for each field."""
    images, side = row.batch_size, config.resolution // config.mask_downsample_ratio
    total = images * objects
    fields = {
        "class_labels": torch.empty(total, dtype=torch.int64),
        "boxes": torch.empty(total, 4),
        "image_id": torch.empty(images, dtype=torch.int64),
    }
    if row.variant.startswith("seg"):
        fields["masks"] = torch.empty(total, side, side, dtype=torch.bool)
    if config.num_keypoints_per_class:
        fields["keypoints"] = torch.empty(total, max(config.num_keypoints_per_class), 3)
    rows = {name: field.split(1 if name == "image_id" else objects) for name, field in fields.items()}
    return [{name: parts[image] for name, parts in rows.items()} for image in range(images)]


class Step:
    """Our model on fake tensors, and an optimizer step of it."""

    def __init__(self, row: Row, objects: int) -> None:
        model = MODELS.get(row.variant.split("-")[0], RFDETRForObjectDetection)
        self.config = RFDETRConfig.from_variant(row.variant)
        with torch.device("meta"):
            self.model: Any = model(self.config).train()
        _on_device(self.model)
        self.pixels = torch.empty(row.batch_size, 3, self.config.resolution, self.config.resolution)
        self.labels = fake_labels(self.config, row, objects)
        self.optimizer = build_optimizer(build_param_groups(self.model, OPTIONS), OPTIONS, "cuda")
        launch: dict[str, Any] = {"num_processes": 1, "scaler": None, "device": torch.device("cuda")}
        alone: Any = SimpleNamespace(**launch, unscale_gradients=lambda: None)
        self.parallel = Parallel(alone, OPTIONS, self.model)  # pyright: ignore[reportArgumentType]
        self.parallel.optimizer = self.optimizer
        self.average = ExponentialMovingAverage(averaged_tensors(self.model))
        self.meter = LossMeter()
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()  # makes its state
        self.optimizer.zero_grad()
        criterion = self.model.loss_function
        criterion.weighted_sum({name: torch.empty(()) for name in criterion.weight_dict})  # the weights, kept from then

    def parts(self) -> dict[str, nn.Module]:
        """The modules that are counted apart."""
        model = self.model
        return {ENCODER: model.vit, "projector": model.backbone[0].projector, "decoder": model.transformer.decoder}

    def forward(self) -> Tensor:
        """The loss."""
        with torch.autocast("cpu", torch.bfloat16):
            self.outputs = self.model(self.pixels, labels=self.labels, num_boxes=1.0, seed=0)
        return self.outputs.loss

    def update(self) -> None:
        """Add up for the log, clip, step, and average."""
        self.meter.add(self.outputs.loss, self.outputs.loss_dict, 1)
        update = update_weights(self.parallel, self.outputs.loss.detach(), lambda: None)
        self.average.update(1)
        self.meter.end_step(self.meter.take(), update.grad_norm)


def _on_device(model: nn.Module) -> None:
    """Give a model without values tensors on the device: a random initialisation needs a real one."""
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            new = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
            setattr(module, name, new)
        for name, old in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(old.shape, dtype=old.dtype))


@contextmanager
def as_on_a_gpu(counts: Counts) -> Iterator[None]:
    """Within it tensors are fake, the code takes its ways for CUDA, and what reads values on the host is replaced."""
    with ExitStack() as stack:
        for module in (criterion, decoder, keypoints, masks, matcher, types):
            if hasattr(module, "to_device"):
                stack.enter_context(mock.patch.object(module, "to_device", copied_array))
        stack.enter_context(mock.patch.object(matcher, "solve_on_host", next_queries))
        stack.enter_context(mock.patch.object(types.ValueCheck, "__call__", lambda *_: False))
        limits_of_pairs = matcher.PAIRS_AT_ONCE, keypoints._POINTS_AT_ONCE
        for limits in (*limits_of_pairs, criterion._LOGITS_AT_ONCE, masks._SCORES_AT_ONCE):
            stack.enter_context(mock.patch.dict(limits, {"cpu": limits["default"]}))
        stack.enter_context(mock.patch.dict(criterion._SCORES_AT_ONCE, clear=True))
        stack.enter_context(mock.patch.object(masks, "_LAYERS_APART", set()))
        stack.enter_context(mock.patch.object(matcher, "_BY_IMAGE", set()))
        stack.enter_context(mock.patch.object(decoder, "_KEEPS_READS", set()))
        stack.enter_context(mock.patch.object(clip_grad, "_has_foreach_support", lambda *_: True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(OnCuda(counts))
        yield


def count_step(row: Row, objects: int, way: str = "ours") -> dict[str, Any]:
    """Count one optimizer step.

    Returns:
        `ops`, `gflop`, `gb`, `saved_encoder_gb`, `saved_rest_gb`, `saved_gb`, `waits`, and `parts`: for each part its
        `ops`, `gflop`, `gb`, `saved_gb` and the `names` of its operations with their numbers.
    """
    own = way == "ours"
    counts = Counts() if own else Counts(answer=1, strict=False)
    peer: Any = None if own else peer_steps.PEERS[way](row.variant)
    with ExitStack() as stack:
        stack.enter_context(as_on_a_gpu(counts))
        if own:
            step: Any = Step(row, objects)
        else:
            stack.enter_context(peer_steps.matched_by_number(way))
            config = RFDETRConfig.from_variant(row.variant)
            pixels = torch.empty(row.batch_size, 3, config.resolution, config.resolution)
            _on_device(peer.model)
            step = peer_steps.PeerStep(peer, pixels, fake_labels(config, row, objects))
        for part, module in step.parts().items():
            _count_apart(counts, part, module)
        with counts, torch.autograd.graph.saved_tensors_hooks(counts.keep, lambda tensor: tensor):
            with counts.within("heads and losses"):
                loss = step.forward()
        with counts:
            with counts.within(BACKWARD):
                loss.backward()
            with counts.within(UPDATE):
                step.update()
    return summary(counts, counts.saved_bytes(list(step.model.parameters())))


def _count_apart(counts: Counts, part: str, module: nn.Module) -> None:
    before: list[str] = []

    def enter(*_: Any) -> None:
        before.append(counts.part)
        counts.part = part

    def leave(*_: Any) -> None:
        counts.part = before.pop()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def summary(counts: Counts, saved: dict[str, int]) -> dict[str, Any]:
    """The numbers of `count_step`."""
    parts: dict[str, dict[str, Any]] = {}
    for part in dict.fromkeys(part for part, _ in counts.ops):
        names = {name: number for (own, name), number in counts.ops.most_common() if own == part}
        parts[part] = {
            "ops": sum(names.values()),
            "gflop": counts.flops[part] / 1e9,
            "gb": counts.bytes[part] / 1e9,
            "saved_gb": saved.get(part, 0) / 1e9,
            "names": names,
        }
    encoder = parts.get(ENCODER, {"saved_gb": 0})["saved_gb"]
    total = {key: sum(part[key] for part in parts.values()) for key in ("ops", "gflop", "gb")}
    rest = sum(part["saved_gb"] for part in parts.values()) - encoder
    saved_gb = {"saved_encoder_gb": encoder, "saved_rest_gb": rest, "saved_gb": encoder + rest}
    return {**total, **saved_gb, "waits": counts.waits.total(), "parts": parts}


COLUMNS = {"ops": 6, "gflop": 7, "gb": 8, "saved_encoder_gb": 9, "saved_rest_gb": 7, "saved_gb": 7, "waits": 6}


def print_row(name: str, row: dict[str, Any], parts: bool = False) -> None:
    """A line of the table, and one for each part."""
    cells = (f"{row[key]:{width}{'d' if isinstance(row[key], int) else '.2f'}}" for key, width in COLUMNS.items())
    print(f"{name:28}", *cells, flush=True)
    for part, own in row["parts"].items() if parts else ():
        print(f"    {part:24} {own['ops']:6} {own['gflop']:7.2f} {own['gb']:8.2f} {'':17} {own['saved_gb']:7.2f}")
        print("      " + ", ".join(f"{operation} {number}" for operation, number in list(own["names"].items())[:10]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command line."""
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--objects", type=int, default=10, help="per image")
    parser.add_argument("--parts", action="store_true", help="a line for each part, with its most frequent operations")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def print_table(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Count and print what is asked for: by row and way."""
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    show = (lambda *_, **__: None) if args.json else print_row
    for name, way in ((name, way) for name in args.rows for way in args.ways):
        reason = peer_steps.missing(way, ROWS[name].variant)
        if reason:
            print(f"{name}, {way}: left out, {reason}", file=sys.stderr)
            continue
        rows[name][way] = row = count_step(ROWS[name], args.objects, way)
        show(f"{name}, {way}", row, parts=args.parts)
        first = rows[name].get("ours")
        if first and way != "ours":
            show("  ours / " + way, {key: first[key] / row[key] if row[key] else float("nan") for key in COLUMNS})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    if not args.json:
        print(f"{'':28} {'ops':>6} {'GFLOP':>7} {'GB':>8} {'saved: encoder, rest, all':>25} {'waits':>6}")
    rows = print_table(args)
    if args.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
