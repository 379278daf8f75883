import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.trainer_utils import SchedulerType

from rfdetr_hf import RFDETRTrainingArguments, build_optimizer, build_param_groups, build_scheduler
from rfdetr_hf.choices import SCHEDULES
from rfdetr_hf.training.optimization import FusedAdamW

OUT_INDICES = {"nano": [3, 6, 9, 12], "base": [2, 5, 8, 11]}


def arguments(**overrides):
    values = {
        "learning_rate": 1e-4,
        "learning_rate_encoder": 1.5e-4,
        "layer_decay": 0.8,
        "component_decay": 0.7,
        "weight_decay": 1e-4,
        "param_groups": "default",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "warmup_epochs": 0,
        "min_lr_ratio": 0.0,
        "lr_drop_epochs": None,
        "lr_scheduler_kwargs": None,
        "recipe": "default",
    }
    return SimpleNamespace(**(values | overrides))


class Layout(nn.Module):
    """A module with the parameter names and shapes of a golden, and none of its computation."""

    def __init__(self, golden, variant):
        super().__init__()
        self.config = SimpleNamespace(backbone_config=SimpleNamespace(out_indices=OUT_INDICES[variant]))
        fragments = ("mask_token", f".layer.{OUT_INDICES[variant][-1]}.")
        self.unused = {name for name in golden["param_groups"] if any(fragment in name for fragment in fragments)}
        for name in golden["param_groups"]:
            *path, leaf = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            shape = golden["keys"][name]
            parameter = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=name not in self.unused)
            owner.register_parameter(leaf, parameter)

    def unused_parameter_names(self):
        return self.unused


def by_name(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}


@pytest.mark.parametrize("variant", ["nano", "base"])
def test_official_groups_equal_the_golden_table(golden, variant):
    reference = golden(variant)
    groups = build_param_groups(Layout(reference, variant), arguments(param_groups="official"))
    assert by_name(groups) == reference["param_groups"]
    assert len(groups) == 28


@pytest.mark.parametrize("mode", ["default", "official"])
def test_groups_hold_each_trainable_parameter_once(golden, mode):
    model = Layout(golden("nano"), "nano")
    groups = build_param_groups(model, arguments(param_groups=mode))
    names = [name for group in groups for name in group["param_names"]]
    assert len(names) == len(set(names))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(names) == (trainable | model.unused if mode == "official" else trainable)
    parameters = dict(model.named_parameters())
    for group in groups:
        assert all(parameters[name] is each for name, each in zip(group["param_names"], group["params"], strict=True))


def test_default_mode_keeps_the_rates_and_spares_norms_biases_and_embeddings(golden):
    reference = golden("nano")
    table = by_name(build_param_groups(Layout(reference, "nano"), arguments()))
    assert all(rate == reference["param_groups"][name][0] for name, (rate, _) in table.items())
    block = "backbone.0.encoder.encoder.encoder.layer.3"
    for spared in (
        f"{block}.layer_scale1.lambda1",
        f"{block}.norm1.weight",
        f"{block}.mlp.fc1.bias",
        "backbone.0.encoder.encoder.embeddings.cls_token",
        "backbone.0.encoder.encoder.embeddings.position_embeddings",
        "backbone.0.encoder.encoder.embeddings.patch_embeddings.projection.weight",
        "transformer.decoder.layers.0.self_attn.in_proj_bias",
        "transformer.decoder.norm.weight",
        "query_feat.weight",
        "refpoint_embed.weight",
        "class_embed.bias",
    ):
        assert table[spared][1] == 0.0, spared
    for decayed in (
        f"{block}.mlp.fc1.weight",
        "transformer.decoder.layers.0.self_attn.in_proj_weight",
        "class_embed.weight",
        "bbox_embed.layers.0.weight",
        "backbone.0.projector.stages.0.0.cv1.conv.weight",
    ):
        assert table[decayed][1] == 1e-4, decayed


def test_group_names_and_order_are_stable(golden):
    names = [group["name"] for group in build_param_groups(Layout(golden("nano"), "nano"), arguments())]
    blocks = [f"encoder.layer.{i}.{kind}" for i in range(12) for kind in ("decay", "no_decay")]
    assert names == [
        "head.decay",
        "head.no_decay",
        "encoder.embeddings.no_decay",
        *blocks,
        "encoder.norm.no_decay",
        "decoder.decay",
        "decoder.no_decay",
    ]


@pytest.mark.parametrize("mode", ["default", "official"])
def test_a_frozen_encoder_is_in_no_group(golden, mode):
    model = Layout(golden("nano"), "nano")
    for name, parameter in model.named_parameters():
        if "backbone.0.encoder" in name:
            parameter.requires_grad_(False)
    names = [group["name"] for group in build_param_groups(model, arguments(param_groups=mode))]
    assert {name.split(".")[0] for name in names} == {"head", "decoder"}


