"""Writes checkpoints, at once or in the background, and takes a run up from one."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import gather_object

from ...hub.model_card import CardFacts
from ..meters import mean_state
from ..parallel import Parallel
from ..state import RunState
from . import contents as files
from .background import BackgroundWriter, host_copy
from .directory import CheckpointError, rng_state, set_rng_state, temporary_path
from .optimizer import INITIAL, DifferentGroups, require_same
from .previous import open_optimizer, with_present_names
from .reading import CheckpointFiles
from .run_directory import RunDirectory
from .soundness import REMEDY
from .tree import with_classes_of
from .weights import Weights

logger = logging.getLogger(__name__)

FILE_OF_PART = {"scheduler": files.SCHEDULER, "scaler": files.SCALER}
PER_PROCESS = "losses"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A block that takes values of a file; an error of it names the file.

    Raises:
        CheckpointError: the block failed.
    """
    try:
        yield
    except (CheckpointError, DifferentGroups):
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{path} cannot be taken up: {error!r}; {REMEDY}") from error


class Stateful(Protocol):
    """A part of a run with a state of its own."""

    def state_dict(self) -> dict[str, Any]:
        """The state: numbers, strings, tensors, and lists and dicts of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state up."""


class Checkpointer:
    """The checkpoints of a run. All processes call every method.

    Args:
        directory: of the run.
        accelerator: of the run.
        parallel: how the run is spread.
        weights: of the run.
        parts: further parts by name: "scheduler" and "scaler", which are alike on all processes, and "losses", of which
            each process has its own. May be filled after construction.
        keep: checkpoints that stay; None for all.
        background: write from a copy in host memory while the training goes on, one checkpoint at a time.

    Raises:
        ValueError: `background`, and the weights or the optimizer are spread over the processes, which write their
            parts together.
    """

    def __init__(
        self,
        directory: RunDirectory,
        accelerator: Accelerator,
        parallel: Parallel,
        weights: Weights,
        parts: Mapping[str, Stateful],
        *,
        keep: int | None,
        background: bool,
    ) -> None:
        if background and parallel.name != "replicated":
            raise ValueError(
                f"async_save=True runs on one process or data parallel, not under {parallel.name}; set it to False"
            )
        self.directory = directory
        self.accelerator = accelerator
        self.parallel = parallel
        self.weights = weights
        self.parts = parts
        self.keep = keep
        self.background = background
        self._writer = BackgroundWriter()
        self._saved: RunState | None = None

    def save(self, state: RunState, card: CardFacts) -> None:
        """Write `checkpoint-<step>/`, everything that an exact resume needs, in one atomic move; or begin to.

        Raises:
            Exception: what writing the one before failed with.
        """
        self._writer.wait()
        step = state.global_step
        contents = self._gather(state, card)
        if not self.background:
            with self._shared_directory(step) as folder:
                files.write_contents(folder, contents)
            if self.accelerator.is_main_process:
                self.directory.rotate(self.keep)
            self.accelerator.wait_for_everyone()
        elif self.accelerator.is_main_process:
            kept = host_copy(contents)
            self._writer.start(lambda: self._write(step, kept))
        self._saved = state.snapshot() if self.background else None

    def wait(self) -> RunState | None:
        """Return when every checkpoint is complete: the state in one from the background that no call returned before.

        Raises:
            Exception: what writing one failed with.
        """
        if self._saved is None:
            return None
        self._writer.wait()
        self.accelerator.wait_for_everyone()
        saved, self._saved = self._saved, None
        return saved

    def close(self) -> None:
        """Let what is being written come to its end, whatever has happened; failures are only reported."""
        self._saved = None
        try:
            self._writer.wait()
        except Exception:
            logger.exception("the latest checkpoint could not be written")

    def load(self, folder: Path, state: RunState) -> None:
        """Take up the run as `save` left it.

        Args:
            folder: a checkpoint.
            state: planned (`RunState.begin`); is changed in place.

        Raises:
            ValueError: the checkpoint belongs to another run, see `RunState.check_same_run`, or its model to other
                classes or colours.
        """
        files.check_contents(folder)
        opened, self.directory.opened = self.directory.opened, None
        source = opened if opened is not None and opened.folder == folder else CheckpointFiles(folder)
        callbacks = files.read_content(source, files.CALLBACKS)
        progress, callbacks = with_present_names(folder, files.read_content(source, files.PROGRESS), callbacks)
        state.check_same_run(folder, progress)
        self.weights.check_model(source)
        average = self.weights.average
        if average is not None and not (folder / files.AVERAGE).exists():
            raise ValueError(f"use_ema=True, but {folder} holds no {files.AVERAGE}; resume with use_ema=False")
        self.weights.load(source)
        with _naming(folder / files.OPTIMIZER):
            self.parallel.load_optimizer(open_optimizer(source), folder)
        if average is not None:
            self.weights.load_average(files.read_content(source, files.AVERAGE), progress["ema_updates"])
        for name, file in FILE_OF_PART.items():
            if name in self.parts:
                with _naming(folder / file):
                    content, part = files.read_content(source, file), self.parts[name]
                    require_same(content.get(INITIAL), getattr(part, INITIAL, {}), f"{folder / file}: the schedule")
                    part.load_state_dict(with_classes_of(part.state_dict(), content))
        with _naming(folder / files.PROGRESS):
            state.load_state_dict(progress, callbacks)
        processes = files.read_content(source, files.PROCESSES)
        with _naming(folder / files.PROCESSES):
            if len(processes) == self.accelerator.num_processes:
                mine = processes[self.accelerator.process_index]
                set_rng_state(mine["generators"])
                self.parts[PER_PROCESS].load_state_dict(mine[PER_PROCESS])
            else:
                # Another number of processes starts with the mean loss and with random numbers of its own.
                self.parts[PER_PROCESS].load_state_dict(mean_state([each[PER_PROCESS] for each in processes]))
        logger.info("resumed from %s at step %d", folder, state.global_step)

    def _gather(self, state: RunState, card: CardFacts) -> dict[str, Any]:
        """What this process writes, by file: the main one nearly all, the others their parts of a sharded optimizer."""
        is_main = self.accelerator.is_main_process
        mine = {"generators": rng_state(), PER_PROCESS: self.parts[PER_PROCESS].state_dict()}
        processes = gather_object([mine])
        model, adapters, average = self.weights.gather(is_main)
        part = self.parallel.optimizer_part()
        if not is_main:
            return {} if part is None else {files.OPTIMIZER: part}
        updates = self.weights.average.num_updates if self.weights.average is not None else 0
        contents: dict[str, Any] = {files.MODEL: model, files.CARD: card, files.OPTIMIZER: part}
        contents |= {files.CALLBACKS: state.callback_state()}
        contents |= {files.PROCESSES: processes, files.PROGRESS: state.state_dict() | {"ema_updates": updates}}
        contents |= {files.ADAPTERS: adapters} if adapters else {}
        contents |= {files.AVERAGE: average} if average else {}
        return contents | {FILE_OF_PART[n]: self.parts[n].state_dict() for n in FILE_OF_PART if n in self.parts}

    def _write(self, step: int, contents: Mapping[str, Any]) -> None:
        with self.directory.replacing(self.directory.checkpoint(step), step) as folder:
            files.write_contents(folder, contents)
        self.directory.rotate(self.keep)

    @contextmanager
    def _shared_directory(self, step: int) -> Iterator[Path]:
        """A checkpoint's folder for all processes at once, on a file system that all see: the main one commits it."""
        wait, path = self.accelerator.wait_for_everyone, self.directory.checkpoint(step)
        if self.accelerator.is_main_process:
            with self.directory.replacing(path, step) as folder:
                wait()
                yield folder
                wait()
        else:
            wait()
            yield temporary_path(path)
            wait()
        wait()
