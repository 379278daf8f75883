import pytest
import torch
from helpers.plain_loss import cxcywh_to_xyxy, iou_and_giou, make_predictions, overlaps

from rfdetr_hf.losses.boxes import box_measures, box_terms, pair_terms


def every_pair(predicted, truth):
    return pair_terms(box_measures(predicted)[:, :, None], box_measures(truth)[:, None])


def test_measures():
    boxes = torch.tensor([[0.5, 0.4, 0.2, 0.6], [0.5, 0.5, -0.2, 0.2]], dtype=torch.float64)
    expected = [[0.5, 0.5], [0.4, 0.5], [0.1, 0.0], [0.3, 0.1], [0.12, 0.0], [0.0, 0.2]]
    torch.testing.assert_close(box_measures(boxes), torch.tensor(expected, dtype=torch.float64))


def test_pairs_against_plain_formula(rng):
    first, second = (make_predictions(rng, 1, count, 1)[1].detach()[0] for count in (7, 5))
    distance, giou = every_pair(first, second)
    expected = [[overlaps(a.tolist(), b.tolist())[1] for b in second] for a in first]
    torch.testing.assert_close(giou, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(distance, (first[:, None] - second).abs().sum(-1))
    assert (giou > 0).any() and (giou < 0).any()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_no_boxes(shape):
    distance, giou = pair_terms(*[box_measures(torch.ones(shape))] * 2)
    assert distance.shape == giou.shape == shape[:-1]


def test_known_values():
    box = torch.tensor([[1.0, 1.0, 2.0, 2.0]])
    cases = torch.tensor([[1.0, 1.0, 2.0, 2.0], [2.0, 1.0, 2.0, 2.0], [3.0, 3.0, 2.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
    distance, giou = every_pair(box, cases)
    assert distance.tolist() == [[0, 1, 4, 4]]
    assert giou[0].tolist() == pytest.approx([1, 1 / 3, -0.5, 0])


def test_pairs_that_touch_lie_within_are_points_or_of_negative_size(rng):
    predicted, truth = torch.rand(2, 64, 4, generator=rng, dtype=torch.float64)
    predicted[::4, 2:] *= 0.1
    predicted[1::4, 2:] = 0
    predicted[2::4, 2] *= -1
    predicted[3::8, :3] = truth[3::8, :3]
    truth[::3, 2:] = 0
    distance, giou = every_pair(predicted, truth)
    torch.testing.assert_close(giou, iou_and_giou(cxcywh_to_xyxy(predicted)[:, None], cxcywh_to_xyxy(truth))[1])
    torch.testing.assert_close(distance, (predicted[:, None] - truth).abs().sum(-1))
    assert every_pair(predicted[1:2], predicted[1:2])[1].item() == 0  # no area at all: not 0 / 0


def test_terms_of_pairs(rng):
    """Values, and the gradient by hand against that of the formulas; boxes that overlap, contain, miss, are empty."""
    predicted = torch.rand(64, 4, generator=rng, dtype=torch.float64)
    truth = torch.rand(64, 4, generator=rng, dtype=torch.float64)
    predicted[::4] *= 0.3
    truth[1::4, 2:] = predicted[1::4, 2:] / 2
    truth[1::4, :2] = predicted[1::4, :2]
    predicted[2::8, 2:] = 0
    truth[2::16, 2:] = 0
    predicted[6::8, 2] = -0.1
    truth[3::16] = predicted[3::16]  # all corners tie
    predicted.requires_grad_()
    distance, giou, iou = box_terms(predicted, truth)
    plain_iou, plain_giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
    plain_distance = (predicted - truth).abs().sum(-1)
    for ours, plain in ((distance, plain_distance), (giou, 1 - plain_giou), (iou, plain_iou)):
        torch.testing.assert_close(ours, plain, check_stride=False)
    assert not iou.requires_grad
    weights = torch.rand(2, 64, generator=rng, dtype=torch.float64)
    (ours,) = torch.autograd.grad((weights[0] * distance + weights[1] * giou).sum(), predicted)
    (plain,) = torch.autograd.grad((weights[0] * plain_distance + weights[1] * (1 - plain_giou)).sum(), predicted)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
