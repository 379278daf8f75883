"""Says where a training waits that makes no progress."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds without progress before the first line; each further one comes after twice the time."""


class Watchdog(contextlib.AbstractContextManager):
    """A thread that looks whether the training enters a new stage from time to time, and logs the stage if it does not.

    Args:
        patience: seconds without a new stage before the first line.
        who: named in the line, such as "process 1".
    """

    def __init__(self, patience: float = PATIENCE, who: str = "") -> None:
        self.patience = patience
        self.who = who
        self._stage, self._since = "", time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watchdog":
        self._ended.clear()
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def at(self, stage: str) -> None:
        """The training begins with something: "loading data". Cheap enough for every micro-batch."""
        self._stage, self._since = stage, time.monotonic()

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """The training does something for the time of the block, and then what it did before."""
        before = self._stage
        self.at(stage)
        try:
            yield
        finally:
            self.at(before)

    def _watch(self) -> None:
        noticed, limit = self._since, self.patience
        while not self._ended.wait(min(self.patience / 4, 5.0)):
            since, stage = self._since, self._stage
            if since != noticed:
                noticed, limit = since, self.patience
            waited = time.monotonic() - since
            if stage and waited > limit:
                limit *= 2
                logger.warning("%sno progress: %s since %.0f s", self.who and f"{self.who}: ", stage, waited)
