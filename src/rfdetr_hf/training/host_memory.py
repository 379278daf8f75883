"""What a training on the CPU asks of the C library."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of mallopt(3), and the largest values that glibc would come to by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL_MMAP, _USUAL_TRIM = 1 << 25, 1 << 26


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """On the CPU, let the C library keep what a step frees until the block ends, and hand it back then.

    By default glibc gives large blocks back to the kernel at once, and the next step gets them page by page again: a
    twentieth of its time (docs/experiments.md). Where the environment tunes the library (`MALLOC_…`, `GLIBC_TUNABLES`),
    or another one is there, nothing changes.
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if device.type != "cpu" or tuned or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, 1 << 30)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        library.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        library.malloc_trim(0)
