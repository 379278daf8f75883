"""Files of object stores on the disk of this machine: fetched once for all processes, within a limit."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import fsspec
from filelock import FileLock

from ...choices import install_hint
from ..errors import DetectionDataError

logger = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_DELAY = 0.5  # seconds; twice as long after each attempt
_THREADS = 4
# Faults that another attempt does not mend.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
_EXTRAS = {"s3": "s3", "s3a": "s3"}


def open_filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        DetectionDataError: the package that reads such addresses is missing, or nobody knows them.
    """
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        protocol = address.partition("://")[0]
        hint = install_hint(_EXTRAS[protocol]) if protocol in _EXTRAS else "install the package that it names"
        raise DetectionDataError(f"{address}: {error}; {hint}") from error


def with_retries(what: str, call: Any) -> Any:
    """The result of a call to a store, after some attempts with longer and longer breaks.

    Args:
        what: the address, for messages.
        call: without arguments.

    Raises:
        DetectionDataError: the file is not there, may not be read, or none of the attempts succeeded.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except _FINAL as error:
            raise DetectionDataError(f"{what}: {type(error).__name__}: {error}") from error
        except DetectionDataError:
            raise
        except Exception as error:  # the libraries of the stores have errors of their own
            cause = f"{type(error).__name__}: {str(error) or 'no message'}"
            if attempt == ATTEMPTS:
                raise DetectionDataError(
                    f"{what}: cannot be read, {ATTEMPTS} attempts failed, the last with {cause[:300]}; look at the "
                    "network and at the rights of the account, and resume the run"
                ) from error
            delay = FIRST_DELAY * 2 ** (attempt - 1)
            logger.info("%s: attempt %d failed (%s); the next in %.1f s", what, attempt, cause[:200], delay)
            time.sleep(delay)
    raise AssertionError("unreachable")


class ShardCache:
    """Shards on the disk, up to a limit of bytes; any number of processes may share the folder.

    A file appears under its name when it is complete: it is fetched under a lock of its own and another name, its size
    is compared, and it is renamed. The files that were not used for longest are removed for a new one.

    Args:
        folder: on a local disk.
        limit: bytes of all files; a single file may have more.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit = os.path.abspath(os.path.expanduser(folder)), limit

    def fetch(self, address: str, size: int, identity: str | None = None) -> str:
        """The path of a file's copy, which is fetched where it is not there.

        Args:
            address: of the file.
            size: its bytes.
            identity: of the data set: a copy of a file that was rewritten since is not taken.

        Raises:
            DetectionDataError: it cannot be fetched.
            OSError: the folder cannot be written.
        """
        key = f"{address} {size}" + (f" {identity}" if identity else "")
        name = hashlib.sha256(key.encode()).hexdigest()[:32] + os.path.splitext(address)[1]
        path = os.path.join(self.folder, name)
        if self._use(path):
            return path
        os.makedirs(self.folder, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not self._use(path):
                part = f"{path}.part"
                self._make_room(size)
                try:
                    with_retries(address, lambda: _download(address, part, size))
                    os.replace(part, path)
                finally:
                    with suppress(FileNotFoundError):
                        os.remove(part)
        return path

    def _use(self, path: str) -> bool:
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, size: int) -> None:
        """Remove the files that were not used for longest until a new one fits."""
        with FileLock(os.path.join(self.folder, "eviction.lock")):
            found = []
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry.path))
            total = sum(each for _, each, _ in found) + size
            for _, each, path in sorted(found):
                if total <= self.limit:
                    return
                if path.endswith((".lock", ".part")):
                    continue
                # A process that has it open goes on reading; Windows does not let it go.
                with suppress(FileNotFoundError, PermissionError):
                    os.remove(path)
                    total -= each


class ReadAhead:
    """Threads that fetch the shards that come next; a failure is left to who reads them.

    Args:
        cache: to fetch into.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self._waiting: deque[tuple[str, int, str | None]] = deque()
        self._lock, self._running = threading.Lock(), 0

    def fetch(self, files: Sequence[tuple[str, int, str | None]]) -> None:
        """Fetch these next, in their order, instead of what is still waiting; as many as fit into the cache at once.

        Args:
            files: addresses, sizes and identities.
        """
        chosen, total = [], 0
        for address, size, identity in files:
            total += size
            if total > self.cache.limit:
                break
            chosen.append((address, size, identity))
        with self._lock:
            self._waiting = deque(chosen)
            starting = min(_THREADS, len(chosen)) - self._running
            self._running += max(starting, 0)
        for _ in range(starting):
            threading.Thread(target=self._work, name="read-ahead of shards", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                address, size, identity = self._waiting.popleft()
            try:
                self.cache.fetch(address, size, identity)
            except Exception as error:  # noqa: BLE001 - who needs the file gets the error
                logger.info("%s: was not fetched ahead: %s", address, error)


def _download(address: str, path: str, size: int) -> None:
    files, inside = open_filesystem(address)
    files.get_file(inside, path)
    found = os.path.getsize(path)
    if found != size:
        raise OSError(f"{found} bytes arrived of {size}")
