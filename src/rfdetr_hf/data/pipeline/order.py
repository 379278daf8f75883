"""Which images make up a batch.

All randomness of a sample comes from (seed, epoch, position), its place in the epoch's order. Nothing depends on the
number of workers, on what was fetched ahead, or on the state of any global generator, so a run that is resumed in the
middle of an epoch sees the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["EpochBatchSampler", "EvalBatchSampler", "Key"]

MIN_WINDOWS = 5

Key = tuple[int, int, int]  # epoch, position in the epoch's order, row of the data set


@dataclass
class EpochBatchSampler:
    """The micro-batches of one rank, as lists of (epoch, position, index).

    An epoch is a permutation that (seed, epoch) gives, cut into windows of `batch_size * accumulation * world_size`
    samples, one per optimizer step. All windows are full: the last is filled with images that each epoch chooses
    by itself. A data set of fewer than five windows is sampled with replacement to five, as the official loader does on
    one device; here on any number. Which samples a window holds, and with which random draws, depends on the size of
    the window alone, not on how it is split into batches, accumulation and ranks.

    Args:
        num_samples: images in the data set.
        batch_size: images of a micro-batch on one rank.
        accumulation: micro-batches of a window on one rank.
        rank: this process.
        world_size: all processes.
        seed: of the order.
        epoch: to start with.
        start_batch: micro-batches of that epoch to leave out, because they are done.
        shuffle: a random order; otherwise rows in a row, the last window filled from the start.
    """

    num_samples: int
    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    epoch: int = 0
    start_batch: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {self.rank} of world_size {self.world_size}")

    @property
    def window_size(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def num_windows(self) -> int:
        """Optimizer steps per epoch."""
        return max(MIN_WINDOWS, -(-self.num_samples // self.window_size))

    def __len__(self) -> int:
        """Micro-batches of one rank in an epoch."""
        return self.num_windows * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for batch in range(self.start_batch, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, start + i, int(order[start + i])) for i in range(self.batch_size)]

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Go to an epoch, and in it to the micro-batch `start_batch`; the next iteration begins there."""
        self.epoch, self.start_batch = epoch, start_batch

    def _order(self) -> np.ndarray:
        total = self.num_windows * self.window_size
        if not self.shuffle:
            return np.resize(np.arange(self.num_samples), total)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
        if self.num_samples < MIN_WINDOWS * self.window_size:
            return rng.integers(self.num_samples, size=total)
        order = rng.permutation(self.num_samples)
        return np.concatenate([order, rng.permutation(self.num_samples)[: total - self.num_samples]])


class EvalBatchSampler:
    """Every image exactly once: rank r takes the rows r, r + world_size, …, in order.

    Ranks may have different numbers of batches, so nothing collective may happen per batch.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"cannot split with batch_size {batch_size}, rank {rank}, world_size {world_size}")
        self.rows = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield [(0, row, row) for row in self.rows[start : start + self.batch_size]]
