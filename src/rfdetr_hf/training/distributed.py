"""How a run's processes find each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
)

from ..arguments.training import RFDETRTrainingArguments
from .precision import DTYPES, is_set
from .processes import use_cores

SHARDING_VARIABLES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED"}
SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_MLU,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
)


def build_accelerator(args: RFDETRTrainingArguments) -> Accelerator:
    """The accelerator of a run: how it was launched comes from the environment, as `accelerate launch` sets it.

    Args:
        args: of the run, with a settled precision.

    Raises:
        RuntimeError, ValueError: see `check_backend`.
    """
    timeout: dict[str, Any] = {"timeout": timedelta(seconds=args.ddp_timeout)}
    deepspeed = is_set("ACCELERATE_USE_DEEPSPEED")
    if deepspeed and not torch.accelerator.is_available():
        # Without a backend Accelerate starts unconnected processes where there is no device.
        timeout["backend"] = "gloo"
    replicas = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    handlers: list[Any] = [replicas, InitProcessGroupKwargs(**timeout)]
    # DeepSpeed would cast the complete module, losses and box geometry too; the step autocasts instead.
    accelerator = _with_own_precision("no" if deepspeed else args.mixed_precision, handlers)
    check_backend(accelerator, args)
    use_cores(accelerator.device, _launched("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return accelerator


def _with_own_precision(mixed_precision: str, handlers: list[Any]) -> Accelerator:
    """An accelerator whose precision holds for itself alone.

    Accelerate keeps one state for all accelerators of a process and refuses another precision than that of the first.
    In a notebook the trainings of a process have any precision each, so each gets a copy of the state.
    """
    shared = AcceleratorState._shared_state
    before = shared.get("_mixed_precision")
    if before is not None:
        shared["_mixed_precision"] = mixed_precision
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=handlers)
        accelerator.state.__dict__ = dict(shared)
    finally:
        if before is not None:
            shared["_mixed_precision"] = before
    return accelerator


def replace_precision(accelerator: Accelerator, args: RFDETRTrainingArguments) -> None:
    """Give an accelerator that has prepared nothing yet the precision that the arguments have by now."""
    fresh = build_accelerator(args)
    accelerator.state, accelerator.native_amp, accelerator.scaler = fresh.state, fresh.native_amp, fresh.scaler


@contextmanager
def shared_precision(accelerator: Accelerator) -> Iterator[None]:
    """Within the block, what Accelerate asks its one state of the process, it asks that of the accelerator."""
    shared = AcceleratorState._shared_state
    before = shared["_mixed_precision"]
    shared["_mixed_precision"] = accelerator.mixed_precision
    try:
        yield
    finally:
        shared["_mixed_precision"] = before


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions of this process run in TF32 on GPUs that have it, or in full float32.

    By themselves PyTorch's matrix products are full float32 and cuDNN's convolutions are TF32.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _launched(variable: str, default: int) -> int:
    """A number of processes, as the launcher's environment has it."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{variable}={text!r} in the environment is no number of processes; launch again, or unset it")
    return int(text)


def check_backend(accelerator: Accelerator, args: RFDETRTrainingArguments) -> None:
    """Refuse a launch whose processes would not train together, or in a way that this trainer does not know.

    Raises:
        RuntimeError: the launcher started several processes, or asked for sharding, and Accelerate did not set it up;
            or the precision does not exist on the device.
        ValueError: a backend, a version of it or one of its options that this trainer does not support.
    """
    launched = _launched("WORLD_SIZE", 1)
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes}; "
            "on CPU set ACCELERATE_USE_CPU=true, or launch with --multi_gpu"
        )
    kind = accelerator.distributed_type
    for variable, name in SHARDING_VARIABLES.items():
        if is_set(variable) and kind.value != name:
            raise RuntimeError(
                f"{variable} is set, but Accelerate runs {kind.value}: every process would "
                "train alone; sharding needs accelerators"
            )
    if kind not in SUPPORTED:
        raise ValueError(f"{kind.value} is not supported; launch a single process, data parallelism, FSDP or DeepSpeed")
    if kind == DistributedType.FSDP:
        _check_fsdp(accelerator)
    _check_precision(accelerator, args)


def _check_fsdp(accelerator: Accelerator) -> None:
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP 1 is not supported; set fsdp_version: 2 in the configuration of accelerate")
    if plugin.activation_checkpointing:
        raise ValueError("fsdp_activation_checkpointing renames the weights; set gradient_checkpointing=True instead")


def _check_precision(accelerator: Accelerator, args: RFDETRTrainingArguments) -> None:
    name = args.mixed_precision
    if name != "no" and name not in DTYPES:
        raise ValueError(f"mixed precision {name!r} is not supported; choose one of no, {', '.join(DTYPES)}")
    if name == "fp16" and accelerator.device.type == "cpu":
        raise RuntimeError("fp16 has no effect on a CPU; use bf16, or full precision")
    if name == "fp16" and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("fp16 is not supported under DeepSpeed; use bf16, or full precision")
