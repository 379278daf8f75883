"""The permutation that takes no memory, and the epochs made of it."""

import collections
import itertools
import math
import tracemalloc

import numpy as np
import pytest

from rfdetr_hf.data.pipeline.order import ORDER, EpochBatchSampler, EvalBatchSampler, Permutation, ShardOrder, Shards

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 97, 251, 255, 256, 257, 4_095, 4_097, 65_535, 65_536, 65_537, 1_000_000]


def naive(size, key, position):
    """The same permutation in Python's integers, one position at a time."""
    bits = max(size - 1, 0).bit_length()
    low_bits = bits - bits // 2
    keys = [int(k) for k in np.random.SeedSequence(key).generate_state(24 if bits <= 3 else 8, np.uint64)]
    mask = (1 << 64) - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    number = position
    while True:
        high, low = number >> low_bits, number & ((1 << low_bits) - 1)
        for index, each in enumerate(keys):
            if index % 2:
                low ^= mix((high + each) & mask) & ((1 << low_bits) - 1)
            else:
                high ^= mix((low + each) & mask) & ((1 << (bits // 2)) - 1)
        number = (high << low_bits) | low
        if number < size:
            return number


def chi_square_is_plausible(counts, freedom):
    """Within five deviations of what chance gives; `counts` of cells that are equally likely."""
    counts = np.asarray(counts, float).ravel()
    expected = counts.mean()
    chi = ((counts - expected) ** 2 / expected).sum()
    return abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", SIZES)
def test_every_number_comes_once(size):
    for key in ((0, 0), (1, 5)):
        numbers = Permutation(size, *key)(np.arange(size))
        assert numbers.dtype == np.int64 and numbers.min() == 0 and numbers.max() == size - 1
        assert len(np.unique(numbers)) == size


@pytest.mark.parametrize("size", [1, 2, 3, 5, 97, 257, 1_000_003, 10**9, (1 << 62) - 1])
def test_positions_give_what_a_naive_reference_gives(size):
    positions = np.unique(np.linspace(0, size - 1, min(size, 500)).astype(np.int64).clip(0, size - 1))
    ours = Permutation(size, 7, 3, 1)(positions.reshape(1, -1))
    assert ours.shape == (1, len(positions))
    assert ours.ravel().tolist() == [naive(size, (7, 3, 1), position) for position in positions.tolist()]


@pytest.mark.slow
def test_the_first_million_positions_of_a_billion_are_those_of_the_naive_reference():
    ours = Permutation(10**9, 42, 0, 0)(np.arange(10**6))
    assert ours.tolist() == [naive(10**9, (42, 0, 0), position) for position in range(10**6)]


def test_the_numbers_stay_as_they_are():
    """Another result would be another order of the samples, which needs another version."""
    assert ORDER == 2
    assert Permutation(10, 42, 0, 0)(np.arange(10)).tolist() == [5, 4, 9, 2, 3, 7, 8, 6, 0, 1]
    assert Permutation(10**9, 42, 3, 0)(np.arange(5)).tolist() == [589149812, 417589475, 73199787, 457939761, 916578266]


@pytest.mark.parametrize("size", [0, -1, (1 << 62) + 1])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match="size must be in"):
        Permutation(size, 0)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_few_numbers_are_equally_frequent(size):
    counts = collections.Counter(tuple(Permutation(size, key)(np.arange(size)).tolist()) for key in range(6_000))
    assert chi_square_is_plausible(
        [counts[each] for each in itertools.permutations(range(size))], math.factorial(size) - 1
    )


@pytest.mark.parametrize("size", [1_000_000, 1_048_577])
@pytest.mark.parametrize("distance", [1, 8, 64])  # neighbours, and the same place in the next window
def test_pairs_at_a_distance_are_independent(size, distance):
    cells = 32
    numbers = Permutation(size, 3, 1)(np.arange(200_000)) * cells // size
    pairs = np.bincount(numbers[:-distance] * cells + numbers[distance:], minlength=cells * cells)
    assert chi_square_is_plausible(pairs, cells * cells - 1)


def test_seeds_epochs_and_parts_have_permutations_of_their_own():
    size = 5_000
    keys = [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (0, 1, 0)]
    orders = [Permutation(size, *key)(np.arange(size)) for key in keys]
    for first, second in itertools.combinations(orders, 2):
        assert (first == second).sum() < 10  # one is expected
    # And the pairs that two orders form at a place are independent.
    pairs = np.bincount(orders[0] * 16 // size * 16 + orders[2] * 16 // size, minlength=256)
    assert chi_square_is_plausible(pairs, 255)


def test_a_billion_images_take_no_memory_and_begin_anywhere():
    tracemalloc.start()
    try:
        sampler = EpochBatchSampler(10**9, 8, accumulation=2, world_size=4, rank=3, seed=1)
        assert len(sampler) == 2 * 15_625_000
        sampler.set_epoch(2, start_batch=31_000_000)
        batches = list(itertools.islice(iter(sampler), 1_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000
    rows = [row for batch in batches for _, _, row in batch]
    assert len(set(rows)) == 8_000 and max(rows) < 10**9
    assert batches[0][0][:2] == (2, (31_000_000 * 4 + 3) * 8)
    order = Permutation(10**9, 1, 2, 0)
    assert rows[:8] == order(np.arange(8) + batches[0][0][1]).tolist()


def test_an_earlier_order_is_kept_and_an_unknown_one_refused():
    keys = [key for batch in EpochBatchSampler(100, 4, seed=5, epoch=2, order=1) for key in batch]
    expected = np.random.default_rng(np.random.SeedSequence([5, 2])).permutation(100)
    assert [row for *_, row in keys] == expected.tolist()
    assert [key for batch in EpochBatchSampler(100, 4, seed=5, epoch=2) for key in batch] != keys
    with pytest.raises(ValueError, match="order must be one of"):
        EpochBatchSampler(100, 4, order=3)


# -------------------------------------------------------------------------------------------------------- shards

COUNTS = [[1], [5], [3, 1, 4, 1, 5, 9, 2, 6], [10] * 7, [1] * 12, [100, 1, 1, 100]]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_every_row_of_the_shards_comes_once_and_a_window_keeps_to_its_shards(counts, window):
    rows = np.array(counts)
    order = ShardOrder(Shards(rows, window), 4, 1, 0)
    found = order(np.arange(rows.sum()))
    assert sorted(found.tolist()) == list(range(rows.sum()))
    shard_of = np.repeat(np.arange(len(rows)), rows)[found]
    places = order.shards_from(0, len(rows))
    assert sorted(places) == list(range(len(rows)))
    start = 0
    for first in range(0, len(rows), window):
        of_window = places[first : first + window]
        size = rows[of_window].sum()
        assert set(shard_of[start : start + size]) == set(of_window)
        assert order.shards_from(start + size - 1, 1) == of_window
        start += size
    # Position by position, and in any shape, the rows are the same.
    assert [int(order(np.array([position]))[0]) for position in range(rows.sum())] == found.tolist()
    assert order(np.arange(rows.sum()).reshape(1, -1, 1)).ravel().tolist() == found.tolist()


def test_rows_of_a_window_are_mixed_and_windows_differ():
    rows = np.full(64, 500)
    order = ShardOrder(Shards(rows, 8), 1, 0, 0)
    found = order(np.arange(32_000))
    shards = found // 500
    for window in range(8):
        part = shards[window * 4_000 : (window + 1) * 4_000]
        names = {shard: place for place, shard in enumerate(sorted(set(part.tolist())))}
        place = np.array([names[shard] for shard in part.tolist()])
        pairs = np.bincount(place[:-1] * 8 + place[1:], minlength=64)
        assert chi_square_is_plausible(pairs, 63)
    inside = found % 500  # the place in the shard at the same place of two windows
    pairs = np.bincount(inside[:28_000] // 50 * 10 + inside[4_000:] // 50, minlength=100)
    assert chi_square_is_plausible(pairs, 99)
    assert (ShardOrder(Shards(rows, 8), 1, 1, 0)(np.arange(32_000)) == found).sum() < 20


def test_epochs_of_shards_are_the_same_however_windows_are_split_and_say_what_comes():
    rows = np.array([30, 20, 25, 28])
    expected = None
    for split in [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2)]:
        batch_size, accumulation, world_size = split
        asked = []
        keys = []
        for rank in range(world_size):
            sampler = EpochBatchSampler(
                103, batch_size, accumulation=accumulation, rank=rank, world_size=world_size, seed=3, epoch=1,
                shards=Shards(rows, 2, asked.append),
            )  # fmt: skip
            keys += [key for batch in sampler for key in batch]
            assert asked and sorted(asked[0]) == [0, 1, 2, 3]
        keys = sorted(keys)
        expected = expected or keys
        assert keys == expected
    assert sorted(row for *_, row in expected[:103]) == list(range(103)) and len(expected) == 104
    few = [key for batch in EpochBatchSampler(20, 8, shards=Shards(np.array([10, 10]), 1)) for key in batch]
    assert few == [key for batch in EpochBatchSampler(20, 8) for key in batch]


def test_a_billion_rows_in_shards_take_little_memory():
    rows = np.full(100_000, 10_000)
    tracemalloc.start()
    try:
        sampler = EpochBatchSampler(10**9, 8, seed=1, shards=Shards(rows, 8))
        sampler.set_epoch(1, start_batch=10**8)
        batches = list(itertools.islice(iter(sampler), 200))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    found = {row // 10_000 for batch in batches for *_, row in batch}
    assert len(found) <= 8


def windows(num_samples, batch_size, accumulation, world_size, **options):
    """The set of keys of each optimizer step."""
    ranks = [
        list(EpochBatchSampler(num_samples, batch_size, accumulation=accumulation, rank=rank, world_size=world_size,
                               **options))
        for rank in range(world_size)
    ]  # fmt: skip
    steps = range(0, len(ranks[0]), accumulation)
    return [sorted(itertools.chain(*(key for r in ranks for key in r[i : i + accumulation]))) for i in steps]


@pytest.mark.parametrize("num_samples", [7, 37, 100, 104])
@pytest.mark.parametrize("shuffle", [True, False])
def test_windows_do_not_depend_on_how_they_are_split(num_samples, shuffle):
    splits = [(8, 1, 1), (4, 2, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8), (1, 4, 2), (4, 1, 2)]
    expected, *others = [windows(num_samples, *split, seed=3, epoch=2, shuffle=shuffle) for split in splits]
    assert all(other == expected for other in others)
    assert all(len({position for _, position, _ in window}) == 8 for window in expected)
    positions = [position for window in expected for _, position, _ in window]
    assert sorted(positions) == list(range(8 * len(expected)))


@pytest.mark.parametrize(
    ("num_samples", "expected"), [(1, 5), (39, 5), (40, 5), (41, 6), (100, 13), (104, 13), (105, 14)]
)
def test_whole_windows_and_at_least_five(num_samples, expected):
    sampler = EpochBatchSampler(num_samples, 2, accumulation=2, world_size=2, rank=1)
    assert len(list(sampler)) == len(sampler) == 2 * expected


def indices(num_samples, epoch, **options):
    keys = itertools.chain(*EpochBatchSampler(num_samples, 8, seed=1, epoch=epoch, **options))
    return [index for _, _, index in keys]


def test_every_image_comes_once_and_the_fill_is_drawn_anew():
    epochs = [indices(100, epoch) for epoch in range(3)]
    for order in epochs:
        assert sorted(order[:100]) == list(range(100))
        assert len(order) == 104 and len(set(order[100:])) == 4
    assert epochs[0] != epochs[1]
    assert len({tuple(sorted(order[100:])) for order in epochs}) == 3
    assert indices(100, 0, shuffle=False) == [*range(100), 0, 1, 2, 3]


def test_small_sets_are_drawn_with_replacement():
    order = indices(39, 0)
    assert len(order) == 40 and set(order) <= set(range(39))
    assert max(order.count(index) for index in order) > 2
    assert sorted(indices(40, 0)) == list(range(40))
    assert indices(3, 0, shuffle=False)[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_another_split_of_the_window_goes_on_with_the_same_samples():
    sampler = EpochBatchSampler(100, 4, accumulation=2, seed=1, epoch=3)
    resumed = [EpochBatchSampler(100, 2, accumulation=2, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for other in resumed:
        other.set_epoch(3, start_batch=6)
    keys = sorted(itertools.chain(*itertools.chain(*resumed)))
    assert keys == sorted(itertools.chain(*list(sampler)[6:]))


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"batch_size": 0}, {"accumulation": 0}, {"rank": 2}])
def test_impossible_splits_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EpochBatchSampler(**{"num_samples": 9, "batch_size": 1, "world_size": 2, **options})


@pytest.mark.parametrize("num_samples", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once(num_samples, world_size):
    samplers = [EvalBatchSampler(num_samples, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]
    keys = list(itertools.chain(*itertools.chain(*samplers)))
    assert sorted(index for _, _, index in keys) == list(range(num_samples))
    assert all(len(batch) <= 2 for sampler in samplers for batch in sampler)
