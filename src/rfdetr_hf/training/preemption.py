"""Notice of an early end: SIGTERM and SIGUSR1, which schedulers send before they take a machine away."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

EXIT_CODE = 75
"""What a process exits with once it has saved (EX_TEMPFAIL of sysexits.h: try again later)."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(SystemExit):
    """The run was asked to end, and has saved where it stands. Uncaught it ends the process with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class PreemptionNotice(contextlib.AbstractContextManager):
    """Within the block a signal of `SIGNALS` sets `received` instead of ending the process.

    Child processes inherit the handlers and die of the signal as if they had not, except the workers of
    `shield_workers`. Outside the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received = False
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "PreemptionNotice":
        self.received = False
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() == self._process:
            self.received = True
        else:
            _die_of(number)


def shield_workers(loader: DataLoader) -> DataLoader:
    """Let the workers of a loader survive the first signal of `SIGNALS` that others send; the second one ends them.

    Launchers signal all of a process group. A worker that died of it would take the run down before it has saved. A
    signal of this process, which is how torch ends workers that do not end by themselves, ends them at once. Without
    `sigwaitinfo` (macOS) nobody knows who sent a signal, and nothing changes.
    """
    if hasattr(signal, "sigwaitinfo"):
        loader.worker_init_fn = functools.partial(_init_shielded, os.getpid(), loader.worker_init_fn)
    return loader


def _init_shielded(owner: int, init: Callable[[int], None] | None, worker_id: int) -> None:
    # Blocked in all threads, signals wait for the one that asks for them, and for who sent them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_await_signals, args=(owner,), daemon=True).start()
    if init is not None:
        init(worker_id)


def _await_signals(owner: int) -> None:
    if signal.sigwaitinfo(SIGNALS).si_pid != owner:
        signal.sigwaitinfo(SIGNALS)
    os._exit(0)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
