"""Launches that train, and those that are refused."""

from functools import partial

import pytest
import torch
from accelerate.utils import DistributedType
from helpers.runs import quick_arguments

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
