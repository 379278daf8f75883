"""Decoded pictures, kept for later epochs and for other workers, in memory or on disk, within a limit.

Keys come from the content of the files (`Picture`): a file that changes is another picture. When the limit is reached,
what is there stays and the rest is decoded each time: an epoch sees each picture once, so that nothing is gained by
replacing one by another.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DetectionDataError

GB = 1 << 30
_CONTEXT = multiprocessing.get_context("spawn")  # its locks go to forked processes too
_SLOT = np.dtype([("key", "<u8", 2), ("offset", "<u8"), ("shape", "<u4", 2), ("flags", "<u4"), ("state", "<u4")])
_SMALL = 1 << 16  # bytes; there is a slot for each picture of this size
_FREE, _RESERVED, _READY = range(3)
_HEAD = struct.Struct("<8sIIIxxxxQ")  # of a file: magic, height, width, flags, sum of the words
_MAGIC = b"RFDETRP1"
_STALE_PART = 3600  # seconds
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Kept(NamedTuple):
    """A picture in a cache.

    Attributes:
        pixels: uint8 (H, W, 3), not to be written to.
        flags: a number below 2^32 that came with it.
    """

    pixels: np.ndarray
    flags: int


class _SharedMemory:
    """Bytes that processes share, forked or spawned. Nothing is left of them once all have ended, however they end."""

    def __init__(self, size: int, file: Any = None) -> None:
        self.size = size
        if file is None and hasattr(os, "memfd_create"):
            file = os.memfd_create("rfdetr_hf pictures")
        elif file is None:
            with tempfile.TemporaryFile() as opened:
                file = os.dup(opened.fileno())
        self._file: int = file if isinstance(file, int) else file.detach()
        os.truncate(self._file, size)
        self.bytes = np.frombuffer(mmap.mmap(self._file, size), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import DupFd  # Windows has none

        return _SharedMemory, (self.size, DupFd(self._file))

    def __del__(self) -> None:
        os.close(self._file)


class MemoryCache:
    """Pictures in memory that the workers of a process share; it takes as much as there are pictures in it.

    Args:
        limit: bytes of all pictures.

    Raises:
        OSError: the system has no memory that processes can share.
    """

    def __init__(self, limit: int) -> None:
        if os.name == "nt":
            raise OSError("cache_images='ram' needs Linux or macOS; choose cache_images='disk'")
        self.limit = limit
        slots = max(1 << 10, 1 << (2 * limit // _SMALL).bit_length())
        self._start = 8 + slots * _SLOT.itemsize
        self._memory = _SharedMemory(self._start + limit)
        self._lock = _CONTEXT.Lock()

    def get(self, key: bytes) -> Kept | None:
        """The picture of a key of 16 bytes, None where there is none."""
        words = np.frombuffer(key, "<u8")
        with self._lock:
            slot = self._slot(words)
            if slot is None or slot["state"] != _READY:
                return None
            offset, (height, width), flags = int(slot["offset"]), slot["shape"].tolist(), int(slot["flags"])
        return Kept(self._pixels(offset, height, width), flags)

    def put(self, key: bytes, picture: Kept) -> bool:
        """Keep a picture, unless there is no room for it; returns whether it is there."""
        words, size = np.frombuffer(key, "<u8"), picture.pixels.nbytes
        used = self._memory.bytes[:8].view("<u8")
        with self._lock:
            slot = self._slot(words)
            if slot is None or slot["state"] != _FREE or used[0] + size > self.limit:
                return slot is not None and slot["state"] != _FREE
            slot["key"], slot["offset"], slot["shape"] = words, used[0], picture.pixels.shape[:2]
            slot["flags"], slot["state"] = picture.flags, _RESERVED
            offset = int(used[0])
            used[0] += -(-size // 64) * 64
        self._pixels(offset, *picture.pixels.shape[:2])[:] = picture.pixels
        with self._lock:
            slot["state"] = _READY
        return True

    def __len__(self) -> int:
        return int((self._slots["state"] == _READY).sum())

    @property
    def _slots(self) -> np.ndarray:
        return self._memory.bytes[8 : self._start].view(_SLOT)

    def _slot(self, words: np.ndarray) -> Any:
        """The slot of a key, or the free one where it belongs; None where all are taken."""
        slots = self._slots
        for step in range(len(slots)):
            slot = slots[(int(words[0]) + step) % len(slots)]
            if slot["state"] == _FREE or (slot["key"] == words).all():
                return slot
        return None

    def _pixels(self, offset: int, height: int, width: int) -> np.ndarray:
        start = self._start + offset
        return self._memory.bytes[start : start + 3 * height * width].reshape(height, width, 3)


class DiskCache:
    """Pictures in a folder, one file each, for all processes of this machine and for later runs.

    A file appears when it is complete, and one that was damaged since is not served. Where there is no room, files make
    it that no process has used since this cache was made.

    Args:
        folder: is made if need be.
        limit: bytes of all files.
        processes: that share the limit.

    Raises:
        DetectionDataError: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int, processes: int = 1) -> None:
        self.folder, self.limit = Path(folder).expanduser().absolute(), limit
        self._began, self._old = time.time(), None
        present = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._fault(error) from error
        for path, size, used in self._files():
            if path.endswith(".part") and used < self._began - _STALE_PART:
                with suppress(OSError):
                    os.remove(path)
            else:
                present += size
        # What other processes add counts for them: all shares together keep to the limit.
        self._room = _CONTEXT.Value("q", (limit - present) // processes)

    def get(self, key: bytes) -> Kept | None:
        """The picture of a key of 16 bytes, None where there is none."""
        path = self._path(key)
        try:
            data = np.fromfile(path, np.uint8)
            os.utime(path)
        except OSError:
            return None
        if len(data) < _HEAD.size:
            return None
        magic, height, width, flags, total = _HEAD.unpack_from(data.data)
        pixels = data[_HEAD.size :]
        if magic != _MAGIC or len(pixels) != 3 * height * width or _sum(pixels) != total:
            return None
        return Kept(pixels.reshape(height, width, 3), flags)

    def put(self, key: bytes, picture: Kept) -> bool:
        """Keep a picture, unless there is no room for it; returns whether it is there.

        Raises:
            DetectionDataError: the disk is full or cannot be written to.
        """
        pixels = np.ascontiguousarray(picture.pixels).reshape(-1)
        size, path = _HEAD.size + pixels.nbytes, self._path(key)
        if not self._make_room(size):
            return False
        height, width = picture.pixels.shape[:2]
        part = f"{path}.{os.getpid()}.part"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(part, "wb") as file:
                file.write(_HEAD.pack(_MAGIC, height, width, picture.flags, _sum(pixels)))
                file.write(pixels.data)
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                os.remove(part)
            raise self._fault(error) from error
        return True

    def _make_room(self, size: int) -> bool:
        if self._take(size):
            return True
        if self._old is None:
            self._old = sorted(
                ((used, path, length) for path, length, used in self._files() if used < self._began), reverse=True
            )
        while self._old:
            _, path, length = self._old.pop()
            with suppress(OSError):
                if os.path.getmtime(path) < self._began:
                    os.remove(path)
                    with self._room.get_lock():
                        self._room.value += length
            if self._take(size):
                return True
        return False

    def _take(self, size: int) -> bool:
        """Take so many bytes of the room, if there are so many."""
        with self._room.get_lock():
            fits = self._room.value >= size
            self._room.value -= size * fits
        return fits

    def _files(self) -> list[tuple[str, int, float]]:
        """Path, size and time of the last use of each file."""
        found = []
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(folder):
                with suppress(OSError):
                    status = entry.stat()
                    found.append((entry.path, status.st_size, status.st_mtime))
        return found

    def _path(self, key: bytes) -> str:
        name = key.hex()
        return os.path.join(self.folder, name[:2], name)

    def _fault(self, error: OSError) -> DetectionDataError:
        what = "the disk is full" if error.errno in _FULL else f"cannot be written ({error.strerror or error})"
        return DetectionDataError(
            f"{self.folder}: {what}, and decoded pictures are to be kept there; make room, lower cache_images_gb, name "
            "another folder with cache_images_dir, or set cache_images=none"
        )


PictureCache = MemoryCache | DiskCache


def _sum(pixels: np.ndarray) -> int:
    """Sum of the 64-bit words of an array of bytes, and of the bytes that are left."""
    whole = len(pixels) // 8 * 8
    words = np.add.reduce(pixels[:whole].view("<u8"), dtype=np.uint64, initial=np.uint64(len(pixels)))
    return (int(words) + int(pixels[whole:].sum())) % 2**64


def free_memory() -> int | None:
    """Bytes that processes can still take on this machine or in this container; None where nobody says."""
    free = []
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(limit - used)
    return min(free, default=None)
