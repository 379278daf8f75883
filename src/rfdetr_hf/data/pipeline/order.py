"""Which images make up a batch.

All randomness of a sample comes from (seed, epoch, position), its place in the epoch's order. Nothing depends on the
number of workers, on what was fetched ahead, or on the state of any global generator, so a run that is resumed in the
middle of an epoch sees the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = [
    "ORDER", "ORDERS", "EpochBatchSampler", "EvalBatchSampler", "Key", "Permutation", "ShardOrder", "Shards",
    "weighted_rows",
]  # fmt: skip

MIN_WINDOWS = 5
ORDER = 2
"""Version of the order of samples and of their random draws, for new runs."""
ORDERS = (1, ORDER)
"""The versions that an `EpochBatchSampler` knows: 1 draws NumPy's permutation of all rows, 2 a `Permutation`."""

Key = tuple[int, int, int]  # epoch, position in the epoch's order, row of the data set

_ROUNDS, _ROUNDS_OF_SMALL = 8, 24
_SMALL_BITS = 3  # with so few bits, eight rounds do not give all permutations equally often
_BATCHES_AT_A_TIME = 64
_WINDOWS_AHEAD = 3  # the present one included
# Parts of an epoch that have permutations of their own.
_ALL, _FILL, _WEIGHTED = 0, 1, 2


