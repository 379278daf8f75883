"""Memory that forked workers and the loader's process share, in which the pixels of batches travel.

A batch that leaves a worker in memory of its own costs new pages each time, about half a millisecond an image of 384
pixels. In a ring the same pages serve again, as soon as the loader's process has copied a batch out of them.
"""

from __future__ import annotations

import itertools
import math
import mmap
import multiprocessing
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

__all__ = ["BatchRing", "make_tensor"]

# Of address space: pages that no batch touches take no memory. A larger batch travels as torch does it.
_SLOT_BYTES = 1 << 26
_RINGS: weakref.WeakValueDictionary[int, BatchRing] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class BatchRing:
    """Slots for batches, some for each worker.

    Args:
        workers: of the loader. There is room for twice as many, since two iterations may run at once; further ones find
            no slot.
        slots: of a worker; it needs one more than it loads ahead.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self.slots = slots
        self._lock = multiprocessing.get_context("fork").Lock()
        # Not reserved: a kernel that counts address space as memory would refuse it for many workers.
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._memory = mmap.mmap(-1, 2 * workers * slots * _SLOT_BYTES, flags=flags)
        # Of each worker: its process; of each slot: the number of the batch in it, 0 for none.
        self._owners = _shared_numbers(2 * workers)
        self._batches = _shared_numbers(2 * workers * slots)
        self._mine: range | None = None
        self._written = 0
        self.number = next(_NUMBERS)
        _RINGS[self.number] = self

    def write(self, shape: tuple[int, ...], dtype: torch.dtype, fill: Callable[[torch.Tensor], Any]) -> Any:
        """In a worker: have a tensor filled in a free slot.

        Returns:
            What becomes the tensor in the loader's process; None where no slot is free or large enough.
        """
        if math.prod(shape) * dtype.itemsize > _SLOT_BYTES:
            return None
        if self._mine is None:
            self._mine = self._claim()
        slot = next((slot for slot in self._mine if not self._batches[slot]), None)
        if slot is None:
            return None
        fill(self._tensor(slot, shape, dtype))
        self._written += 1
        self._batches[slot] = self._written
        return _InRing(self.number, slot, self._written, shape, dtype)

    def read(self, slot: int, batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """In the loader's process: copy a batch, whose slot is free then.

        Raises:
            RuntimeError: another batch lies there.
        """
        copy = self._tensor(slot, shape, dtype).clone()
        if self._batches[slot] != batch:
            raise RuntimeError(f"slot {slot} of the loader's memory holds batch {self._batches[slot]}, not {batch}")
        self._batches[slot] = 0
        return copy

    def _tensor(self, slot: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = math.prod(shape)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=slot * _SLOT_BYTES).view(shape)

    def _claim(self) -> range:
        """The slots of a worker that is not there any more, or of none."""
        with self._lock:
            for place, owner in enumerate(self._owners):
                if not owner or not _is_running(int(owner)):
                    self._owners[place] = os.getpid()
                    self._written = os.getpid() << 32  # no batch of another worker has one of these numbers
                    mine = range(place * self.slots, (place + 1) * self.slots)
                    self._batches[mine.start : mine.stop] = 0
                    return mine
        return range(0)


def make_tensor(
    ring: BatchRing | None, shape: tuple[int, ...], dtype: torch.dtype, fill: Callable[[torch.Tensor], Any]
) -> Any:
    """A tensor that a function fills; in a worker in memory that the loader's process sees, in a ring if there is one.

    Returns:
        The tensor, or what becomes the tensor on its way to the loader's process.
    """
    in_worker = get_worker_info() is not None
    placed = ring.write(shape, dtype, fill) if ring is not None and in_worker else None
    if placed is None:
        placed = torch.empty(shape, dtype=dtype)
        fill(placed.share_memory_() if in_worker else placed)
    return placed


class _InRing:
    """A tensor in a slot, on its way."""

    def __init__(self, *place: Any) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return receive, self.place


def receive(number: int, *place: Any) -> torch.Tensor:
    """What a tensor in a ring becomes where it is unpickled: the loader's process."""
    return _RINGS[number].read(*place)


def _shared_numbers(count: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, 8 * count), np.int64)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
