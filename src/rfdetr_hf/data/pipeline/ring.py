"""Memory that forked workers and the loader's process share, in which the pixels of batches travel.

A batch that leaves a worker in memory of its own costs new pages each time, about half a millisecond an image of 384
pixels. In a ring the same pages serve again, as soon as the loader's process has copied a batch out of them.
"""

from __future__ import annotations

import itertools
import math
import mmap
import tempfile
import weakref
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import get_worker_info

__all__ = ["BatchRing", "empty_tensor"]

# Of address space: pages that no batch touches take no memory. A larger batch travels as torch does it.
_SLOT_BYTES = 1 << 26
_RINGS: weakref.WeakValueDictionary[int, BatchRing] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


class BatchRing:
    """Slots for batches, some for each worker; for Linux.

    A slot is free when no tensor of its worker lies in it and no batch in it is on its way.

    Args:
        workers: of the loader. There is room for twice as many, since two iterations may run at once; further ones find
            no slot.
        slots: of a worker; it needs one more than it loads ahead.

    Raises:
        OSError: the address space of the process is limited, or no temporary file can be made.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self.slots, self.places = slots, 2 * workers
        # Not reserved: a kernel that counts address space as memory would refuse it for many workers.
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._memory = mmap.mmap(-1, self.places * slots * _SLOT_BYTES, flags=flags)
        # Of each place: the batches it has sent; of each slot: the number of the batch on its way, 0 for none.
        self._sent = _shared_numbers(self.places)
        self._batches = _shared_numbers(self.places * slots)
        self._locks = tempfile.TemporaryFile()  # a worker locks a byte, and the kernel unlocks it when the worker ends
        self._mine: int | None = None
        self._tensors: dict[int, weakref.ref[memoryview]] = {}
        self.number = next(_NUMBERS)
        _RINGS[self.number] = self

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """In a worker: a tensor in a free slot; None where no slot is free or large enough."""
        if self._mine is None:
            self._mine = self._claim()
        own = range(self._mine * self.slots, (self._mine + 1) * self.slots)
        # What is referred to lives as long as a tensor in the slot, or a view of one.
        taken = {slot for slot, buffer in self._tensors.items() if buffer() is not None}
        free = (slot for slot in own if not self._batches[slot] and slot not in taken)
        slot = next(free, None) if math.prod(shape) * dtype.itemsize <= _SLOT_BYTES else None
        if slot is None:
            return None
        buffer = self._buffer(slot)
        self._tensors[slot] = weakref.ref(buffer)
        made = torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape)).view(shape).as_subclass(_InRing)
        made.ring, made.slot = self, slot
        return made

    def address(self, slot: int) -> int:
        """Of the first byte of a slot in this process."""
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=1, offset=slot * _SLOT_BYTES).data_ptr()

    def send(self, slot: int) -> int:
        """In a worker: the number of the batch in a slot, which stays there until it is read."""
        place = slot // self.slots
        self._sent[place] += 1
        self._batches[slot] = self._sent[place]
        return int(self._sent[place])

    def read(self, slot: int, batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """In the loader's process: copy a batch, whose slot is free then.

        Raises:
            RuntimeError: another batch lies there.
        """
        copy = torch.empty(shape, dtype=dtype)
        as_bytes = copy.view(-1).view(torch.uint8).numpy()
        # By NumPy: torch would wake its other threads, and wait for cores that the workers have.
        as_bytes[:] = np.frombuffer(self._buffer(slot), np.uint8, as_bytes.size)
        if self._batches[slot] != batch:
            raise RuntimeError(f"slot {slot} of the loader's memory holds batch {self._batches[slot]}, not {batch}")
        self._batches[slot] = 0
        return copy

    def _buffer(self, slot: int) -> memoryview:
        return memoryview(self._memory)[slot * _SLOT_BYTES : (slot + 1) * _SLOT_BYTES]

    def _claim(self) -> int:
        """A place that no living worker has, its slots emptied; one without slots where there is none."""
        import fcntl  # of POSIX

        for place in range(self.places):
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):  # either says that another process has it
                continue
            self._batches[place * self.slots : (place + 1) * self.slots] = 0
            return place
        self.slots = 0
        return 0


class _InRing(torch.Tensor):
    """A tensor in a slot: pickled, it is its place. What is made of it is a tensor like any other."""

    ring: BatchRing
    slot: int
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Still the slot, and not on its way already: the loader's process empties it once.
        is_slot = self.data_ptr() == self.ring.address(self.slot) and self.is_contiguous()
        if not is_slot or self.ring._batches[self.slot]:
            return reduce_tensor(self.as_subclass(torch.Tensor).clone())
        place = self.ring.number, self.slot, self.ring.send(self.slot)
        return receive, (*place, tuple(self.shape), self.dtype)

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()


def empty_tensor(ring: BatchRing | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor for a batch; in a worker in memory that the loader's process sees, in a ring if there is one."""
    in_worker = get_worker_info() is not None
    placed = ring.empty(shape, dtype) if ring is not None and in_worker else None
    if placed is None:
        placed = torch.empty(shape, dtype=dtype)
        if in_worker:
            placed.share_memory_()
    return placed


def receive(number: int, slot: int, batch: int, *tensor: Any) -> torch.Tensor:
    """What a tensor in a ring becomes where it is unpickled: the loader's process."""
    return _RINGS[number].read(slot, batch, *tensor)


def _shared_numbers(count: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, 8 * count), np.int64)
