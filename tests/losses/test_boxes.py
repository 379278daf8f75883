import pytest
import torch
from helpers.plain_loss import make_predictions, overlaps

from rfdetr_hf.losses.boxes import box_terms, cxcywh_to_xyxy, iou_and_giou


def test_conversion():
    boxes = torch.tensor([[0.5, 0.4, 0.2, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), torch.tensor([[0.4, 0.1, 0.6, 0.7]], dtype=torch.float64))


def test_negative_size_counts_as_zero():
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.5, -0.2, 0.2])).tolist() == pytest.approx([0.5, 0.4, 0.5, 0.6])


def test_pairs_against_plain_formula():
    generator = torch.Generator().manual_seed(0)
    first = make_predictions(generator, 1, 7, 1)[1].detach()[0]
    second = make_predictions(generator, 1, 5, 1)[1].detach()[0]
    iou, giou = iou_and_giou(cxcywh_to_xyxy(first)[:, None], cxcywh_to_xyxy(second))
    expected = [[overlaps(a.tolist(), b.tolist()) for b in second] for a in first]
    torch.testing.assert_close(torch.stack((iou, giou), -1), torch.tensor(expected, dtype=torch.float64))
    assert (iou > 0).any() and (giou < 0).any()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_no_boxes(shape):
    assert iou_and_giou(torch.ones(shape), torch.ones(shape))[0].shape == shape[:-1]


def test_known_values():
    box = torch.tensor([0.0, 0.0, 2.0, 2.0])
    cases = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 2.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    iou, giou = iou_and_giou(box, cases)
    assert iou.tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert giou.tolist() == pytest.approx([1, 1 / 3, -0.5, 0])


def test_boxes_without_area_are_finite_with_gradient():
    point = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    iou, giou = iou_and_giou(cxcywh_to_xyxy(point), cxcywh_to_xyxy(point.detach()))
    (iou + giou).backward()
    assert iou.isfinite() and giou.isfinite() and point.grad.isfinite().all()


def test_gradient():
    generator = torch.Generator().manual_seed(1)
    first, second = (make_predictions(generator, 1, 4, 1)[1] for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda a, b: iou_and_giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)), (first, second.detach())
    )


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
