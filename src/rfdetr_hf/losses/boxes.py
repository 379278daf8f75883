"""Box geometry of the matching cost and of the box losses. All functions are elementwise over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_AREA = 1e-7  # the floor under both denominators, so that boxes without area give 0 instead of 0/0


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn (..., 4) boxes from centre and size to corners; a negative size counts as 0."""
    x, y, width, height = boxes.unbind(-1)
    half_width, half_height = width.clamp(min=0) / 2, height.clamp(min=0) / 2
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of two broadcastable arrays of boxes, plain and generalised.

    Boxes that are paired row by row have the same shape; `first[:, None]` and `second` give every pair. The boxes are
    taken coordinate by coordinate, so no temporary is larger than the result.

    Args:
        first: (..., 4) corners x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, any unit.
        second: (..., 4) corners in the same unit.

    Returns:
        IoU in [0, 1] and generalised IoU in [-1, 1], both of the broadcast shape without the 4. Source of the latter:
        Rezatofighi et al., "Generalized Intersection over Union", 2019: IoU - (hull - union) / hull.
    """
    left1, top1, right1, bottom1 = first.unbind(-1)
    left2, top2, right2, bottom2 = second.unbind(-1)
    area1 = (right1 - left1) * (bottom1 - top1)
    area2 = (right2 - left2) * (bottom2 - top2)
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = width * height
    union = area1 + area2 - intersection
    iou = intersection / union.clamp(min=_MIN_AREA)
    hull_width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    hull = hull_width * hull_height
    return iou, iou - (hull - union) / hull.clamp(min=_MIN_AREA)
