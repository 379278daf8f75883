"""The counter-based generator: its published numbers, and that what it draws is uniform and independent."""

import pytest
import torch

from rfdetr_hf.losses.points import RandomPoints, derive_seed, draw_points, scramble

GAMMA = 0x9E3779B97F4A7C15


def signed(number):
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def test_numbers_of_the_published_generator():
    """The first outputs of SplitMix64 from the states 0 and 1234567."""
    states = torch.tensor([0, signed(GAMMA), 1234567, signed(1234567 + GAMMA)])
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 6457827717110365317, 3203168211198807973]
    assert scramble(states).tolist() == [signed(number) for number in published]
    assert states.tolist()[0] == 0  # the argument is left as it is


def test_coordinates_are_the_upper_bits_of_the_stream():
    points = draw_points(torch.tensor([0, 1234567]), 2)
    assert points.shape == (2, 2, 2) and points.dtype == torch.float32
    assert points[0, 0].tolist() == [0xE220A8 / 2**24, 0x397B1D / 2**24]
    assert points[0, 1].tolist() == [0x6E789E / 2**24, 0x6AA1B9 / 2**24]
    assert points[1, 0, 0].item() == (6457827717110365317 >> 40) / 2**24


def keys_of(images, seed=0):
    return RandomPoints.of([{"image_id": torch.tensor(i)} for i in range(images)], seed, torch.device("cpu"))


def chi_square(cells, count):
    """Of occupation numbers, in standard deviations from its mean."""
    observed = torch.bincount(cells, minlength=count).double()
    expected = len(cells) / count
    return ((observed - expected).square().sum() / expected - (count - 1)) / (2 * (count - 1)) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, derive_seed(42, 7)])
def test_points_of_neighbouring_keys_are_uniform(seed):
    """16 x 16 cells of the square, over 1000 consecutive images of 400 points."""
    x, y = (keys_of(1000, seed).for_images(2, 400)[1].flatten(0, 1) * 16).long().unbind(-1)
    assert abs(chi_square(16 * x + y, 256)) < 4


def test_streams_are_independent():
    """Joint cells of points that share all of image, layer, query and position but one."""
    images, count = keys_of(500), 200
    pair = torch.arange(500), torch.zeros(500, dtype=torch.int64)

    def points(layer, image, query, images=images):
        return RandomPoints.draw(images.for_pairs(torch.full_like(image, layer), image, query), count)

    first = points(0, *pair)
    others = {
        "other query": points(0, pair[0], pair[1] + 1),
        "other layer": points(1, *pair),
        "of the image": images.for_images(1, count)[0],
        "next image": first.roll(1, dims=0),
        "next point": first.roll(1, dims=1),
        "next step": points(0, *pair, images=keys_of(500, 1)),
        "other coordinate": first.flip(-1),
    }
    for name, other in others.items():
        cells = 16 * (first[..., 0] * 16).long() + (other[..., 0] * 16).long()
        assert abs(chi_square(cells.flatten(), 256)) < 4.5, name


def test_points_of_an_image_do_not_depend_on_its_batch():
    targets = [{"image_id": torch.tensor([number])} for number in (5, 9, 2)]
    whole = RandomPoints.of(targets, 3, torch.device("cpu"))
    alone = RandomPoints.of(targets[1:2], 3, torch.device("cpu"))
    assert torch.equal(whole.for_images(3, 10)[:, 1:2], alone.for_images(3, 10))
    layer, query = torch.tensor([2]), torch.tensor([7])
    pairs = [each.for_pairs(layer, torch.tensor([n]), query) for each, n in ((whole, 1), (alone, 0))]
    assert torch.equal(*pairs)


def test_without_image_ids_the_position_counts():
    device = torch.device("cpu")
    assert torch.equal(RandomPoints.of([{}, {}], 0, device).keys, keys_of(2).keys)


def test_derived_seeds():
    seeds = [derive_seed(seed, step) for seed in range(30) for step in range(30)]
    assert len(set(seeds)) == 900
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    on_host = keys_of(20).for_images(3, 1000)
    on_device = RandomPoints(keys_of(20).keys.cuda()).for_images(3, 1000)
    assert torch.equal(on_device.cpu(), on_host)
