"""Checkpoint directories that are complete or not there, and the state of the random generators.

A directory is written under `.tmp-<name>` beside its place. When all its files are on the disk, a manifest with their
sizes, times and SHA-256 sums follows, and one rename puts it in place. What a kill leaves behind, and what
`clean_leftovers` makes of it:

| killed | left behind | afterwards |
|---|---|---|
| before the manifest is complete | the previous one, a broken `.tmp-<name>` | the previous one |
| before the rename, `<name>` existed | the previous one, a complete `.tmp-<name>` | the previous one |
| before the rename, `<name>` is new | a complete `.tmp-<name>` | the new one |
| between the two renames of a replacement | the previous one as `.del-<name>`, a complete `.tmp-<name>` | the new one |
| while deleting | a part of `.del-<name>` | nothing of it |

What a manifest does not list, or what has changed since, is a user's: it is moved to `set-aside/<time>-<why>/` before
the rest is deleted.
"""

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError

from .timeline import TimeLine

Value = TypeVar("Value")
logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TEMPORARY, DELETED = ".tmp-", ".del-"
SET_ASIDE = "set-aside"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"(\.tmp-|\.del-)(checkpoint-\d+|best|last|(?:\.del-)?push(?:-\d+)*)")
# What systems and network file systems put into folders by themselves.
_NOBODYS = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")
_CHUNK = 1 << 20
_FULL = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """`output_dir/checkpoint-<step>`."""
    return Path(output_dir) / f"checkpoint-{step}"


def list_checkpoints(output_dir: str | Path, line: TimeLine | None = None) -> list[Path]:
    """The directories named `checkpoint-<step>`, oldest step first, valid or broken.

    Args:
        output_dir: the run directory.
        line: leave out those that are on another time line than this one.
    """
    root = Path(output_dir)
    matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in root.iterdir()] if root.is_dir() else []
    found = sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())
    if line is None:
        return [path for _, path in found]
    marks = [(step, path, time_line_of(path)) for step, path in found]
    return [path for step, path, mark in marks if mark is None or line.leads_from(mark, step)]


def step_of(checkpoint: Path) -> int:
    """The optimizer steps behind a checkpoint: by its manifest, or else by its name.

    Raises:
        CheckpointError: neither says it.
    """
    step = about(checkpoint).get("step")
    if isinstance(step, int):
        return step
    digits = checkpoint.name.removeprefix("checkpoint-")
    if not digits.isdecimal():
        raise CheckpointError(f"{checkpoint} does not tell its step; name it checkpoint-<step>.")
    return int(digits)


def time_line_of(directory: str | Path) -> TimeLine | None:
    """The time line up to a checkpoint or model folder; None where its manifest does not tell."""
    return TimeLine.from_json(about(directory).get("time_line"))


def temporary_path(final_path: str | Path) -> Path:
    """Where `atomic_directory` collects the files; other ranks write there while the main process is in the context."""
    final = Path(final_path)
    return final.with_name(TEMPORARY + final.name)