class Permutation:
    """A permutation of 0…size-1 that a key chooses, computed for single positions: it takes no memory.

    A Feistel network permutes the numbers of as many bits as size - 1 has (M. Luby and C. Rackoff,
    How to construct pseudorandom permutations from pseudorandom functions, SIAM J. Comput. 17, 1988). A result of
    `size` or more goes through it again until it is below, which takes fewer than two passes on average ("cycle
    walking": J. Black and P. Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002). The function of a round is
    the finaliser of SplitMix64, variant 13 of D. Stafford (G. Steele, D. Lea and C. Flood, Fast splittable
    pseudorandom number generators, OOPSLA 2014).

    Args:
        size: how many numbers.
        key: non-negative integers; others give another permutation.

    Raises:
        ValueError: the size is not in 1…2^62.
    """

    def __init__(self, size: int, *key: int) -> None:
        if not 1 <= size <= 1 << 62:
            raise ValueError(f"size must be in [1, 2^62], got {size}")
        self.size = size
        bits = (size - 1).bit_length()
        # The upper and the lower part of a number; the rounds change them by turns.
        self._low_bits = np.uint64(bits - bits // 2)
        self._masks = np.uint64((1 << bits // 2) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
        rounds = _ROUNDS_OF_SMALL if bits <= _SMALL_BITS else _ROUNDS
        self._keys = np.random.SeedSequence(key).generate_state(rounds, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at some positions.

        Args:
            positions: integers in 0…size-1, of any shape.

        Returns:
            int64 of the same shape.
        """
        numbers = self._pass(np.asarray(positions).astype(np.uint64))
        outside = numbers >= self.size
        while outside.any():
            numbers[outside] = self._pass(numbers[outside])
            outside = numbers >= self.size
        return numbers.astype(np.int64)

    def _pass(self, numbers: np.ndarray) -> np.ndarray:
        high_mask, low_mask = self._masks
        high, low = numbers >> self._low_bits, numbers & low_mask
        for index, key in enumerate(self._keys):
            if index % 2:
                low = low ^ (_mix(high + key) & low_mask)
            else:
                high = high ^ (_mix(low + key) & high_mask)
        return (high << self._low_bits) | low


class Shards(NamedTuple):
    """How a data set of shards is to be shuffled.

    Attributes:
        rows: (S,) int64, how many rows each shard has; they are the data set's, in a row.
        window: shards whose rows are mixed at a time.
        fetch_ahead: is called with the shards that come next, in their order; the order does not depend on it.
    """

    rows: np.ndarray
    window: int
    fetch_ahead: Callable[[Sequence[int]], None] | None = None


class ShardOrder:
    """An order of the rows of all shards that keeps to a few shards at a time.

    The shards are permuted and cut into windows; the rows of a window are permuted. Both are `Permutation`s, so that
    a position gives its row by arithmetic, from the sums of the rows of the permuted shards: 24 bytes a shard.

    Args:
        shards: their rows and the size of a window.
        key: non-negative integers, three at most; others give another order.
    """

    def __init__(self, shards: Shards, *key: int) -> None:
        self.window, self.key = shards.window, key
        self._shards = Permutation(len(shards.rows), *key)(np.arange(len(shards.rows)))  # place -> shard
        self._ends = np.cumsum(shards.rows[self._shards])  # of the shard at each place
        # What to add to a number in the permuted shards to get the row of the data set.
        self._shift = (np.cumsum(shards.rows) - shards.rows)[self._shards] - (self._ends - shards.rows[self._shards])

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions, int64 of the same shape."""
        windows = np.searchsorted(self._ends, positions, side="right") // self.window
        numbers = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            first, last = window * self.window, min((window + 1) * self.window, len(self._ends)) - 1
            start = self._ends[first - 1] if first else 0
            mix = Permutation(int(self._ends[last] - start), *self.key, window + 1)
            inside = windows == window
            numbers[inside] = start + mix(positions[inside] - start)
        return numbers + self._shift[np.searchsorted(self._ends, numbers, side="right")]

    def shards_from(self, position: int, windows: int) -> list[int]:
        """The shards of the window that a position lies in, and of those that follow; so many windows."""
        first = int(np.searchsorted(self._ends, position, side="right")) // self.window * self.window
        return self._shards[first : first + windows * self.window].tolist()


def _mix(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def weighted_rows(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """As many rows as there are, each as often as its weight says: the samples of an epoch before they are permuted.

    Systematic sampling: the rows, permuted by the epoch, lie one after the other on a line, as long as their
    weights, and points at equal distances, from a random start on, choose among them. So a row whose expected number
    is e comes floor(e) or ceil(e) times.

    Args:
        weights: (n,) positive numbers in any unit.
        seed, epoch: all that the result depends on besides.

    Returns:
        (n,) int64.
    """
    count = len(weights)
    rows = Permutation(count, seed, epoch, _WEIGHTED)(np.arange(count))
    ends = np.cumsum(weights[rows], dtype=np.float64)
    start = np.random.default_rng(np.random.SeedSequence([seed, epoch, _WEIGHTED])).random()
    points = (np.arange(count) + start) * (ends[-1] / count)
    return rows[np.searchsorted(ends, points, side="right").clip(max=count - 1)]


@dataclass
class EpochBatchSampler:
    """The micro-batches of one rank, as lists of (epoch, position, index).

    An epoch is a `Permutation` that (seed, epoch) gives, cut into windows of `batch_size * accumulation * world_size`
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
        order: one of `ORDERS`, that of the checkpoint where a run goes on.
        shards: of a data set of shards, whose epoch is a `ShardOrder`.
        weights: (num_samples,) how often each row is drawn, see `weighted_rows`; None draws each once. An epoch is as
            long as without.
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
    order: int = ORDER
    shards: Shards | None = None
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {self.rank} of world_size {self.world_size}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {self.order}")
        if self.weights is not None:
            weights = np.asarray(self.weights, np.float64)
            if weights.shape != (self.num_samples,) or not (np.isfinite(weights) & (weights > 0)).all():
                raise ValueError(f"weights must be {self.num_samples} positive numbers, one for each row")
            self.weights = weights

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
        rows = self._rows_by_position()
        drawn = None if self.weights is None else weighted_rows(self.weights, self.seed, self.epoch)
        for first in range(self.start_batch, len(self), _BATCHES_AT_A_TIME):
            batches = np.arange(first, min(first + _BATCHES_AT_A_TIME, len(self)))
            starts = (batches * self.world_size + self.rank) * self.batch_size
            positions = starts[:, None] + np.arange(self.batch_size)  # (batches, batch_size)
            samples = rows(positions) if drawn is None else drawn[rows(positions)]
            for batch, chosen in zip(positions.tolist(), samples.tolist(), strict=True):
                yield [(self.epoch, position, row) for position, row in zip(batch, chosen, strict=True)]

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Go to an epoch, and in it to the micro-batch `start_batch`; the next iteration begins there."""
        self.epoch, self.start_batch = epoch, start_batch

    def _rows_by_position(self) -> Callable[[np.ndarray], np.ndarray]:
        """What gives the rows at some positions of the present epoch."""
        total, count = self.num_windows * self.window_size, self.num_samples
        if not self.shuffle:
            return lambda positions: positions % count
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
        if count < MIN_WINDOWS * self.window_size:
            drawn = rng.integers(count, size=total)
            return lambda positions: drawn[positions]
        if self.order == 1:
            order = rng.permutation(count)
            order = np.concatenate([order, rng.permutation(count)[: total - count]])
            return lambda positions: order[positions]
        keys = [(self.seed, self.epoch, part) for part in (_ALL, _FILL)]
        shards = self.shards
        each, fill = (Permutation(count, *k) if shards is None else ShardOrder(shards, *k) for k in keys)

        def rows(positions: np.ndarray) -> np.ndarray:
            ahead = None if shards is None else shards.fetch_ahead
            if ahead is not None and isinstance(each, ShardOrder):
                ahead(each.shards_from(min(int(positions.flat[0]), count - 1), _WINDOWS_AHEAD))
            found = each(positions % count)
            beyond = positions >= count
            if beyond.any():
                found[beyond] = fill(positions[beyond] - count)
            return found

        return rows


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
