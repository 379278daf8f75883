"""Work that goes on while the training does."""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor


class BackgroundWriter:
    """Does one piece of work at a time in a thread. The thread outlives the main one, so that work is always ended."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, once the one before is done.

        Raises:
            Exception: what the one before failed with.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when the work is done.

        Raises:
            Exception: what it failed with; once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            self._error = error


def host_copy(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples whose tensors are in host memory and share none with the original."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        copies = [host_copy(each) for each in value]
        return type(value)(*copies) if hasattr(value, "_fields") else type(value)(copies)
    return value
