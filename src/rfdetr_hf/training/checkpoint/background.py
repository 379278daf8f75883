"""When checkpoints are written: at the step that saves, or in the background while the training goes on."""

import copy
import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerState

from .directory import atomic_directory, checkpoint_path, rotate
from .optimizer import FILE as OPTIMIZER
from .contents import Contents, checkpoint_contents, save_checkpoint, write_contents

if TYPE_CHECKING:
    from ..trainer import RFDETRTrainer

logger = logging.getLogger("rfdetr_hf")


class CheckpointSaver:
    """Saves checkpoints at once and tells the callbacks (`on_save`). All processes call every method."""

    def __init__(self, trainer: "RFDETRTrainer") -> None:
        self.trainer = trainer

    def save(self, epoch_finished: bool = False) -> None:
        """Write `checkpoint-<step>/` of the present step; see `save_checkpoint`."""
        save_checkpoint(self.trainer, epoch_finished)
        self.trainer.fire("on_save")

    def wait(self) -> None:
        """Return when every checkpoint is complete and told of; at once, for they are.

        Raises:
            Exception: what writing one failed with.
        """

    def close(self) -> None:
        """Let what is being written come to its end, whatever has happened; failures are only reported."""


class AsyncCheckpointSaver(CheckpointSaver):
    """Copies what a checkpoint holds to host memory and has a thread of the main process write it.

    The files, the atomic move and the rotation are those of the other way. One checkpoint is written at a time. The
    callbacks are told by the main thread, in the next `wait` or `save`, with the trainer's state of the step saved.
    """

    def __init__(self, trainer: "RFDETRTrainer") -> None:
        super().__init__(trainer)
        self._writer = BackgroundWriter()
        self._untold: TrainerState | None = None

    def save(self, epoch_finished: bool = False) -> None:
        """Begin to write `checkpoint-<step>/`, once the one before is complete.

        Raises:
            Exception: what writing the one before failed with.
        """
        self.wait()
        trainer = self.trainer
        contents = checkpoint_contents(trainer, epoch_finished, due=False)
        if contents is not None:
            files = contents.files | {OPTIMIZER: trainer.optimizer.state_dict()}
            contents = contents._replace(weights=host_copy(contents.weights), files=host_copy(files))
            path = checkpoint_path(trainer.run.root, trainer.state.global_step)
            self._writer.start(functools.partial(_write, path, contents, trainer.args.save_total_limit))
        self._untold = copy.copy(trainer.state)
        self._untold.log_history = list(trainer.state.log_history)
        trainer.control.should_save = False

    def wait(self) -> None:
        if self._untold is None:
            return
        self._writer.wait()
        self.trainer.accelerator.wait_for_everyone()
        saved, self._untold = self._untold, None
        self._tell(saved)

    def _tell(self, saved: TrainerState) -> None:
        """Fire `on_save` as it would have been at its step; a save that is due by now stays due."""
        trainer = self.trainer
        due, now = trainer.control.should_save, trainer.state
        trainer.state = saved
        try:
            trainer.fire("on_save")
        finally:
            trainer.state = now
        trainer.control.should_save = trainer.control.should_save or due

    def close(self) -> None:
        self._untold = None
        try:
            self._writer.wait()
        except Exception:
            logger.exception("the latest checkpoint could not be written")


def create_saver(trainer: "RFDETRTrainer") -> CheckpointSaver:
    """The saver that `async_save` asks for.

    Raises:
        ValueError: the weights or the optimizer are spread over the processes, which write their parts together.
    """
    if not trainer.args.async_save:
        return CheckpointSaver(trainer)
    if trainer.strategy.name != "replicated":
        raise ValueError(
            f"async_save=True runs on one process or data parallel, not under {trainer.strategy.name}; set it to False"
        )
    return AsyncCheckpointSaver(trainer)


class BackgroundWriter:
    """Does one piece of work at a time in a thread. The thread outlives the main one, so that work is always ended."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, once the one before is done.

        Raises:
            Exception: what the one before failed with.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when the work is done.

        Raises:
            Exception: what it failed with; once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            self._error = error


def host_copy(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples whose tensors are in host memory and share none with the original."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(each) for each in value)
    return value


def _write(path: Path, contents: Contents, limit: int | None) -> None:
    with atomic_directory(path) as folder:
        write_contents(folder, contents)
    rotate(path.parent, limit)
