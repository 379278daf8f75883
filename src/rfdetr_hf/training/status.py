"""`status.json`: where a run stands, for schedulers and people who see neither its process nor its exit code."""

import json
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..options import message_text, without_secrets
from .checkpoint.lock import read_lock
from .preemption import EXIT_CODE

FILE = "status.json"
_TIME = "%Y-%m-%d %H:%M:%S"
_LARGEST = 1e15
RUNNING, FINISHED, PREEMPTED, FAILED = "running", "finished", "preempted", "failed"
STATUS_EXIT_CODES = {FINISHED: 0, FAILED: 1, RUNNING: 3, PREEMPTED: EXIT_CODE}
"""What `rfdetr-hf status --exit-code` answers, by state."""


class RunStatus:
    """The status of one run, written by its main process.

    Args:
        root: the run directory.
        before_commit: called directly before the file is replaced; an error of it stops that.
    """

    def __init__(self, root: str | Path, before_commit: Callable[[], None] = lambda: None) -> None:
        self.path = Path(root) / FILE
        self._before_commit = before_commit
        self.fields: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The fields of the file; none where there is none, or it cannot be read."""
        try:
            fields = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}

    def begin(self, **fields: Any) -> None:
        """`write` for a run that starts: nothing of the file stays."""
        self.fields = {"started": time.strftime(_TIME)}
        self.write(**fields)

    def write(self, **fields: Any) -> None:
        """Change some fields and replace the file in one move.

        Args:
            fields: `state`, `step`, `max_steps`, `epoch`, `eta_seconds`, `score`, `last_checkpoint`, `message`, …;
                numbers that are not finite become null.

        Raises:
            OSError: it cannot be written.
        """
        self.fields |= {"updated": time.strftime(_TIME), "host": socket.gethostname(), "pid": os.getpid()}
        self.fields |= without_secrets(fields)
        temporary = self.path.with_name(f".{FILE}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(_finite(self.fields), file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            self._before_commit()
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def read_status(root: str | Path) -> dict[str, Any]:
    """The fields of a run's `status.json`. A run that says that it runs, and whose lock is gone or over, has failed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read as one.
    """
    path = Path(root) / FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: no training has begun there") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no status of a run: {error}") from error
    if not isinstance(fields, dict) or fields.get("state") not in (RUNNING, FINISHED, PREEMPTED, FAILED):
        raise ValueError(f"{path} is no status of a run: it has no known state")
    if fields["state"] == RUNNING:
        held = read_lock(root)
        over = "it holds no lock" if held is None else held.over()
        if over is not None:
            before = f"{fields['message']}: " if fields.get("message") else ""
            message = f"{before}the run ended without a word ({over}); go on with resume_from_checkpoint=auto"
            fields |= {"state": FAILED, "message": message}
    return fields


def status_line(fields: dict[str, Any]) -> str:
    """One line for people; fields that are not there, or of another type, are left out."""
    parts = []
    for name in ("step", "epoch", "eta_seconds", "score"):
        # Also left out: what is no finite number.
        if not isinstance(fields.get(name), (int, float)) or not abs(fields[name]) < _LARGEST:
            fields = {**fields, name: None}
    if fields["step"] is not None:
        parts.append(f"step {fields['step']}/{fields.get('max_steps')}")
    if fields["epoch"] is not None:
        parts.append(f"epoch {fields['epoch']:.2f}")
    if fields["eta_seconds"] is not None and fields["state"] == RUNNING:
        parts.append(f"ETA {time_left(fields['eta_seconds'])}")
    if fields["score"] is not None:
        parts.append(f"best {fields.get('metric')} {fields['score']:.4f}")
    if fields.get("last_checkpoint"):
        parts.append(f"last checkpoint {fields['last_checkpoint']}")
    if fields.get("updated"):
        parts.append(f"as of {fields['updated']}")
    parts += [str(fields["message"])] if fields.get("message") else []
    return message_text(f"{fields['state']}: {', '.join(parts)}")


def time_left(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
