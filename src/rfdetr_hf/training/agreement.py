"""What one of a run's processes does or fails at, and all of them learn of."""

import pickle
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")
_FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
BEAT = 5.0  # seconds from one word of a busy main process to the next
_SHARED = "raised_on_all_processes"


def on_main(work: Callable[[], Result], accelerator: Accelerator) -> Result:
    """Do something on the main process; all return what it gave, or raise what it raised."""
    outcome: list[Any] = _outcome(work, accelerator) if accelerator.is_main_process else [None, None]
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise mark_shared(error)
    return result


def patiently_on_main(work: Callable[[], Result], accelerator: Accelerator) -> Result:
    """As `on_main`, for what may take longer than `ddp_timeout`: the others hear from the main process meanwhile.

    The work runs on a thread of the main process, so it may use no collective operation.
    """
    if accelerator.num_processes == 1:
        return on_main(work, accelerator)
    outcome: list[Any] = [None, None, False]

    def run() -> None:
        outcome[:2] = _outcome(work, accelerator)

    thread = threading.Thread(target=run, name="work of the main process", daemon=True)
    if accelerator.is_main_process:
        thread.start()
    while True:
        if accelerator.is_main_process:
            thread.join(BEAT)
            outcome[2] = not thread.is_alive()
        result, error, done = broadcast_object_list(list(outcome) if outcome[2] else [None, None, False])
        if done:
            break
    if error is not None:
        raise mark_shared(error)
    return result


def _outcome(work: Callable[[], Any], accelerator: Accelerator) -> list[Any]:
    """What some work gave, and what it raised, in a form for all processes."""
    try:
        return [work(), None]
    except Exception as error:  # noqa: BLE001 - raised by all processes
        return [None, error if accelerator.num_processes == 1 else sendable(error)]


def mark_shared(error: Exception) -> Exception:
    """Note on an error that all processes raise it, and returns it."""
    setattr(error, _SHARED, True)
    return error


def is_shared(error: BaseException) -> bool:
    """Whether all processes raise this error, and so are at the same place when they catch it."""
    return getattr(error, _SHARED, False)


def sendable(error: Exception) -> Exception:
    """An error in a form that another process can receive."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - of an exception's own making
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class Summing(Protocol):
    """What adds up small numbers of all processes, and raises an error of one of them on all; `Parallel` does."""

    def sum_on_hosts(self, *values: float) -> list[float]: ...

    def raise_together(self, error: Exception | None) -> None: ...


def agree_on_control(control: Any, parallel: Summing, settled: bool = True, failure: Exception | None = None) -> bool:
    """Let all processes do what the callbacks of one of them ask for, or fail with it; all must call it.

    Args:
        control: of this process, a `TrainerControl`; gets the flags that are set on any.
        parallel: of the run.
        settled: whether this process knows how the latest step went.
        failure: of this process, in place of an answer.

    Returns:
        Whether some process knows how the step went.

    Raises:
        Exception: the first failure.
    """
    values = parallel.sum_on_hosts(failure is not None, settled, *(getattr(control, name) for name in _FLAGS))
    failed, known, *flags = map(bool, values)
    if failed:
        parallel.raise_together(failure)
    for name, flag in zip(_FLAGS, flags, strict=True):
        setattr(control, name, flag)
    return known
