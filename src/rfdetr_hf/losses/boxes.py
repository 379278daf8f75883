"""Box geometry of the matching cost and of the box losses. All functions are elementwise over the last dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIN_AREA = 1e-7  # the floor under both denominators, so that boxes without area give 0 instead of 0/0


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn (..., 4) boxes from centre and size to corners; a negative size counts as 0."""
    centre, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of two broadcastable arrays of boxes, plain and generalised.

    Boxes that are paired row by row have the same shape; `first[:, None]` and `second` give every pair. No temporary is
    larger than twice the result.

    Args:
        first: (..., 4) corners x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, any unit.
        second: (..., 4) corners in the same unit.

    Returns:
        IoU in [0, 1] and generalised IoU in [-1, 1], both of the broadcast shape without the 4. Source of the latter:
        Rezatofighi et al., "Generalized Intersection over Union", 2019: IoU - (hull - union) / hull.
    """
    # Both coordinates of a corner at once.
    lower1, upper1, lower2, upper2 = first[..., :2], first[..., 2:], second[..., :2], second[..., 2:]
    gap = torch.minimum(upper1, upper2) - torch.maximum(lower1, lower2)
    sides1, sides2 = upper1 - lower1, upper2 - lower2
    hull = sides1 + sides2 - gap  # of two numbers the larger and the smaller one have their sum
    overlap = gap.clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = sides1[..., 0] * sides1[..., 1] + sides2[..., 0] * sides2[..., 1] - intersection
    iou = intersection / union.clamp(min=_MIN_AREA)
    area = hull[..., 0] * hull[..., 1]
    return iou, iou - (area - union) / area.clamp(min=_MIN_AREA)


class _BoxTerms(torch.autograd.Function):
    # By hand for the number of launches: autograd takes a dozen for each minimum and maximum. The derivatives are made
    # in the forward pass, where all that they need is at hand, so the backward pass only scales them.

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centre, size = torch.stack((predicted, truth)).split(2, -1)  # (2, M, 2) each
        half = size.clamp(min=0) / 2
        # Of overlap, prediction, hull and truth the lower corner negated, and the upper one: both ends are extremes of
        # one kind, and the sides are sums.
        corners = predicted.new_empty(4, *predicted.shape)
        torch.sub(half, centre, out=corners[1::2, :, :2])
        torch.add(half, centre, out=corners[1::2, :, 2:])
        torch.aminmax(corners[1::2], dim=0, out=(corners[0], corners[2]))
        sides = corners[..., :2] + corners[..., 2:]  # (4, M, 2)
        meets = sides[0] >= 0
        sides[0].clamp_(min=0)
        areas = sides.prod(-1)
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
        common, own, around = sides[:3].flip(-1).mul_(by_areas[..., None])  # (M, 2) each
        common.mul_(meets)
        # Whose corner it is that a side of overlap or hull ends at; both are at a tie.
        inner = torch.heaviside(corners[3] - corners[1], predicted.new_full((), 0.5)).unflatten(-1, (2, 2))
        at_lower, at_upper = (around[:, None].lerp(common[:, None], inner) + own[:, None]).unbind(1)
        slope = torch.empty_like(predicted)
        torch.sub(at_lower, at_upper, out=slope[:, :2])
        torch.add(at_lower, at_upper, out=slope[:, 2:]).mul_(-0.5).mul_(predicted[:, 2:] >= 0)
        offset = predicted - truth
        ctx.save_for_backward(offset.sign(), slope)
        ctx.mark_non_differentiable(iou)
        ctx.set_materialize_grads(False)
        return offset.abs().sum(-1), 1 - iou + empty, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, distance: Tensor | None, giou: Tensor | None, _: None) -> tuple[Tensor, None]:
        sign, slope = ctx.saved_tensors
        by_distance: Tensor = sign.new_zeros(len(sign)) if distance is None else distance
        by_giou: Tensor = sign.new_zeros(len(sign)) if giou is None else giou
        return torch.addcmul(sign * by_distance[:, None], slope, by_giou[:, None]), None


def box_terms(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of pairs of boxes: L1 distance and 1 - GIoU, both with gradient for the predicted boxes, and IoU without.

    Args:
        predicted, truth: (M, 4) cxcywh.

    Returns:
        (M,) each, see `iou_and_giou`.
    """
    return _BoxTerms.apply(predicted, truth)
