from functools import partial

import pytest
import torch
from accelerate.utils import DistributedType
from helpers.runs import quick_arguments
from torch._dynamo.utils import counters

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training import distributed
from rfdetr_hf.training.precision import settle_precision

SHAPES = 12  # images of the fixture `shapes`


arguments = partial(
    quick_arguments, max_steps=4, gradient_accumulation_steps=1, logging_steps=1, eval_strategy="no",
    save_strategy="no",
)  # fmt: skip


@pytest.fixture
def restored_precision():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize(("tf32", "products"), [(True, "high"), (False, "highest")])
def test_tf32_is_switched_on_and_off_for_products_and_convolutions(tmp_path, tiny_model, shapes, tf32, products):
    distributed.allow_tf32(not tf32)
    RFDETRTrainer(tiny_model(), arguments(tmp_path, tf32=tf32, max_steps=1), shapes).train()
    assert torch.get_float32_matmul_precision() == products
    assert torch.backends.cudnn.allow_tf32 == tf32


class Fake:
    """What `check_backend` looks at."""

    def __init__(self, kind=DistributedType.NO, processes=1, device="cpu", **plugin):
        self.distributed_type, self.num_processes, self.device = kind, processes, torch.device(device)
        self.state = type("State", (), {"fsdp_plugin": type("Plugin", (), plugin)})


@pytest.mark.parametrize(
    ("accelerator", "environment", "options", "message"),
    [
        (Fake(), {"WORLD_SIZE": "2"}, {}, "started 2 processes, but Accelerate sees 1"),
        (Fake(), {"ACCELERATE_USE_FSDP": "true"}, {}, "ACCELERATE_USE_FSDP is set, but Accelerate runs NO"),
        (Fake(DistributedType.MEGATRON_LM), {}, {}, "MEGATRON_LM is not supported"),
        (Fake(DistributedType.FSDP, fsdp_version=1), {}, {}, "fsdp_version: 2"),
        (Fake(DistributedType.FSDP, fsdp_version=2, activation_checkpointing=True), {}, {}, "gradient_checkpointing"),
        (Fake(), {}, {"fp16": True}, "fp16 has no effect on a CPU"),
        (Fake(DistributedType.DEEPSPEED, device="cuda"), {}, {"fp16": True}, "fp16 is not supported under DeepSpeed"),
        (Fake(), {"ACCELERATE_MIXED_PRECISION": "fp8"}, {}, "'fp8' is not supported"),
    ],
)
def test_launches_that_would_not_train_are_refused(monkeypatch, tmp_path, accelerator, environment, options, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((RuntimeError, ValueError), match=message):
        settle_precision(args := arguments(tmp_path, **options))
        distributed.check_backend(accelerator, args)


def test_a_compiled_run_is_the_same_run_with_three_graphs(tmp_path, tiny_model, shapes):
    # Several scales, drop path from the second epoch on, and evaluations between whose last batch is smaller.
    options = {
        "max_steps": 12, "multi_scale": "per_batch", "drop_path": 0.2, "drop_path_mode": "late",
        "drop_path_cutoff_epochs": 1, "eval_strategy": "epoch", "per_device_eval_batch_size": 2, "logging_steps": 1,
        "learning_rate": 1e-4, "learning_rate_encoder": 1e-4,
    }  # fmt: skip
    small = {"decoder_layers": 1, "backbone_config": {"num_hidden_layers": 1, "out_indices": [1]}}
    runs = []
    for compile in (False, True):
        torch._dynamo.reset()
        counters["stats"].clear()
        compiled = {"torch_compile": True, "torch_compile_backend": "eager"} if compile else {}
        args = arguments(tmp_path / str(compile), **options, **compiled)
        trainer = RFDETRTrainer(tiny_model(**small), args, shapes, shapes.select(range(5)))
        trainer.train()
        logs = trainer.state.log_history
        runs.append([[log[name] for log in logs if name in log] for name in ("loss", "eval_map")])
    torch._dynamo.reset()
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4) and len(runs[0][0]) == 12
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-3) and len(runs[0][1]) == 2
    assert 1 < counters["stats"]["unique_graphs"] <= 4
