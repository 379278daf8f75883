"""What the ranks of a run agree on."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

PLAIN_BACKENDS = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_MLU,
)


def check_backend(accelerator: Accelerator) -> None:
    """Refuse a launch whose processes would not train together, or in a way that this trainer does not know.

    Raises:
        RuntimeError: the launcher started several processes, or asked for sharding, and Accelerate did not set it up;
            or the precision does not exist on the device.
        ValueError: a backend other than a single process or data parallelism.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes}; "
            "on CPU set ACCELERATE_USE_CPU=true, or launch with --multi_gpu"
        )
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED")):
        if os.environ.get(variable, "false").lower() in ("1", "true") and accelerator.distributed_type.value != name:
            raise RuntimeError(
                f"{variable} is set, but Accelerate runs {accelerator.distributed_type.value}: every process would "
                "train alone; sharding needs accelerators"
            )
    if accelerator.distributed_type not in PLAIN_BACKENDS:
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported; launch a single process or data parallelism"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise RuntimeError("fp16 has no effect on a CPU; use bf16, or full precision")


def sum_over_ranks(accelerator: Accelerator, value: torch.Tensor | int) -> torch.Tensor | int:
    """The sum of a number over all ranks; with one process the number itself, else a tensor on the device."""
    if accelerator.num_processes == 1:
        return value
    value = torch.as_tensor(value, dtype=torch.float32, device=accelerator.device)
    return accelerator.reduce(value, reduction="sum")
