import random
from collections import Counter

import numpy as np
import pytest
import torch

from rfdetr_hf import compute_scales
from rfdetr_hf.training.multi_scale import scale_for_step


@pytest.mark.parametrize(
    ("resolution", "patch_size", "num_windows", "first", "last"),
    [
        (384, 16, 2, 224, 544),
        (512, 16, 2, 352, 672),
        (576, 16, 2, 416, 736),
        (560, 14, 4, 280, 840),
        (704, 16, 2, 544, 864),
        (312, 12, 1, 252, 372),
        (384, 12, 2, 264, 504),
        (432, 12, 2, 312, 552),
        (504, 12, 2, 384, 624),
        (624, 12, 2, 504, 744),
        (768, 12, 2, 648, 888),
        (576, 12, 2, 456, 696),
    ],
)
def test_expanded_scales_of_the_official_variants(resolution, patch_size, num_windows, first, last):
    scales = compute_scales(resolution, patch_size, num_windows)
    assert scales == list(range(first, last + 1, patch_size * num_windows))
    assert len(scales) == 11


def test_plain_scales():
    assert compute_scales(560, 14, 4, expanded=False) == [392, 448, 504, 560, 616, 672, 728, 784]
    assert compute_scales(384, 16, 2, expanded=False) == [288, 320, 352, 384, 416, 448, 480, 512]


def test_small_resolutions_keep_two_blocks():
    assert compute_scales(64, 16, 2) == [64, 96, 128, 160, 192, 224]
    assert compute_scales(32, 16, 2) == [64, 96, 128, 160, 192]


@pytest.mark.parametrize(("resolution", "remedy"), [(400, "use 384"), (0, "use 32"), (-32, "use 32"), (10, "use 32")])
def test_a_resolution_off_the_grid_is_an_error(resolution, remedy):
    with pytest.raises(ValueError, match=remedy):
        compute_scales(resolution, 16, 2)


def test_draws_are_fixed_forever():
    """Written down once: another value here means that resumed runs see other sizes."""
    assert [scale_for_step(range(11), 42, step) for step in range(10)] == [10, 3, 9, 2, 3, 4, 10, 7, 2, 0]


def test_draws_depend_on_seed_and_step_alone():
    scales = compute_scales(384, 16, 2)
    first = [scale_for_step(scales, 7, step) for step in range(50)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    assert [scale_for_step(scales, 7, step) for step in range(50)] == first
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert [scale_for_step(scales, 8, step) for step in range(50)] != first
    assert scale_for_step([640], 3, 5) == 640


def test_draws_are_uniform_and_uncorrelated():
    scales, steps = compute_scales(384, 16, 2), 11_000
    draws = [scale_for_step(scales, 0, step) for step in range(steps)]
    expected = steps / len(scales)
    # 99.9th percentile of chi-square: 29.6 with 10 degrees of freedom, 173.6 with 120.
    assert sum((count - expected) ** 2 / expected for count in Counter(draws).values()) < 29.6
    pairs = Counter(zip(draws[::2], draws[1::2], strict=True))
    expected = steps / 2 / len(scales) ** 2
    cells = [pairs[first, second] for first in scales for second in scales]
    assert sum((count - expected) ** 2 / expected for count in cells) < 173.6