@contextmanager
def atomic_directory(
    final_path: str | Path, about: Mapping[str, Any] | None = None, before_commit: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Fill a directory that appears under its name only when it is complete and on the disk.

    An earlier directory of this name stays in place until the new one is complete; then a user's files in it are set
    aside. If the block or the commit fails, the temporary directory is removed and the earlier one is as it was. One
    process enters the context.

    Args:
        final_path: the directory to make, or to replace if an earlier call made it.
        about: further entries of the manifest; see `about`.
        before_commit: called when all is on the disk, before the directory gets its name; its errors prevent that.

    Yields:
        The temporary directory to write into.

    Raises:
        FileExistsError: something stands there that has no manifest, so it is not ours to replace.
        OSError: writing failed. If the disk is full, the message says so and what to do.
    """
    final = Path(final_path)
    check_replaceable(final)
    temporary = temporary_path(final)
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _write_manifest(temporary, about or {})
        before_commit()
        _put_in_place(temporary, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_for_lack_of_space(error, temporary):
            raise
        raise OSError(
            errno.ENOSPC,
            f"No space left to write {final}; earlier checkpoints are untouched. Free space or lower save_total_limit",
            str(temporary),
        ) from error
    finally:
        # After a commit the name is gone; whatever still has it is incomplete.
        if temporary.exists():
            _remove(temporary)
    _discard(final.with_name(DELETED + final.name), f"replaced-{final.name}")


def check_replaceable(path: Path) -> None:
    """Make sure that `atomic_directory` may write there.

    Raises:
        FileExistsError: something stands there that has no manifest, so it is not ours to replace.
    """
    is_empty = path.is_dir() and not any(path.iterdir())
    if os.path.lexists(path) and not (path / MANIFEST).is_file() and not is_empty:
        raise FileExistsError(f"{path} exists and is no checkpoint of this trainer (no {MANIFEST}); move it away.")


def set_aside(root: str | Path, paths: Iterable[str | Path], why: str) -> Path | None:
    """Move files and folders to `set-aside/<time>-<why>/`, under their paths below the root. Nothing is deleted.

    Args:
        root: the run directory.
        paths: below it.
        why: a few words for the name.

    Returns:
        The folder; None without paths.

    Raises:
        OSError: something cannot be moved.
    """
    root, folder = Path(root), None
    for path in map(Path, paths):
        folder = folder or aside_folder(root, why)
        # The name that a folder had before it was to be deleted.
        parts = [part.removeprefix(DELETED) for part in path.relative_to(root).parts]
        target, number = folder.joinpath(*parts), 1
        while os.path.lexists(target):
            number += 1
            target = folder.joinpath(*parts[:-1], f"{parts[-1]}-{number}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
        logger.warning("%s is set aside: it is %s now", path, target)
    return folder


def aside_folder(root: Path, why: str) -> Path:
    """Where `set_aside` moves things now."""
    return root / SET_ASIDE / f"{time.strftime('%Y%m%d-%H%M%S')}-{why}"


def about(directory: str | Path) -> dict[str, Any]:
    """What the manifest of a directory holds beside its files; nothing where it cannot be read."""
    try:
        entries = read_json(Path(directory) / MANIFEST, dict)
    except CheckpointError:
        return {}
    return {name: value for name, value in entries.items() if name != "files"}


def verify(directory: str | Path) -> None:
    """Check every file of the manifest by size and SHA-256 sum. Files that the manifest doesn't list are ignored.

    Raises:
        CheckpointError: it does not hold; the message names the file and the reason.
    """
    root = Path(directory)
    for name, entry in verify_sizes(root).items():
        try:
            changed = checksum(root / name) != entry["sha256"]
        except OSError as error:
            raise CheckpointError(f"{root / name} cannot be read: {error}") from error
        if changed:
            raise CheckpointError(f"{root / name} has changed since it was saved (SHA-256 differs).")


def verify_sizes(directory: str | Path) -> dict[str, Any]:
    """Check every file of the manifest by size, which reads none of them, and return the manifest's entries.

    Raises:
        CheckpointError: it does not hold; the message names the file and the reason.
    """
    root = Path(directory)
    files = _read_manifest(root)
    for name, entry in files.items():
        path = root / name
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if size is None:
            raise CheckpointError(f"{path} is missing.")
        if size != entry["size"]:
            raise CheckpointError(f"{path} has {size} bytes instead of {entry['size']}.")
    return files


def check_listed(directory: Path, names: Iterable[str]) -> None:
    """Make sure that the files, and all in the folders, of these names are in the manifest.

    Raises:
        CheckpointError: one is there and not listed.
    """
    listed = _read_manifest(directory)
    for name in names:
        path = directory / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            found = file.relative_to(directory).as_posix()
            if os.path.lexists(file) and not file.is_dir() and found not in listed:
                raise CheckpointError(
                    f"{file} is not in {MANIFEST}: it was not saved with the checkpoint; move it away, or resume from "
                    "another checkpoint"
                )


def latest_valid_checkpoint(
    output_dir: str | Path,
    line: TimeLine | None = None,
    check: Callable[[Path], None] = verify,
    skipped: list[str] | None = None,
) -> Path | None:
    """The newest `checkpoint-<step>`, of a time line if given, that passes `check`; each newer one that raises a
    `CheckpointError` in it is named in a warning, and in `skipped`.

    Run `clean_leftovers` first where a run may have been killed.
    """
    for path in reversed(list_checkpoints(output_dir, line)):
        try:
            check(path)
        except CheckpointError as error:
            logger.warning("Skipping the checkpoint %s: %s", path, error)
            if skipped is not None:
                skipped.append(str(error))
        else:
            return path
    return None


def rotate(output_dir: str | Path, limit: int | None, line: TimeLine | None = None) -> list[Path]:
    """Delete the oldest checkpoints until `limit` are left.

    Never deleted: the newest, and the newest that verifies. They count, so more than `limit` may remain. What has no
    manifest, or is on another time line, is left alone and does not count.

    Args:
        output_dir: the run directory.
        limit: how many to keep, at least 1; None keeps all.
        line: of the run.

    Returns:
        The deleted directories.
    """
    if limit is None:
        return []
    if limit < 1:
        raise ValueError(f"The limit of checkpoints must be at least 1, not {limit}.")
    checkpoints = [path for path in list_checkpoints(output_dir, line) if (path / MANIFEST).is_file()]
    excess = len(checkpoints) - limit
    if excess <= 0:
        return []
    kept = (checkpoints[-1], latest_valid_checkpoint(output_dir, line))
    victims = [path for path in checkpoints if path not in kept][:excess]
    for path in victims:
        # A name of its own first: a deletion that is cut short never looks like a checkpoint.
        doomed = path.with_name(DELETED + path.name)
        _discard(doomed, f"deleted-{path.name}")
        os.rename(path, doomed)
        _discard(doomed, f"deleted-{path.name}")
    return victims


def clean_leftovers(output_dir: str | Path) -> None:
    """Finish or undo what a killed run left half done in a directory; one process, before anything is read there.

    A complete `.tmp-<name>` without a `<name>` was one rename away from it and gets it. The other `.tmp-` and `.del-`
    directories of checkpoints, `best`, `last` and uploads are removed. Directories of other names are not ours.
    """
    root = Path(output_dir)
    if not root.is_dir():
        return
    leftovers = sorted(path for path in root.iterdir() if _is_leftover(path))
    for path in leftovers:
        if path.name.startswith(TEMPORARY):
            final = path.with_name(path.name.removeprefix(TEMPORARY))
            if final.exists() or final.name.startswith(DELETED) or not _verifies(path):
                logger.info("Removing %s, the rest of an interrupted save.", path)
                _remove(path)
            else:
                logger.info("Completing the interrupted save of %s.", final)
                _sync(path / MANIFEST)
                _put_in_place(path, final)
    for path in leftovers:
        if path.name.startswith(f"{DELETED}push"):
            _remove(path)  # links to, or copies of, what was to be uploaded: they have no manifest
        elif path.name.startswith(DELETED):
            _discard(path, f"deleted-{path.name.removeprefix(DELETED)}")


def _is_leftover(path: Path) -> bool:
    return _LEFTOVER.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's, PyTorch's and the current CUDA device's generator: numbers, lists and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numbers = np.asarray(keys, np.int64)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(numbers), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue the generators from what `rng_state` gave; warn if only one of then and now has CUDA."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() != ("cuda" in state):
        logger.warning(
            "The random state was saved %s CUDA: this run will differ.", "with" if "cuda" in state else "without"
        )
    elif "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _write_manifest(root: Path, about: Mapping[str, Any]) -> None:
    files, folders = {}, [root]
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            _sync(path)
            status = path.stat()
            about_file = {"size": status.st_size, "sha256": checksum(path), "mtime_ns": status.st_mtime_ns}
            files[path.relative_to(root).as_posix()] = about_file
    manifest = root / MANIFEST
    manifest.write_text(json.dumps({**about, "files": files}, indent=1), encoding="utf-8")
    _sync(manifest)
    for folder in reversed(folders):
        _sync(folder)


def read_json(path: Path, kind: type[Value]) -> Value:
    """The value of a JSON file.

    Raises:
        CheckpointError: the file is missing or damaged, or holds a value of another type.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} cannot be read: it holds a {type(value).__name__}, not a {kind.__name__}")
    return value


