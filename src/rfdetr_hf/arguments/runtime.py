"""What callbacks written for Transformers ask its `TrainingArguments` about the process that they run in."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cores import usable_cores

if TYPE_CHECKING:
    import torch


AUTO = "auto"
STEP, MICRO_BATCH = 16, 4
"""Images of one optimizer step and of one micro-batch by default."""
MOST_WORKERS = 8


class RuntimeFacts:
    """Properties of the same names as those of `transformers.TrainingArguments`."""

    output_dir: str
    per_device_train_batch_size: int | str
    gradient_accumulation_steps: int | None
    total_train_batch_size: int | None
    dataloader_num_workers: int | None

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
        """Images of one micro-batch of this process; while `auto` is not decided, those of the default."""
        size = self.per_device_train_batch_size
        return MICRO_BATCH if isinstance(size, str) else size

    @property
    def is_automatic_batch(self) -> bool:
        """Whether the size of a micro-batch is still to be found by the memory there is."""
        return self.per_device_train_batch_size == AUTO

    @property
    def images_per_step(self) -> int | None:
        """Images of one optimizer step over all processes, where they are asked for and accumulation follows."""
        return self.total_train_batch_size or (STEP if self.is_automatic_batch else None)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one optimizer step; before a run has settled them, those of a single process."""
        return self.gradient_accumulation_steps or max((self.images_per_step or STEP) // self.train_batch_size, 1)

    @property
    def loader_workers(self) -> int:
        """Worker processes of each loader: as asked for, or one for each core that is this process's, up to 8."""
        if self.dataloader_num_workers is not None:
            return self.dataloader_num_workers
        return max(min(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or self.world_size), MOST_WORKERS), 1)

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
