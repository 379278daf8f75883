"""The options of how a training is started."""

import re
from dataclasses import dataclass

from ..options import FROM_1, option, settle_options
from .words import answers_by_name


def one_device(name: str | None) -> str | None:
    """The device of one process as PyTorch calls it: a number is that of a GPU.

    Raises:
        ValueError: it is none.
    """
    if name is None or re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", name):
        return name
    if name.isdecimal():
        return f"cuda:{name}"
    raise ValueError(f"device={name!r} is not known; give cpu, cuda, or one GPU by number such as 1 or cuda:1")


@answers_by_name
@dataclass
class LaunchArguments:
    """Where a training runs, and on how many processes.

    Raises:
        ValueError: the devices are no list of GPUs, or their number is not that of the processes.
    """

    device: str | None = option(
        None, "GPUs by number (0,1), cuda or cpu; default: every visible GPU.", group="system", daily=True
    )
    num_processes: int | None = option(
        None, "Processes of this machine; default: one for each GPU, one on the CPU. 1 uses one GPU.", FROM_1
    )

    def __post_init__(self) -> None:
        settle_options(self)
        if self.device in (None, "cpu", "cuda"):
            return
        numbers = self.gpus
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"device={self.device!r} is not known; give cpu, cuda, or GPUs by number such as 0 or 0,1")
        if self.num_processes not in (None, len(numbers)):
            raise ValueError(
                f"device={self.device!r} names {len(numbers)} GPUs, and num_processes is {self.num_processes}; "
                "leave one of them out"
            )

    @property
    def gpus(self) -> list[int]:
        """The numbers of the GPUs that `device` names: 0,1 or cuda:0,cuda:1; none for cpu and cuda."""
        parts = [part.strip().removeprefix("cuda:") for part in (self.device or "").split(",")]
        return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else []