def _read_manifest(root: Path) -> dict[str, dict[str, Any]]:
    """The files that a manifest lists.

    Raises:
        CheckpointError: it is missing or damaged, or lists what is no path below its folder.
    """
    entries = read_json(root / MANIFEST, dict)
    try:
        for name in map(Path, entries["files"]):
            if name.anchor or name.drive or not name.parts or ".." in name.parts or b"\0" in os.fsencode(name):
                raise ValueError(f"{str(name)!r} is no path of a file below the folder")
        return {
            str(name): {
                "size": int(entry["size"]),
                "sha256": str(entry["sha256"]),
                "mtime_ns": int(entry.get("mtime_ns", -1)),
            }  # fmt: skip
            for name, entry in entries["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{root / MANIFEST} cannot be read: {error!r}") from error


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename a complete directory to its name, an earlier one of that name to `.del-<name>` (which is left there)."""
    if not final.exists():
        os.rename(temporary, final)
    else:
        earlier = final.with_name(DELETED + final.name)
        _discard(earlier, f"replaced-{final.name}")
        logger.debug("Replacing %s.", final)
        os.rename(final, earlier)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(earlier, final)
            raise
    _sync(final.parent)


def _verifies(directory: Path) -> bool:
    try:
        verify(directory)
    except CheckpointError:
        return False
    return True


def _is_for_lack_of_space(error: Exception, directory: Path) -> bool:
    # torch.save and safetensors report a full disk without its error number, torch.save not even in words.
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return directory.exists() and shutil.disk_usage(directory).free < _FULL


def _remove(directory: Path) -> None:
    """Delete a directory that nothing reads any more; what cannot be deleted is only reported, it does no harm."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        logger.warning("Could not remove all of %s; delete it by hand.", directory)


def _discard(directory: Path, why: str) -> None:
    """Delete a directory that nothing reads any more, and set aside what in it is a user's."""
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        set_aside(directory.parent, [directory], why)
        return
    try:
        listed = _read_manifest(directory)
    except CheckpointError:
        listed = {}
    present = [Path(at, name) for at, folders, files in os.walk(directory) for name in (*folders, *files)]
    present = [path for path in present if path.is_symlink() or not path.is_dir()]
    # What has been found there, and not what is listed: a name may lead elsewhere through a link.
    names = {path: path.relative_to(directory).as_posix() for path in present}
    own = {path for path, name in names.items() if name in listed and _unchanged(path, listed[name])}
    strange = [p for p in present if p not in own and p != directory / MANIFEST and not _NOBODYS.fullmatch(p.name)]
    set_aside(directory.parent, strange, why)
    for path in own:
        path.unlink(missing_ok=True)
    # The manifest last: a deletion that is cut short still knows what was whose.
    _remove(directory)


def _unchanged(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is the one in the manifest, by its time or else by its checksum; a link is none."""
    try:
        status = path.lstat()
        if status.st_size != entry["size"] or path.is_symlink():
            return False
        return status.st_mtime_ns == entry["mtime_ns"] or checksum(path) == entry["sha256"]
    except OSError:
        return True


def checksum(path: Path) -> str:
    """The SHA-256 sum of a file's present content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a directory, to the disk."""
    if path.is_dir() and os.name != "posix":
        # Only POSIX systems open directories.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
