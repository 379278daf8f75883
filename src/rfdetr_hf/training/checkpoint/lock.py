"""One writer: `run.lock` names the process that trains into a run directory, and its heartbeat shows that it lives.

The file is written once, under a name of its own, and linked into place, so it is complete or not there and only one of
several processes gets it. The heartbeat is its time of modification, compared with that of a file written now: both
come from the clock of the file system, so machines need not agree on the time. A lock is over when its process is gone,
which can be seen on the same machine only, or when three beats are missing. Who replaces such a lock first creates
`.run.lock-<token>`, which one process can do, and looks again.

A file system that shows one machine's changes to another only after three beats (90 s) cannot promise one writer.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE = "run.lock"
BEAT = 30.0
"""Seconds from one beat to the next."""
MISSED = 3
"""Beats without which a lock is over."""
_MARKER = "." + FILE + "-"


class RunInUse(RuntimeError):
    """Another process trains into the run directory; the message names it."""


class LockLost(RuntimeError):
    """The lock was taken over while this process was silent: nothing more may be written."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        pid: of the process; it counts only where `host` and `boot` are the same.
        boot: identifies the start of the machine and the space of process ids; "" where the system does not tell.
        process_start: when the process started, in units of the system; distinguishes a reused pid.
        started: when the lock was taken, local time.
        beat: seconds between beats.
        token: differs from lock to lock.
    """

    host: str = "unknown"
    pid: int = 0
    boot: str = ""
    process_start: float = 0.0
    started: str = "unknown"
    beat: float = BEAT
    token: str = "unknown"

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, started {self.started}"


@dataclass(frozen=True)
class Held:
    """A lock that was found: its owner, and the seconds since its last beat."""

    owner: Owner
    silent: float

    def over(self) -> str | None:
        """Why nobody trains under this lock any more; None if somebody may."""
        if _is_gone(self.owner):
            return "its process is gone"
        if self.silent > MISSED * self.owner.beat:
            return f"no sign of life for {self.silent:.0f} s"
        return None


def read_lock(root: str | Path) -> Held | None:
    """The lock of a run directory; None where there is none. What cannot be parsed has an unknown owner."""
    path = Path(root) / FILE
    try:
        # Opened first: network file systems then ask the server for the content and the time.
        with path.open(encoding="utf-8", errors="replace") as file:
            text, beat = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return Held(_parse(text), max(_time_of(path.parent) - beat, 0.0))


def _parse(text: str) -> Owner:
    known: dict[str, Any] = {field.name: type(field.default) for field in fields(Owner)}
    try:
        return Owner(**{name: known[name](value) for name, value in json.loads(text).items() if name in known})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Owner()


class RunLock:
    """The lock of one run directory, held by the main process for the time of a training.

    Args:
        root: the run directory; it is made if needed.
        beat: seconds between beats.

    Attributes:
        held: whether this process has taken the lock and not released it.
        taken_over: whose lock was replaced and why, for the log; None if there was none.
    """

    def __init__(self, root: str | Path, beat: float = BEAT) -> None:
        self.root = Path(root)
        self.path = self.root / FILE
        self.beat = beat
        self._owner = Owner()
        self.held = False
        self.taken_over: str | None = None
        self._lost: LockLost | None = None
        self._confirmed = 0.0
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, wait: bool = False) -> None:
        """Take the lock, and keep it by a heartbeat.

        Args:
            wait: give a run that holds it three beats' time to end, or to be seen as dead, instead of failing at once.

        Raises:
            RunInUse: another process holds it.
            OSError: the directory cannot be made or written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._owner, self.taken_over = this_process(self.beat), None
        seen, since = None, (begun := time.monotonic())
        while not self._create():
            held, now = read_lock(self.root), time.monotonic()
            if held is None:
                continue
            if seen is None or held.owner != seen.owner or held.silent < seen.silent:
                since = now
            seen, limit = held, MISSED * held.owner.beat
            over = held.over() or (f"no beat seen for {limit:.0f} s" if now - since > limit else None)
            if over is not None and self._succeed(held.owner):
                self.taken_over = f"{self.path} of {held.owner} is taken over: {over}"
                break
            if over is None and (not wait or now - begun > limit + held.owner.beat):
                raise RunInUse(
                    f"output_dir {self.root} is in use by another run: {held.owner}, last sign of life "
                    f"{held.silent:.0f} s ago. Wait for its end, end it, or choose another output_dir; "
                    f"resume_from_checkpoint=auto waits {limit:.0f} s for a run that ends"
                )
            time.sleep(min(1.0, self.beat / 4))
        self._clean()
        self.held, self._lost, self._confirmed = True, None, time.time()
        self._ended.clear()
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)
        self._thread.start()

    def check(self, before_writing: bool = False) -> None:
        """Make sure that the lock still is this process's: at once, unless the last two beats were missed.

        Args:
            before_writing: look at the file in any case.

        Raises:
            LockLost: another process has taken it over.
            OSError: before writing: the file cannot be read.
        """
        if not self.held:
            return
        if self._lost is None and (before_writing or self.stale):
            with contextlib.nullcontext() if before_writing else contextlib.suppress(OSError):
                self._confirm()
        if self._lost is not None:
            raise self._lost

    @property
    def stale(self) -> bool:
        """Whether the lock may be another process's by now: the last two beats were missed, or it is known."""
        return self.held and (self._lost is not None or not 0 <= time.time() - self._confirmed <= 2 * self.beat)

    def release(self) -> None:
        """Remove the lock if it still is this process's; nothing happens where it is not held."""
        if not self.held:
            return
        self.held = False
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        try:
            if self._present() == self._owner:
                self.path.unlink()
        except OSError as error:
            logger.warning("%s could not be removed: %s", self.path, error)

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(self.beat):
            try:
                self._confirm()
            except OSError as error:
                # The next beat may succeed; before anything is written the main thread looks for itself.
                logger.warning("%s: no beat: %s", self.path, error)

    def _confirm(self) -> None:
        """One beat; remembers a loss.

        A missing lock is put back while nobody can have taken it over; a successor that has ended removes its own.
        """
        with self._beating:
            silent = time.time() - self._confirmed
            if self._present() is None and 0 <= silent <= MISSED * self.beat and self._create():
                logger.warning("%s had been removed while this run lives; it is there again", self.path)
            if (owner := self._present()) == self._owner:
                os.utime(self.path)
                self._confirmed = time.time()
            else:
                taken = f"was taken over by another run ({owner})" if owner else "is gone: another run may have come"
                self._lost = LockLost(
                    f"{self.path} {taken}, while this process (pid {os.getpid()}) "
                    f"gave no sign of life for {silent:.0f} s; it writes nothing more and ends"
                )

    def _create(self) -> bool:
        """Put the lock in place if there is none."""
        temporary = self._write_temporary()
        try:
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            # Asked twice over a network, the first answer lost.
            return os.stat(temporary).st_nlink == 2 and self._present() == self._owner
        except OSError:  # a file system without links
            return _create_exclusively(self.path, temporary.read_text(encoding="utf-8"))
        finally:
            temporary.unlink(missing_ok=True)

    def _succeed(self, dead: Owner) -> bool:
        """Replace a lock that is over, if no other process is about to and it still is that lock."""
        marker = self.root / f"{_MARKER}{dead.token}"
        if not _create_exclusively(marker, ""):
            with contextlib.suppress(FileNotFoundError):
                if _time_of(self.root) - marker.stat().st_mtime > MISSED * dead.beat:
                    marker.unlink()  # whoever made it has died of it
            return False
        try:
            if self._present() != dead:
                return False
            os.replace(self._write_temporary(), self.path)
        except PermissionError:
            # Windows replaces no file that another process has open for a moment.
            return False
        finally:
            marker.unlink(missing_ok=True)
        time.sleep(min(1.0, self.beat / 4))
        return self._present() == self._owner

    def _write_temporary(self) -> Path:
        temporary = self.root / f".{FILE}.{self._owner.token}"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(self._owner), file)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def _present(self) -> Owner | None:
        try:
            return _parse(self.path.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None

    def _clean(self) -> None:
        """Remove what killed processes left of their attempts."""
        for path in self.root.glob(f".{FILE}*"):
            with contextlib.suppress(OSError):
                if _time_of(self.root) - path.stat().st_mtime > MISSED * self.beat:
                    path.unlink()


def this_process(beat: float = BEAT) -> Owner:
    """The present process as the owner of a new lock."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_boot(),
        process_start=_start_of(os.getpid()) or 0.0,
        started=time.strftime("%Y-%m-%d %H:%M:%S"),
        beat=beat,
        token=uuid.uuid4().hex,
    )


def _is_gone(owner: Owner) -> bool:
    """Whether an owner on this machine has ended; False where that cannot be seen."""
    if owner.pid <= 0 or not owner.process_start or owner.host != socket.gethostname() or owner.boot != _boot():
        return False
    return _start_of(owner.pid) != owner.process_start


def _boot() -> str:
    """The start of this machine and the space of process ids: containers of one machine share the first alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> float | None:
    """When a process started, in units of the system; None if it has ended."""
    if os.path.exists("/proc/self/stat"):
        try:
            # Behind the name, which may hold anything: state first, start in clock ticks as the twentieth.
            words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if words[0] in (b"Z", b"X") else float(words[19])
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.NoSuchProcess:
        return None


def _time_of(root: Path) -> float:
    """The present time by the clock of a directory's file system; of this machine where nothing can be written."""
    probe = root / f".{FILE}-time-{uuid.uuid4().hex}"
    try:
        with probe.open("wb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _create_exclusively(path: Path, content: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    return True
