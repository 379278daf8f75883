"""Where a run keeps its files: one writer, one run, one time line."""

import csv
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..agreement import on_main
from ..console import log_to_console, log_to_file, stop_logging
from ..state import OF_THE_BATCH, OF_THE_PLACE
from ..status import FAILED, FINISHED, RUNNING, RunStatus
from ..status import FILE as STATUS
from .directory import (
    MANIFEST,
    SET_ASIDE,
    TEMPORARY,
    about,
    aside_folder,
    atomic_directory,
    check_replaceable,
    checkpoint_path,
    clean_leftovers,
    latest_valid_checkpoint,
    list_checkpoints,
    rotate,
    set_aside,
    step_of,
    time_line_of,
)
from .lock import LockLost, RunInUse, RunLock, read_lock
from .reading import CheckpointFiles
from .resume import find_checkpoint, is_new, open_checkpoint
from .timeline import TimeLine

logger = logging.getLogger(__name__)

OF_THE_BEST = (
    "val_pred.jpg", "val_labels.jpg", "confusion_matrix.png", "pr_curves.png", "threshold_curves.png",
    "error_costs.png", "report.html",
)  # fmt: skip
"""What shows how good `best/` is."""
PICTURES = ("labels.jpg", "train_batch.jpg", "results.png", *OF_THE_BEST)


