"""How many processor cores a process may use."""

import os
from pathlib import Path
from typing import Any

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in a period, and the period, of a container that was started with `--cpus`."""


def usable_cores() -> int:
    """The cores that this process may use, by its affinity and the quota of its container; 1 at least."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        share = int(quota) // int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max" for no quota
        share = cores
    return max(min(cores, share), 1)
