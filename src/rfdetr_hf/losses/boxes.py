"""Box geometry of the matching cost and of the box losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIN_AREA = 1e-7  # the floor under both denominators, so that boxes without area give 0 instead of 0/0


def box_measures(boxes: Tensor) -> Tensor:
    """What `pair_terms` reads of cxcywh boxes (..., 4), number by number so that each is read in one run.

    Returns:
        (6, ...): centre x and y, half the width and half the height, the area, and by how much sizes lie below 0. A
        negative size counts as 0 in all but the last.
    """
    centre, size = boxes.movedim(-1, 0).split(2)  # (2, ...) each
    sides = size.clamp(min=0)
    return torch.cat((centre, sides / 2, sides[:1] * sides[1:], (sides - size).sum(0, keepdim=True)))


def pair_terms(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance of cxcywh and generalised IoU of boxes that are given by their `box_measures`, without gradient.

    Along an axis two boxes with half sizes a and b, whose centres lie d apart, overlap by a + b - max(d, |a - b|), and
    their hull is a + b + max(d, |a - b|) long. So the distances of the L1 distance give the corners as well.

    Args:
        predicted: (6, ...).
        truth: (6, ...) of boxes without negative sizes; both are broadcast, to every pair or to pairs row by row.

    Returns:
        Both of the broadcast shape without the 6; generalised IoU in [-1, 1]. Source of the latter: Rezatofighi et al.,
        "Generalized Intersection over Union", 2019: IoU - (hull - union) / hull.
    """
    apart = (predicted[:4] - truth[:4]).abs_()
    shift, change = apart.split(2)  # (2, ...) each, x and y
    reach = torch.maximum(shift, change)
    overlap = predicted[2:4] + truth[2:4]
    hull = overlap + reach
    overlap.sub_(reach).clamp_(min=0)
    intersection, area = overlap[0].mul_(overlap[1]), hull[0].mul_(hull[1])
    union = (predicted[4] + truth[4]).sub_(intersection)
    empty = (area - union).div_(area.clamp_(min=_MIN_AREA))
    giou = intersection.div_(union.clamp_(min=_MIN_AREA)).sub_(empty)
    distance = shift.add_(change, alpha=2)
    return distance[0].add_(distance[1]).add_(predicted[5]), giou


class _BoxTerms(torch.autograd.Function):
    # By hand for the number of launches: autograd takes a dozen for each minimum and maximum. The derivatives are made
    # in the forward pass, where all that they need is at hand, so the backward pass only scales them.

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Number by number, (2, 2, M) each, so that all is read in runs.
        centre, size = torch.stack((predicted.T, truth.T)).split(2, 1)
        half = size.clamp(min=0) / 2
        # Of overlap, prediction, hull and truth the lower corner negated, and the upper one: both ends are extremes of
        # one kind, and the sides are sums.
        corners = predicted.new_empty(4, 4, len(predicted))
        torch.sub(half, centre, out=corners[1::2, :2])
        torch.add(half, centre, out=corners[1::2, 2:])
        torch.aminmax(corners[1::2], dim=0, out=(corners[0], corners[2]))
        sides = corners[:, :2] + corners[:, 2:]  # (4, 2, M)
        meets = sides[0] >= 0
        sides[0].clamp_(min=0)
        areas = sides.prod(1)
        intersection, area, hull, union = areas  # (M,) each
        union.add_(area).sub_(intersection)
        floored, counted = areas[2:].clamp(min=_MIN_AREA), areas[2:] >= _MIN_AREA
        iou = intersection / floored[1]
        empty = (hull - union) / floored[0]  # GIoU = iou - empty
        # Derivatives of GIoU by the areas of intersection, the latter also as a part of the union, union and hull.
        per_hull, per_union = per_area = floored.reciprocal()
        hull_slope, union_slope = per_area * counted
        by_areas = areas.new_empty(3, len(iou))
        torch.addcmul(per_hull, iou, union_slope, value=-1, out=by_areas[1])
        torch.sub(per_union, by_areas[1], out=by_areas[0])
        torch.mul(empty, hull_slope, out=by_areas[2]).sub_(per_hull)
        # What an area changes by with a side is the other side.
        common, own, around = sides[:3].flip(1).mul_(by_areas[:, None])  # (2, M) each
        common.mul_(meets)
        # Whose corner it is that a side of overlap or hull ends at; both are at a tie.
        inner = torch.heaviside(corners[3] - corners[1], predicted.new_full((), 0.5)).unflatten(0, (2, 2))
        at_lower, at_upper = (around.lerp(common, inner) + own).unbind()
        slope = torch.empty_like(corners[0])
        torch.sub(at_lower, at_upper, out=slope[:2])
        torch.add(at_lower, at_upper, out=slope[2:]).mul_(-0.5).mul_(size[0] >= 0)
        offset = torch.sub(predicted.T, truth.T, out=torch.empty_like(slope))
        ctx.save_for_backward(offset.sign(), slope)
        ctx.mark_non_differentiable(iou)
        ctx.set_materialize_grads(False)
        return offset.abs().sum(0), 1 - iou + empty, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, distance: Tensor | None, giou: Tensor | None, _: None) -> tuple[Tensor, None]:
        sign, slope = ctx.saved_tensors
        by_distance: Tensor = sign.new_zeros(sign.shape[1]) if distance is None else distance
        by_giou: Tensor = sign.new_zeros(sign.shape[1]) if giou is None else giou
        return torch.addcmul(sign * by_distance, slope, by_giou).T, None


def box_terms(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of pairs of boxes: L1 distance and 1 - GIoU, both with gradient for the predicted boxes, and IoU without.

    Args:
        predicted, truth: (M, 4) cxcywh.

    Returns:
        (M,) each. A negative size counts as 0 in all but the distance, see `pair_terms`.
    """
    return _BoxTerms.apply(predicted, truth)