class RunDirectory:
    """The files of one run: checkpoints, `best/`, `last/`, `metrics.csv`, `train.log`, the arguments, the status.

    `claim` comes first and `release` last; between them no other process writes there.

    Args:
        root: the folder.
        read: reads the checkpoint that the run goes on from, or raises a `CheckpointError`.

    Attributes:
        opened: the files of the checkpoint that the run goes on from, on the process that has verified them.
    """

    def __init__(self, root: str | Path, read: Callable[[Path], CheckpointFiles] = open_checkpoint) -> None:
        self.root = Path(root)
        self.best = self.root / "best"
        self.last = self.root / "last"
        self.metrics = self.root / "metrics.csv"
        self.log = self.root / "train.log"
        self.arguments = self.root / "args.yaml"
        self.lock = RunLock(self.root)
        self._check_lock = partial(self.lock.check, before_writing=True)
        self.status = RunStatus(self.root, self._check_lock)
        self.line: TimeLine | None = None
        self._recorded: TimeLine | None = None
        self._read = read
        self.opened: CheckpointFiles | None = None
        self._step, self._is_new, self._by_name = 0, True, False

    def checkpoint(self, step: int) -> Path:
        """`checkpoint-<step>`."""
        return checkpoint_path(self.root, step)

    def about(self, step: int | None) -> dict[str, Any]:
        """What the manifest of a checkpoint or of a model of a step says of the run."""
        return {"step": step, "time_line": self.line.to_json()} if self.line is not None else {}

    @contextmanager
    def replacing(self, path: Path, step: int | None) -> Iterator[Path]:
        """`atomic_directory` for a checkpoint or model of a step, as long as no other run has taken the directory over.

        Raises:
            LockLost: one has; nothing is put in place.
            RunInUse: outside a training: another process trains here.
            FileExistsError: outside a training: the path is in this directory and has what another run saved.
        """
        self._check_lock()
        if not self.lock.held and path.parent == self.root:
            found, mark = read_lock(self.root), time_line_of(path)
            if found is not None and found.over() is None:
                raise RunInUse(
                    f"{path} cannot be written: another run trains there ({found.owner}); give another folder"
                )
            if mark is not None and (self.line is None or not self.line.same_run(mark)):
                raise FileExistsError(f"{path} is of an earlier run; give another folder, or another output_dir")
        with atomic_directory(path, self.about(step), self._check_lock) as folder:
            yield folder

    def rotate(self, keep: int | None) -> None:
        """Delete the oldest checkpoints of the time line, except `keep`, the newest and the newest that verifies."""
        rotate(self.root, keep, self.line)

    def newest(self) -> Path | None:
        """The newest valid checkpoint of the time line."""
        return latest_valid_checkpoint(self.root, self.line or self._recorded_line())

    # ------------------------------------------------------------------------------------------------ the start

    @contextmanager
    def session(self, resume: bool | str | None, accelerator: Accelerator) -> Iterator[None]:
        """Within the block this run is the only one that writes here, and logs to `train.log`. All processes enter it.

        An error that ends the block is the status of the run that `begin` began.

        Args, Raises: see `claim`.
        """
        if accelerator.is_main_process:
            log_to_console()
        self.claim(resume, accelerator)
        log = None
        if accelerator.is_main_process:
            log = log_to_file(self.log)
            log.addFilter(lambda record: not self.lock.stale)  # the file may be another run's then
            if self.lock.taken_over is not None:
                logger.warning("%s", self.lock.taken_over)
        try:
            yield
        except LockLost:
            raise
        except BaseException as error:
            try:
                # Whatever failed may have failed because another run has taken the files away.
                self._check_lock()
                if self.status.fields.get("state") == RUNNING:
                    self.set_status(state=FAILED, message=f"{type(error).__name__}: {error}")
            except LockLost as lost:
                raise lost from error
            except OSError as further:
                logger.warning("the status cannot be written: %s", further)
            raise
        finally:
            self.release()
            if log is not None:
                stop_logging(log)

    def set_status(self, **fields: Any) -> None:
        """Write fields of `status.json`, on the process that holds the lock.

        Raises:
            LockLost: another run has taken the directory over.
        """
        if self.lock.held:
            self.status.write(**fields)

    def write_arguments(self, text: str) -> None:
        """Replace `args.yaml`.

        Raises:
            LockLost: another run has taken the directory over.
        """
        self._check_lock()
        self.arguments.write_text(text, encoding="utf-8")

    def claim(self, resume: bool | str | None, accelerator: Accelerator) -> None:
        """Make this run the only one that writes here. All processes must call it.

        Args:
            resume: `resume_from_checkpoint`; under "auto" a run that ends is waited for.
            accelerator: of the run.

        Raises:
            RunInUse: another run trains here.
            FileExistsError: a new run would write into the files of an earlier one.
            OSError: the directory cannot be written.
        """

        self.status.fields = {}

        def claim() -> None:
            try:
                try:
                    self.lock.acquire(wait=str(resume).lower() == "auto")
                except OSError as error:
                    why = f"output_dir {self.root} cannot be written ({error.strerror}); choose another, or change this"
                    raise OSError(error.errno, why, error.filename) from error
                self._check_files()
                self.require_new(resume)
            except BaseException:
                self.lock.release()
                raise

        on_main(claim, accelerator)

    def require_new(self, resume: bool | str | None) -> None:
        """Look whether a run may begin here, or go on; it needs neither model nor data.

        Args:
            resume: `resume_from_checkpoint`.

        Raises:
            FileExistsError: a new run would write into the files of an earlier one.
        """
        earlier = self._earlier() if is_new(resume) and self.root.is_dir() else []
        if earlier:
            raise FileExistsError(
                f"output_dir {self.root} holds an earlier run ({earlier[0].name}); choose another output_dir, "
                "or continue that run with --resume (in Python resume_from_checkpoint=True)"
            )

    def release(self) -> None:
        """Let other runs write here."""
        self.lock.release()

    def prepare(self, resume: bool | str | None, arguments: Mapping[str, Any], accelerator: Accelerator) -> Path | None:
        """Tidy up, and find the checkpoint to go on from. All processes must call it, after `claim`.

        Args:
            resume: True or "true" for the newest valid checkpoint of the time line, "auto" likewise if one was ever
                written and else a new start, or a folder.
            arguments: of this run; a new start replaces a run with the same ones only.
            accelerator: of the run.

        Raises:
            FileNotFoundError: there is no checkpoint, or under "auto" none that is valid.
            FileExistsError: another run is here, or a user's files stand in the way.
            CheckpointError: the given folder is no valid checkpoint.
            PermissionError: a file may not be written.
        """

        def prepare() -> Path | None:
            clean_leftovers(self.root)
            recorded = self._recorded_line()
            self.opened = find_checkpoint(resume, self.root, recorded, self._earlier(), self._read)
            checkpoint = self.opened and self.opened.folder
            self._is_new = checkpoint is None
            self._by_name = checkpoint is not None and str(resume).lower() not in ("true", "auto")
            if checkpoint is None and self._earlier():
                self._check_same_arguments(arguments)
            for folder in (self.best, self.last) if checkpoint is not None else ():
                check_replaceable(folder)
            self._step = 0 if checkpoint is None else step_of(checkpoint)
            self._recorded, self.line = recorded, self._new_line(checkpoint, recorded)
            return checkpoint

        return on_main(prepare, accelerator)

    def begin(self, accelerator: Accelerator, checkpoint: int = 0, model: int = 0, keep: int | None = 1) -> None:
        """The run fits its checkpoint: set aside what is not on the way to it. All processes must call it.

        Args:
            accelerator: of the run.
            checkpoint, model, keep: see `check_space`.
        """

        def begin() -> None:
            self.check_space(checkpoint, model, keep)
            found_here = [] if self.status.path.is_file() else [self.arguments.name, *PICTURES]
            # Before anything is moved: a kill between leaves no doubt which checkpoints count.
            self.status.begin(state=RUNNING, step=self._step, time_line=self.line and self.line.to_json())
            if self._is_new and self._earlier():
                names = ("best", "last", "metrics.csv", "eval", "test", *PICTURES)
                set_aside(self.root, [self.root / n for n in names if os.path.lexists(self.root / n)], "started-over")
            set_aside(self.root, [self.root / n for n in found_here if os.path.lexists(self.root / n)], "found-here")
            self._set_aside_others()

        on_main(begin, accelerator)

    def check_space(self, checkpoint: int, model: int, keep: int | None) -> None:
        """Make sure that the disk holds what is going to be written.

        Args:
            checkpoint: bytes of a checkpoint; 0 if none are written.
            model: bytes of `best/` or `last/`.
            keep: checkpoints that stay; None for all.

        Raises:
            OSError: there is not even space for one checkpoint and one model.
        """
        free, least = shutil.disk_usage(self.root).free, checkpoint + model
        if free < least:
            raise OSError(
                errno.ENOSPC, f"{least / 1e9:.2f} GB are needed for a checkpoint and the best model, and "
                f"{free / 1e9:.2f} GB are free; free space, or choose another output_dir", str(self.root)
            )  # fmt: skip
        present = sum(path.stat().st_size for path in self.root.glob("*/*.safetensors"))
        most = ((keep or 1) + 1) * checkpoint + 2 * model
        if free + present < most:
            logger.warning(
                "%s may become full: %.2f GB are free and up to %.2f GB will be written",
                self.root,
                free / 1e9,
                most / 1e9,
            )

    def _earlier(self) -> list[Path]:
        """What an earlier run has written here."""
        return [path for path in (self.best, self.last, self.metrics) if os.path.lexists(path)] + self._checkpoints()

    def _checkpoints(self) -> list[Path]:
        """Whatever has the name of a checkpoint, be it a file."""
        named = [path for path in self.root.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
        return sorted(named, key=step_of)

    def _recorded_line(self) -> TimeLine | None:
        """The time line that `status.json` names, or else that of the latest segment of the checkpoints."""
        line = TimeLine.from_json(self.status.read().get("time_line"))
        if line is not None:
            return line
        marks = [mark for path in list_checkpoints(self.root) if (mark := time_line_of(path)) is not None]
        if any(not mark.same_run(marks[0]) for mark in marks):
            raise FileExistsError(
                f"{self.root} holds checkpoints of several runs and no {STATUS} that says which is its own; move the "
                "others away"
            )
        return max(marks, key=lambda mark: len(mark.segments), default=None)

    def _check_same_arguments(self, arguments: Mapping[str, Any]) -> None:
        """A run that ended before its first checkpoint may start over; another may not take its place."""
        remedy = "choose another output_dir, or move it away"
        if self.status.read().get("state") == FINISHED:
            raise FileExistsError(f"output_dir {self.root} holds a finished run without checkpoints; {remedy}")
        try:
            before = yaml.safe_load(self.arguments.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            before = {}
        before = before if isinstance(before, dict) else {}
        automatic = arguments.get("per_device_train_batch_size") == "auto"
        found = [name for name in OF_THE_BATCH if automatic and arguments.get(name) in ("auto", None)]
        changed = [
            f"{name} {before[name]} -> {value}"
            for name, value in arguments.items()
            if name in before and name not in (*OF_THE_PLACE, *found) and before[name] != value
        ]
        if changed:
            raise FileExistsError(
                f"output_dir {self.root} holds a run with other arguments and no checkpoint yet "
                f"({', '.join(changed[:3])}); {remedy}"
            )

    def _new_line(self, checkpoint: Path | None, recorded: TimeLine | None) -> TimeLine:
        step = self._step
        if checkpoint is None:
            return TimeLine.begin()
        mark = time_line_of(checkpoint)
        if not self._by_name:
            return recorded or TimeLine.begin(step)
        if not self._earlier():  # the run of another directory is followed up here
            return TimeLine.begin(step)
        off = recorded is not None and mark is not None and not recorded.leads_from(mark, step)
        if off or any(step_of(path) > step for path in self._checkpoints()):
            return (mark or recorded or TimeLine.begin()).rewound(step)
        return recorded or mark or TimeLine.begin(step)

    def _set_aside_others(self) -> None:
        """Move away what is on another time line than the present one, or stands in the way of a later save."""
        line, others, rewinds = self.line or TimeLine.begin(), [], False
        for path in self._checkpoints():
            mark, step = time_line_of(path), step_of(path)
            off = mark is not None and not line.leads_from(mark, step)
            if off or (step > self._step and (self._by_name or not (path / MANIFEST).is_file())):
                others.append(path)
                rewinds = rewinds or off or self._by_name
        if not rewinds:
            set_aside(self.root, others, "no-checkpoint")
            return
        # What has no time line of its own is ours up to where the line that was written last and this one part.
        start, why = line.parts_from(self._recorded or line, self._step), f"rewind-to-{self._step}"
        left = []
        for path in (self.best, self.last):
            mark, step = time_line_of(path), about(path).get("step") or 0
            if step > start if mark is None else not line.leads_from(mark, step):
                left.append(path)
        if self.best in left:
            left += [self.root / name for name in OF_THE_BEST if (self.root / name).is_file()]
        scored = [path for name in ("eval", "test") for path in self.root.glob(f"{name}/*")
                  if path.name.isdecimal() and int(path.name) > start]  # fmt: skip
        set_aside(self.root, [*left, *scored], why)
        self._cut_metrics(start, why)
        set_aside(self.root, reversed(others), why)

    def _cut_metrics(self, step: int, why: str) -> None:
        """Move the rows of `metrics.csv` past a step to a file of their own."""
        if not self.metrics.is_file():
            return
        with self.metrics.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        column = header.index("step") if "step" in header else 0
        past = [len(row) > column and row[column].isdecimal() and int(row[column]) > step for row in rows]
        if not any(past):
            return
        folder, kept = aside_folder(self.root, why), self.metrics.with_suffix(".csv.tmp")
        folder.mkdir(parents=True, exist_ok=True)
        for path, which in ((folder / self.metrics.name, True), (kept, False)):
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(
                    [header, *(row for row, is_past in zip(rows, past, strict=True) if is_past == which)]
                )
        os.replace(kept, self.metrics)

    def _check_files(self) -> None:
        """Find out now what could not be written later.

        Raises:
            FileExistsError: a file of the run is a folder, or a folder a file.
            PermissionError: one may not be written.
        """
        before_rename = (self.metrics.with_suffix(".csv.tmp"), self.root / f".{STATUS}.tmp")
        for path in (self.metrics, self.log, self.arguments, self.status.path, *before_rename):
            if path.is_dir():
                raise FileExistsError(f"{path} is a folder, and the run writes a file of that name; move it away")
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, "the run writes it, and may not; change its permissions", str(path))
        scored = [path for path in self.root.glob("eval/*") if path.name.isdecimal()]
        scored += [path / "raw" for path in scored if path.is_dir()]
        saved = [path for path in self.root.iterdir() if path.name.startswith(TEMPORARY)]
        folders = (self.best, self.last, self.root / "eval", self.root / "test", self.root / SET_ASIDE)
        for path in (*folders, *scored, *saved):
            if path.exists() and not path.is_dir():
                raise FileExistsError(f"{path} is a file, and the run writes a folder of that name; move it away")
            if path.exists() and not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(
                    errno.EACCES, "the run writes into it, and may not; change its permissions", str(path)
                )
