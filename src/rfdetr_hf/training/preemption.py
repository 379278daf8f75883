"""Notice of an early end: SIGTERM and SIGUSR1, which schedulers send before they take a machine away."""

import contextlib
import logging
import os
import signal
import threading
from typing import Any

logger = logging.getLogger("rfdetr_hf")

EXIT_CODE = 75
"""What a process exits with once it has saved (EX_TEMPFAIL of sysexits.h: try again later)."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(SystemExit):
    """The run was asked to end, and has saved where it stands. Uncaught it ends the process with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class PreemptionNotice(contextlib.AbstractContextManager):
    """Within the block a signal of `SIGNALS` sets `received` instead of ending the process.

    Loader workers inherit the handlers, and launchers signal whole process groups. A worker that died of it would take
    the run down before it has saved; so a worker lets the first signal pass. Outside the main thread, where Python
    allows no handlers, nothing changes.
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
        in_worker = os.getpid() != self._process
        if in_worker and self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = True