def test_nothing_to_train_and_unknown_mode_are_errors(golden):
    model = Layout(golden("nano"), "nano")
    with pytest.raises(ValueError, match="param_groups='offical'"):
        build_param_groups(model, arguments(param_groups="offical"))
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_param_groups(model.requires_grad_(False), arguments())


@pytest.mark.parametrize("variant", ["nano", "base"])
def test_groups_of_the_real_model(golden, variant):
    from rfdetr_hf.models.configuration_rfdetr import RFDETRConfig
    from rfdetr_hf.models.modeling_rfdetr import RFDETRForObjectDetection

    with torch.device("meta"):
        model = RFDETRForObjectDetection(RFDETRConfig.from_variant(variant, num_labels=6))
    official = by_name(build_param_groups(model, arguments(param_groups="official")))
    assert official == golden(variant)["param_groups"]
    default = by_name(build_param_groups(model, arguments()))
    assert default.keys() == official.keys() - model.unused_parameter_names()
    assert all(rate == official[name][0] for name, (rate, _) in default.items())
    model.freeze_backbone()
    frozen = {group["name"] for group in build_param_groups(model, arguments(param_groups="official"))}
    assert frozen == {"head.decay", "decoder.decay"}


def small_optimizer(args, rates=(1e-2,)):
    groups = [
        {
            "params": [nn.Parameter(torch.ones(3))],
            "lr": rate,
            "weight_decay": 0.1,
            "name": str(rate),
            "param_names": ["w"],
        }
        for rate in rates
    ]
    return build_optimizer(groups, args, "cpu")


