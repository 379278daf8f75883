"""What `resume_from_checkpoint` (`--resume`) accepts, and the checkpoint that it means."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .contents import PROCESSES, is_content
from .directory import (
    MANIFEST,
    CheckpointError,
    latest_valid_checkpoint,
    list_checkpoints,
    time_line_of,
    verify_sizes,
)
from .reading import CheckpointFiles
from .soundness import check_values
from .timeline import TimeLine


def is_new(resume: bool | str | None) -> bool:
    """Whether `resume_from_checkpoint` asks for a run from the start, whatever there is."""
    return resume is None or str(resume).lower() == "false"


def require_folder(resume: bool | str | None) -> None:
    """Look whether a local folder to resume from can be a checkpoint; it reads nothing large.

    Args:
        resume: as of `find_checkpoint`; what is no existing folder is looked for later, on the Hub too.

    Raises:
        CheckpointError: the folder is no checkpoint, or files of it are missing or cut off.
    """
    checkpoint = Path(str(resume))
    if is_new(resume) or str(resume).lower() in ("true", "auto") or not checkpoint.exists():
        return
    has_manifest = (checkpoint / MANIFEST).is_file()  # the models on the Hub have none
    of_models = ("preprocessor_config.json",) if has_manifest else ("config.json", "model.safetensors")
    is_model = (
        all((checkpoint / name).exists() for name in of_models) and not (checkpoint / "trainer_state.json").exists()
    )
    if has_manifest:
        verify_sizes(checkpoint)
    elif not is_model:
        raise CheckpointError(
            f"resume_from_checkpoint={resume} is no checkpoint: {checkpoint / MANIFEST} is missing; give a folder "
            "checkpoint-<step> of a run, or True for the newest one of output_dir"
        )
    if is_model:
        raise CheckpointError(
            f"resume_from_checkpoint={resume} is a model, not a checkpoint to resume from; start a new run "
            f"from its weights with model_name_or_path={resume}"
        )


def open_checkpoint(folder: Path) -> CheckpointFiles:
    """Read a checkpoint in one go: checksums, numbers that are finite, values that a run can have.

    Raises:
        CheckpointError: it cannot be resumed from; the message names file, reason and remedy.
    """
    files = CheckpointFiles.verified(folder, is_content, may_hold_nan=PROCESSES)
    check_values(files)
    return files


def find_checkpoint(
    resume: bool | str | None,
    root: Path,
    line: TimeLine | None,
    earlier: Sequence[Path],
    read: Callable[[Path], CheckpointFiles] = open_checkpoint,
) -> CheckpointFiles | None:
    """The checkpoint to go on from; None for a start from the beginning.

    Args:
        resume: None or False for none; True for the newest valid checkpoint of `root`; "auto" likewise, if one was ever
            written; else a folder.
        root: the run directory.
        line: its time line.
        earlier: what an earlier run has written there.
        read: reads a checkpoint, or raises a `CheckpointError`.

    Raises:
        FileNotFoundError: there is no checkpoint, or under "auto" none that is valid.
        FileExistsError: `root` holds another run than that of the folder.
        CheckpointError: the folder is no valid checkpoint.
    """
    if is_new(resume):
        return None
    if str(resume).lower() in ("true", "auto"):
        opened: list[CheckpointFiles] = []
        check = lambda path: opened.append(read(path))  # noqa: E731
        newest = latest_valid_checkpoint(root, line, check, skipped := list[str]())
        if newest is None and (str(resume).lower() == "true" or list_checkpoints(root, line)):
            why = f" ({'; '.join(skipped)})" if skipped else ""
            raise FileNotFoundError(f"resume_from_checkpoint: no valid checkpoint in {root}{why}; start without it")
        return opened[0] if opened else None
    checkpoint = Path(str(resume))
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"resume_from_checkpoint={resume}: there is no such folder; give a folder checkpoint-<step> of a run, or "
            "True for the newest one of output_dir"
        )
    require_folder(resume)
    files = read(checkpoint)
    mark = time_line_of(checkpoint)
    is_here = root.resolve() in checkpoint.resolve().parents
    same_run = line is not None and mark is not None and line.same_run(mark)
    if (not is_here or (line is not None and mark is not None)) and not same_run and earlier:
        raise FileExistsError(
            f"resume_from_checkpoint={resume} is of another run than the one in output_dir {root} "
            f"({earlier[0].name}); choose another output_dir for what follows, or go on with the run "
            "there by --resume (in Python resume_from_checkpoint=True)"
        )
    return files
