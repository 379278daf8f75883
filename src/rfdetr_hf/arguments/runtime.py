"""What callbacks written for Transformers ask its `TrainingArguments` about the process that they run in."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class RuntimeFacts:
    """Properties of the same names as those of `transformers.TrainingArguments`."""

    output_dir: str
    per_device_train_batch_size: int

    @property
    def device(self) -> "torch.device":
        """Where this process computes."""
        from accelerate import PartialState

        device: Any = PartialState().device
        return device

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one, or none."""
        return int(self.device.type != "cpu")

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return _of_the_launch("num_processes", "WORLD_SIZE", 1)

    @property
    def process_index(self) -> int:
        """Number of this process among all."""
        return _of_the_launch("process_index", "RANK", 0)

    @property
    def local_process_index(self) -> int:
        """Number of this process on its machine."""
        return _of_the_launch("local_process_index", "LOCAL_RANK", 0)

    local_rank = local_process_index

    @property
    def train_batch_size(self) -> int:
        """Images of one micro-batch of this process."""
        return self.per_device_train_batch_size

    @property
    def should_save(self) -> bool:
        """Whether this process writes files: the main one does."""
        return self.process_index == 0

    @property
    def should_log(self) -> bool:
        """Whether this process logs to the console: the main one does."""
        return self.process_index == 0

    @property
    def logging_dir(self) -> str:
        """Folder of the trackers that write files."""
        return str(Path(self.output_dir) / "runs")


def _of_the_launch(name: str, variable: str, default: int) -> int:
    """A number of Accelerate's state; before there is one, of the launcher's environment."""
    from accelerate import PartialState

    state: Any = PartialState._shared_state
    return getattr(PartialState(), name) if state else int(os.environ.get(variable, default))