def test_optimizer_takes_rates_names_and_adam_options():
    optimizer = small_optimizer(arguments(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6), rates=(1e-2, 1e-3))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, rate in zip(optimizer.param_groups, (1e-2, 1e-3), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (rate, (0.8, 0.95), 1e-6, 0.1)
        assert group["name"] == str(rate)
    state = optimizer.state_dict()
    other = small_optimizer(arguments(), rates=(1e-2, 1e-3))
    other.load_state_dict(state)
    assert [group["name"] for group in other.param_groups] == ["0.01", "0.001"]


def test_optimizer_leaves_the_given_groups_alone():
    groups = [
        {"params": [nn.Parameter(torch.ones(3))], "lr": 1e-2, "weight_decay": 0.1, "name": "a", "param_names": ["w"]}
    ]
    build_optimizer(groups, arguments(), "cpu")
    assert set(groups[0]) == {"params", "lr", "weight_decay", "name", "param_names"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_optimizer_is_fused(device):
    groups = [{"params": [nn.Parameter(torch.ones(3, device=device))], "lr": 1e-2, "weight_decay": 0.1}]
    assert build_optimizer(groups, arguments(), device).defaults["fused"] is True


def factors(args, steps, steps_per_epoch=10, beyond=0):
    """The factor that each optimizer step of a run used, and of `beyond` steps after it."""
    optimizer = small_optimizer(args, rates=(1.0,))
    scheduler = build_scheduler(optimizer, args, steps, steps_per_epoch)
    used = []
    for _ in range(steps + beyond):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_constant_schedule_with_and_without_warmup():
    assert factors(arguments(), 5) == [1.0] * 5
    assert factors(arguments(warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_step_schedule_drops_once():
    args = arguments(lr_scheduler_type="step", lr_drop_epochs=1.5, warmup_steps=2)
    assert factors(args, 20) == [0.5, 1.0, *[1.0] * 13, *[0.1] * 5]


def test_cosine_has_warmup_floor_and_stays_at_its_end():
    args = arguments(lr_scheduler_type="cosine", warmup_steps=4, min_lr_ratio=0.05)
    used = factors(args, 25, beyond=10)
    assert used[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert used[14] == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert used[24] == pytest.approx(0.05, abs=1e-15)
    assert all(later < earlier for earlier, later in zip(used[4:24], used[5:25], strict=True))
    assert used[25:] == [used[24]] * 10


def test_a_run_of_one_step_uses_the_full_rate():
    assert factors(arguments(lr_scheduler_type="cosine"), 1) == [1.0]
    assert factors(arguments(lr_scheduler_type="linear"), 1) == [1.0]


@pytest.mark.parametrize(
    ("options", "warmup"),
    [
        ({"warmup_steps": 3}, 3),
        ({"warmup_steps": 3.0}, 3),
        ({"warmup_steps": 0.11}, 3),
        ({"warmup_epochs": 0.5}, 5),
        ({"warmup_steps": None, "warmup_epochs": None}, 0),
    ],
)
def test_warmup_as_steps_share_or_epochs(options, warmup):
    used = factors(arguments(**options), 20)
    assert used.index(1.0) == max(warmup - 1, 0)


@pytest.mark.parametrize(
    ("name", "kwargs", "end"),
    [
        ("linear", None, 0.0),
        (SchedulerType.LINEAR, None, 0.0),
        ("polynomial", {"lr_end": 1e-3, "power": 2.0}, 0.1),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, 0.2),
        ("cosine_with_restarts", {"num_cycles": 2}, 0.0),
        ("warmup_stable_decay", {"num_decay_steps": 5, "min_lr_ratio": 0.3}, 0.3),
        ("constant_with_warmup", None, 1.0),
    ],
)
def test_transformers_schedules_end_at_the_last_step_and_stay_there(name, kwargs, end):
    args = arguments(lr_scheduler_type=name, warmup_steps=4, lr_scheduler_kwargs=kwargs, learning_rate=1e-2)
    optimizer = small_optimizer(args)
    scheduler = build_scheduler(optimizer, args, 20, 10)
    used = []
    for _ in range(26):
        used.append(optimizer.param_groups[0]["lr"] / 1e-2)
        optimizer.step()
        scheduler.step()
    assert max(used) == pytest.approx(1.0)
    assert used[19] == pytest.approx(end, abs=1e-12)
    assert used[20:] == [used[19]] * 6


@pytest.mark.parametrize("name", ["cosine", "polynomial"])
def test_schedule_resumes_from_its_state(name, tmp_path):
    args = arguments(lr_scheduler_type=name, warmup_steps=3, learning_rate=1.0)
    straight = factors(args, 12)
    optimizer = small_optimizer(args, rates=(1.0,))
    scheduler = build_scheduler(optimizer, args, 12, 4)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    torch.save([scheduler.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer = small_optimizer(args, rates=(1.0,))
    scheduler = build_scheduler(optimizer, args, 12, 4)
    scheduler.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    resumed = []
    for _ in range(5):
        resumed.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert resumed == straight[7:]


def test_groups_keep_their_ratio():
    args = arguments(lr_scheduler_type="cosine", min_lr_ratio=0.1)
    optimizer = small_optimizer(args, rates=(1e-2, 1e-3))
    scheduler = build_scheduler(optimizer, args, 10, 5)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "'cosin' is unknown; use one of constant, step, cosine"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "follows a metric"),
        ({"lr_scheduler_type": "step"}, "needs lr_drop_epochs"),
        ({"lr_scheduler_type": "linear", "min_lr_ratio": 0.1}, "min_lr_ratio=0.1 applies"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs does not apply"),
    ],
)
def test_schedule_options_that_do_not_fit_are_errors(options, message):
    args = arguments(**options)
    with pytest.raises(ValueError, match=message):
        build_scheduler(small_optimizer(args), args, 20, 10)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "step"])
@pytest.mark.parametrize("warmup", [4, 5, 9])
def test_a_warmup_to_the_last_step_and_beyond_leaves_no_room_to_descend(name, warmup):
    """Five steps, of which the last one is step 4."""
    needed = {"num_decay_steps": 1} if name == "warmup_stable_decay" else None
    used = factors(arguments(lr_scheduler_type=name, warmup_steps=warmup, lr_scheduler_kwargs=needed), 5)
    assert used == sorted(used) and used[-1] == pytest.approx(min(1.0, (5 if used[0] else 4) / warmup))


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"warmup_epochs": 0.19}, "0 steps"), ({"warmup_steps": 1}, "1 step"), ({"warmup_steps": 2}, None)],
)
def test_a_warmup_that_no_step_feels_is_announced(options, steps, caplog):
    build_scheduler(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), RFDETRTrainingArguments(**options), 20, 5
    )
    assert f"warm-up takes {steps}: no step has a lower" in caplog.text if steps is not None else not caplog.text


def test_a_warmup_longer_than_the_run_is_announced(caplog):
    assert factors(arguments(lr_scheduler_type="cosine", warmup_steps=10), 5) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert "warm-up takes 10 steps, but the run has only 5" in caplog.text


@pytest.mark.parametrize("skipped", [None, 1])
def test_the_optimizer_of_gpus_gives_the_bits_of_pytorchs(skipped):
    def trained(kind):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(5, 3)) for _ in range(4)]
        groups = [
            {"params": weights[:2], "lr": 1e-2, "weight_decay": 0.1},
            {"params": weights[2:3], "lr": 1e-3, "weight_decay": 0.0},
            {"params": weights[3:], "lr": 1.0},  # never has a gradient
        ]
        optimizer = kind(groups, betas=(0.8, 0.9), fused=True)
        for step in range(3):
            for weight in weights[:3]:
                weight.grad = torch.randn(5, 3)
            if skipped is not None:
                optimizer.found_inf = torch.tensor(float(step == skipped))
            optimizer.step()
        return [*weights, *(value for each in optimizer.state.values() for value in each.values())]

    ours, pytorchs = trained(FusedAdamW), trained(torch.optim.AdamW)
    assert len(ours) == len(pytorchs) == 4 + 3 * 3
    assert all(torch.equal(one, other) for one, other in zip(ours, pytorchs, strict=True))
