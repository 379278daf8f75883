"""Notice of an early end: what schedulers send before they take a machine away, Ctrl-C, the end of the launcher."""

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from .parent import end_with_launcher, signal_at_launchers_end

logger = logging.getLogger(__name__)

EXIT_CODE = 75
"""What a process exits with once it has saved (EX_TEMPFAIL of sysexits.h: try again later)."""

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
# Whoever starts a process with these ignored (nohup, a shell's background) wants it to outlive them.
_LEFT_IGNORED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
AT_ONCE = 1.0
"""Seconds after which a second Ctrl-C ends the process; what comes earlier is the first one, passed on by launchers."""
_WATCH, _LOOK = 2.0, 1.0


class Preempted(SystemExit):
    """The run was asked to end, and has saved where it stands. Uncaught it ends the process with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Noticed(BaseException):
    """Raised by a notice within `PreemptionNotice.interrupts`; no `Exception`, for code that handles those."""


class Overdue(BaseException):
    """Raised within `PreemptionNotice.interrupts` when its time is over."""


class PreemptionNotice(contextlib.AbstractContextManager):
    """Within the block a signal of `SIGNALS`, or the launcher's end, sets `received` instead of ending the process.

    Further signals are the same notice: with one Ctrl-C a launched process gets SIGINT and SIGTERM, some twice. Only a
    second SIGINT, `AT_ONCE` seconds after the first or later, raises KeyboardInterrupt. A notice that nobody has acted
    on (`acted`) is raised again when the block ends without an error. Child processes inherit the handlers and die of
    the signal as if they had not; see `shield_workers`. Outside the main thread, where Python allows no handlers,
    nothing changes. What waits within `interrupts` heeds a notice as long as `listens` is true.
    """

    received = acted = listens = False
    _number: int | None = None
    _first_interrupt: float | None = None
    _interrupts = _overdue = False
    _deadline: float | None = None

    def __init__(self) -> None:
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}
        self._ended = threading.Event()
        end_with_launcher()  # until the block is entered

    def __enter__(self) -> "PreemptionNotice":
        self.received, self.acted, self.listens = False, False, True
        self._number = self._first_interrupt = None
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            ignored = [number for number in _LEFT_IGNORED if signal.getsignal(number) == signal.SIG_IGN]
            self._earlier = {n: signal.signal(n, self._handle) for n in SIGNALS if n not in ignored}
            self._ended.clear()
            threading.Thread(target=self._watch_time, name="notices and time", daemon=True).start()
            if signal_at_launchers_end(signal.SIGTERM):
                self._handle(signal.SIGTERM, None)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        self.listens = False
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._earlier = {}
        if self._number is not None and not self.acted and exception[0] is None:
            logger.warning("%s came too late to be acted on: raised again", signal.Signals(self._number).name)
            signal.raise_signal(self._number)

    @contextlib.contextmanager
    def interrupts(self, seconds: float = 0.0) -> Iterator[None]:
        """A block that waits for something else than the other processes: a notice ends it.

        Args:
            seconds: end it after this time as well, whatever it does (not on Windows); 0 for never.

        Raises:
            Noticed: there was a notice, or one came.
            Overdue: the time is over.
        """
        self._deadline = time.monotonic() + seconds if seconds else None
        self._interrupts = True
        try:
            if self.received:
                raise Noticed
            yield
        finally:
            self._interrupts, self._deadline = False, None

    def _watch_time(self) -> None:
        last, said = time.monotonic(), False
        while not self._ended.wait(_LOOK):
            now, deadline = time.monotonic(), self._deadline
            if self._number is not None and not said and not self.acted:
                said = True
                name = signal.Signals(self._number).name
                logger.warning("%s: the run saves and ends as soon as the present step is done", name)
            if now - last > 10 * _LOOK and deadline is not None:  # the process was suspended, its workers as well
                self._deadline = deadline + now - last
            elif deadline is not None and now > deadline and hasattr(signal, "pthread_kill"):
                self._deadline, self._overdue = None, True
                signal.pthread_kill(
                    threading.main_thread().ident or 0, signal.SIGUSR1
                )  # ends what the system waits for
            last = now

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            _die_of(number)
            return
        if self._overdue:
            self._overdue = False
            if self._interrupts:
                self._interrupts = False
                raise Overdue
            return
        if number == signal.SIGINT:
            if self._first_interrupt is None:
                self._first_interrupt = time.monotonic()
            elif time.monotonic() - self._first_interrupt >= AT_ONCE:
                self.acted = True
                raise KeyboardInterrupt
        self.received = True
        self._number = self._number or number
        if self._interrupts:
            self._interrupts = False
            raise Noticed


def shield_workers(loader: DataLoader) -> DataLoader:
    """Let the workers of a loader survive the signals of `SIGNALS` that others send; they end when their owner does.

    Launchers and terminals signal process groups. A worker that died of it would take the run down before it has
    saved. A signal of this process, which is how torch ends workers that do not end by themselves, ends them at once.
    Without `sigwaitinfo` (macOS, Windows) nobody can tell who sent a signal, and nothing changes.
    """
    if hasattr(signal, "sigwaitinfo"):
        loader.worker_init_fn = functools.partial(_init_shielded, os.getpid(), loader.worker_init_fn)
    return loader


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Signals of `SIGNALS` reach this process at the end of the block, and processes started in it only where they ask.

    A worker that starts is not shielded yet.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _init_shielded(owner: int, init: Callable[[int], None] | None, worker_id: int) -> None:
    # Blocked in all threads, signals wait for the one that asks for them, and for who sent them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_await_signals, args=(owner, os.getppid()), daemon=True).start()
    if init is not None:
        init(worker_id)


def _await_signals(owner: int, parent: int) -> None:
    # A worker that hangs does not see that its owner has gone.
    while os.getppid() == parent:
        received = signal.sigtimedwait(SIGNALS, _WATCH)
        if received is not None and received.si_pid == owner:
            break
    os._exit(0)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
