"""Checkpoint directories that are complete or not there, and the state of the random generators.

A directory is written under `.tmp-<name>` beside its place. When all its files are on the disk, a manifest with their
sizes and SHA-256 sums follows, and one rename puts it in place. What a kill leaves behind, and what `clean_leftovers`
makes of it:

| killed | left behind | afterwards |
|---|---|---|
| before the manifest is complete | the previous one, a broken `.tmp-<name>` | the previous one |
| before the rename, `<name>` existed | the previous one, a valid `.tmp-<name>` | the previous one |
| before the rename, `<name>` is new | a valid `.tmp-<name>` | the new one |
| between the two renames of a replacement | the previous one as `.del-<name>`, a valid `.tmp-<name>` | the new one |
| while deleting | a part of `.del-<name>` | nothing of it |
"""

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TEMPORARY, DELETED = ".tmp-", ".del-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"(\.tmp-|\.del-)(checkpoint-\d+|best|last|(?:\.del-)?push(?:-\d+)*)")
_CHUNK = 1 << 20
_FULL = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """`output_dir/checkpoint-<step>`."""
    return Path(output_dir) / f"checkpoint-{step}"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The directories named `checkpoint-<step>`, oldest step first, valid or broken."""
    root = Path(output_dir)
    matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in root.iterdir()] if root.is_dir() else []
    found = [(int(match[1]), path) for match, path in matches if match and path.is_dir()]
    return [path for _, path in sorted(found)]


def temporary_path(final_path: str | Path) -> Path:
    """Where `atomic_directory` collects the files; other ranks write there while the main process is in the context."""
    final = Path(final_path)
    return final.with_name(TEMPORARY + final.name)


@contextmanager
def atomic_directory(final_path: str | Path) -> Iterator[Path]:
    """Fill a directory that appears under its name only when it is complete and on the disk.

    An earlier directory of this name stays in place until the new one is complete. If the block or the commit fails,
    the temporary directory is removed and the earlier one is as it was. One process enters the context.

    Args:
        final_path: the directory to make, or to replace if an earlier call made it.

    Yields:
        The temporary directory to write into.

    Raises:
        FileExistsError: something stands there that has no manifest, so it is not ours to replace.
        OSError: writing failed. If the disk is full, the message says so and what to do.
    """
    final = Path(final_path)
    if final.exists() and not (final / MANIFEST).is_file() and not (final.is_dir() and not any(final.iterdir())):
        raise FileExistsError(f"{final} exists and is no checkpoint of this trainer (no {MANIFEST}); move it away.")
    temporary = temporary_path(final)
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _write_manifest(temporary)
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
    _remove(final.with_name(DELETED + final.name))


def verify(directory: str | Path) -> None:
    """Check every file of the manifest by size and SHA-256 sum. Files that the manifest doesn't list are ignored.

    Raises:
        CheckpointError: it does not hold; the message names the file and the reason.
    """
    root = Path(directory)
    files = _read_manifest(root)
    for name, entry in files.items():
        path = root / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        if path.stat().st_size != entry["size"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes instead of {entry['size']}.")
    for name, entry in files.items():
        try:
            changed = _sha256(root / name) != entry["sha256"]
        except OSError as error:
            raise CheckpointError(f"{root / name} cannot be read: {error}") from error
        if changed:
            raise CheckpointError(f"{root / name} has changed since it was saved (SHA-256 differs).")


def latest_valid_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest `checkpoint-<step>` that verifies; each newer one that doesn't is named in a warning.

    Run `clean_leftovers` first where a run may have been killed.
    """
    for path in reversed(list_checkpoints(output_dir)):
        try:
            verify(path)
        except CheckpointError as error:
            logger.warning("Skipping the checkpoint %s: %s", path, error)
        else:
            return path
    return None


def rotate(output_dir: str | Path, limit: int | None) -> list[Path]:
    """Delete the oldest checkpoints until `limit` are left.

    Never deleted: the newest, and the newest that verifies. They count, so more than `limit` may remain.

    Args:
        output_dir: the run directory.
        limit: how many to keep, at least 1; None keeps all.

    Returns:
        The deleted directories.
    """
    if limit is None:
        return []
    if limit < 1:
        raise ValueError(f"The limit of checkpoints must be at least 1, not {limit}.")
    checkpoints = list_checkpoints(output_dir)
    excess = len(checkpoints) - limit
    if excess <= 0:
        return []
    kept = (checkpoints[-1], latest_valid_checkpoint(output_dir))
    victims = [path for path in checkpoints if path not in kept][:excess]
    for path in victims:
        # A name of its own first: a deletion that is cut short never looks like a checkpoint.
        doomed = path.with_name(DELETED + path.name)
        _remove(doomed)
        os.rename(path, doomed)
        _remove(doomed)
    return victims


def clean_leftovers(output_dir: str | Path) -> None:
    """Finish or undo what a killed run left half done in a directory; one process, before anything is read there.

    A complete `.tmp-<name>` without a `<name>` was one rename away from it and gets it. The other `.tmp-` and `.del-`
    directories of checkpoints, `best`, `last` and uploads are removed. Directories of other names are not ours.
    """
    root = Path(output_dir)
    if not root.is_dir():
        return
    named = (path for path in root.iterdir() if _LEFTOVER.fullmatch(path.name))
    leftovers = sorted(path for path in named if path.is_dir() and not path.is_symlink())
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
        if path.name.startswith(DELETED):
            _remove(path)


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


def _write_manifest(root: Path) -> None:
    files, folders = {}, [root]
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            files[path.relative_to(root).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
            _sync(path)
    manifest = root / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    _sync(manifest)
    for folder in reversed(folders):
        _sync(folder)


def _read_manifest(root: Path) -> dict[str, dict[str, Any]]:
    path = root / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {
            str(name): {"size": int(entry["size"]), "sha256": str(entry["sha256"])} for name, entry in files.items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename a complete directory to its name, an earlier one of that name to `.del-<name>` (which is left there)."""
    if not final.exists():
        os.rename(temporary, final)
    else:
        earlier = final.with_name(DELETED + final.name)
        _remove(earlier)
        logger.debug("Replacing %s.", final)
        os.rename(final, earlier)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(earlier, final)
            raise
    _sync(final.parent)


def checksum(directory: str | Path, name: str) -> str:
    """The SHA-256 sum that a directory's manifest has of a file.

    Raises:
        CheckpointError: there is no manifest, or the file is not in it.
    """
    files = _read_manifest(Path(directory))
    if name not in files:
        raise CheckpointError(f"{Path(directory) / MANIFEST} does not list {name}.")
    return files[name]["sha256"]


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


def _sha256(path: Path) -> str:
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
