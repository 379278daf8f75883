import math

import pytest
import torch

from rfdetr_hf.models.geometry import (
    anchor_boxes,
    canvas_anchors,
    full_sizes,
    geometry_dtype,
    level_padding,
    refine_boxes,
    sampling_frames,
    sine_embedding,
    valid_sizes,
)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2],
)
def test_geometry_is_at_least_float32(dtype, expected):
    assert geometry_dtype(dtype) == expected
    assert refine_boxes(torch.zeros(1, 4, dtype=dtype), torch.ones(1, 4, dtype=dtype)).dtype == expected


def test_refine_moves_the_centre_by_the_size_and_scales_the_size():
    reference = torch.tensor([0.5, 0.4, 0.2, 0.1])
    refined = refine_boxes(torch.tensor([0.5, -1.0, math.log(2.0), 0.0]), reference)
    torch.testing.assert_close(refined, torch.tensor([0.6, 0.3, 0.4, 0.1]))
    torch.testing.assert_close(refine_boxes(torch.zeros(4), reference), reference)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (3, 4)), ((3, 4), (2, 3, 4)), ((3, 4), (3, 4))])
def test_refining_has_the_derivatives_of_its_formula(rng, shapes):
    inputs = [torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(refine_boxes, inputs)
    with torch.no_grad():
        plain = refine_boxes(*inputs)
    torch.testing.assert_close(refine_boxes(*inputs), plain)


def test_sine_embedding_by_its_definition():
    box, width = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), 6
    expected = []
    for coordinate in (0.2, 0.1, 0.3, 0.4):  # y, x, w, h
        for k in range(width):
            argument = 2 * math.pi * coordinate / 10000 ** (2 * (k // 2) / width)
            expected.append(math.sin(argument) if k % 2 == 0 else math.cos(argument))
    torch.testing.assert_close(sine_embedding(box, width), torch.tensor(expected, dtype=torch.float64))


def test_a_cell_is_padding_if_its_top_left_pixel_is():
    mask = torch.ones(1, 8, 8, dtype=torch.int64)
    mask[:, :, 5:] = 0  # the second cell of a row keeps its first pixel
    (padding,) = level_padding(mask, [(2, 2)])
    assert padding.tolist() == [[[False, False], [False, False]]]
    mask[:, :, 4:] = 0
    (padding,) = level_padding(mask, [(2, 2)])
    assert padding.tolist() == [[[False, True], [False, True]]]


def test_valid_sizes_are_width_then_height():
    padding = torch.ones(1, 4, 6, dtype=torch.bool)
    padding[:, :3, :2] = False
    assert valid_sizes(padding).tolist() == [[2.0, 3.0]]
    assert torch.equal(full_sizes(2, (4, 6), torch.device("cpu")), valid_sizes(torch.zeros(2, 4, 6, dtype=torch.bool)))


def test_anchors_are_cell_centres_with_a_size_for_each_level():
    shapes = [(2, 4), (1, 2)]
    anchors, inside = anchor_boxes(shapes, [full_sizes(1, shape, torch.device("cpu")) for shape in shapes])
    assert anchors.shape == (1, 10, 4)
    torch.testing.assert_close(anchors[0, 5], torch.tensor([1.5 / 4, 1.5 / 2, 0.05, 0.05]))
    torch.testing.assert_close(anchors[0, 9], torch.tensor([1.5 / 2, 0.5, 0.1, 0.1]))
    assert inside.all()


def test_anchors_of_a_whole_canvas_are_those_without_padding():
    shapes = [(36, 24), (18, 120), (1, 1)]
    anchors, inside = anchor_boxes(shapes, [full_sizes(1, shape, torch.device("cpu")) for shape in shapes])
    boxes, invalid = canvas_anchors(*shapes)
    assert 0 < invalid.sum() < len(invalid)  # 0.5 / 120 is too near to the border
    assert torch.equal(torch.from_numpy(invalid), ~inside[0])
    assert torch.equal(torch.from_numpy(boxes), anchors[0] * inside[0][:, None])


def test_sampling_frames_place_offsets_in_the_grid():
    frames = sampling_frames(torch.tensor([0.25, 0.5, 0.2, 0.4]), 4)
    # centre + offset / 4 * size / 2, from [0, 1] to [-1, 1]
    location = torch.tensor([0.25 + 3 / 4 * 0.1, 0.5 - 2 / 4 * 0.2])
    torch.testing.assert_close(frames[:2] + torch.tensor([3.0, -2.0]) * frames[2:], 2 * location - 1)


def test_anchors_are_relative_to_the_image_without_padding():
    anchors, inside = anchor_boxes([(4, 4)], [torch.tensor([[2.0, 4.0]])])
    torch.testing.assert_close(anchors[0, 1, :2], torch.tensor([0.75, 0.125]))
    assert not inside[0, 2]  # centre at 1.25


@pytest.mark.parametrize(("side", "outside"), [(49, 0), (50, 196), (52, 204), (64, 252)])
def test_outermost_ring_is_invalid_from_fifty_cells_on(side, outside):
    _, inside = anchor_boxes([(side, side)], [full_sizes(1, (side, side), torch.device("cpu"))])
    assert int((~inside).sum()) == outside
