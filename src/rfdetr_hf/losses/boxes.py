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
        boxes = torch.stack((predicted, truth))  # (2, M, 4)
        half = boxes[..., 2:].clamp(min=0) / 2
        lower, upper = boxes[..., :2] - half, boxes[..., :2] + half  # (2, M, 2)
        gap = upper.amin(0) - lower.amax(0)
        hull = upper.amax(0) - lower.amin(0)
        sides = torch.cat((upper - lower, gap.clamp(min=0)[None], hull[None]))  # (4, M, 2)
        area1, area2, intersection, hull = sides.prod(-1)  # (M,) each
        union = area1 + area2 - intersection
        areas = torch.stack((union, hull))
        floored, (union_counts, hull_counts) = areas.clamp(min=_MIN_AREA), areas >= _MIN_AREA
        (union_floored, hull_floored), (per_union, per_hull) = floored, floored.reciprocal()
        iou = intersection / union_floored
        empty = (hull - union) / hull_floored  # GIoU = iou - empty
        # Derivatives of GIoU by the areas of union, hull and intersection, the latter also as a part of the union.
        by_union = per_hull - iou * per_union * union_counts
        by_hull = (empty * hull_counts - 1) * per_hull
        by_overlap = per_union - by_union
        own, _, common, around = sides.flip(-1)  # what an area changes by with a side is the other side
        own, around = own * by_union[:, None], around * by_hull[:, None]
        common = common * by_overlap[:, None] * (gap >= 0)
        # Whose corner it is that a side of overlap or hull ends at; both are at a tie.
        inner = torch.stack((upper[1] - upper[0], lower[0] - lower[1]))
        at_upper, at_lower = own + around.lerp(common, torch.heaviside(inner, predicted.new_full((), 0.5)))
        slope = torch.cat((at_lower - at_upper, (at_upper + at_lower) * -0.5 * (predicted[:, 2:] >= 0)), -1)
        offset = predicted - truth
        ctx.save_for_backward(offset.sign(), slope)
        ctx.mark_non_differentiable(iou)
        return offset.abs().sum(-1), 1 - iou + empty, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, distance: Tensor, giou: Tensor, _: Tensor) -> tuple[Tensor, None]:
        sign, slope = ctx.saved_tensors
        return torch.addcmul(sign * distance[:, None], slope, giou[:, None]), None


def box_terms(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of pairs of boxes: L1 distance and 1 - GIoU, both with gradient for the predicted boxes, and IoU without.

    Args:
        predicted, truth: (M, 4) cxcywh.

    Returns:
        (M,) each, see `iou_and_giou`.
    """
    return _BoxTerms.apply(predicted, truth)
