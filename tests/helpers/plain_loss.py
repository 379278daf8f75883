"""Matching and losses once more: one layer, one group, one image and one pair at a time, in formulas of its own."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from helpers.scripts import load_script

# The other spelled-out criterion, that of the benchmark, has these of whole arrays, with gradient.
_BENCHMARK = load_script("benchmarks/criterion.py")
cxcywh_to_xyxy, iou_and_giou = _BENCHMARK.cxcywh_to_xyxy, _BENCHMARK.iou_and_giou
CLASSES = 5
CONFIG = SimpleNamespace(
    class_cost=2.0,
    bbox_cost=5.0,
    giou_cost=2.0,
    focal_alpha=0.25,
    class_loss_coefficient=1.0,
    bbox_loss_coefficient=5.0,
    giou_loss_coefficient=2.0,
    auxiliary_loss=True,
    decoder_layers=3,
)


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def overlaps(first, second):
    """IoU and generalised IoU of two cxcywh boxes (sequences of 4 numbers or 0-d tensors)."""
    a, b = corners(first), corners(second)
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = first[2] * first[3] + second[2] * second[3] - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union, shared / union - (hull - union) / hull


def pair_cost(logit, box, wanted):
    p = 1 / (1 + math.exp(-logit))
    positive = -0.25 * (1 - p) ** 2 * math.log(p)
    negative = -0.75 * p**2 * math.log(1 - p)
    distance = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    return 2 * (positive - negative) + 5 * distance - 2 * overlaps(box, wanted)[1]


def match(logits, boxes, targets, groups):
    """All (image, row, object of that image) of one layer."""
    logits, boxes = logits.detach(), boxes.detach()
    found = []
    for image, group in itertools.product(range(len(targets)), range(groups)):
        labels, wanted = targets[image]["class_labels"].tolist(), targets[image]["boxes"].tolist()
        rows = range(group * logits.shape[1] // groups, (group + 1) * logits.shape[1] // groups)
        cost = [
            [pair_cost(logits[image, row, label].item(), boxes[image, row].tolist(), box) for row in rows]
            for label, box in zip(labels, wanted, strict=True)
        ]
        if cost:
            picked, column = linear_sum_assignment(np.array(cost))
            found += [(image, rows[c], t) for t, c in zip(picked.tolist(), column.tolist(), strict=True)]
    return found


def layer_losses(logits, boxes, targets, groups, divisor):
    """(loss_ce, loss_bbox, loss_giou) of one layer."""
    matches = match(logits, boxes, targets, groups)
    p = logits.sigmoid()
    ce, l1, giou_loss = [-(p**2) * (1 - p).log()], [boxes.new_zeros(())], [boxes.new_zeros(())]
    for image, row, index in matches:
        label, wanted = targets[image]["class_labels"][index], targets[image]["boxes"][index]
        iou, giou = overlaps(boxes[image, row], wanted)
        q = p[image, row, label]
        t = max(q.item() ** 0.25 * iou.item() ** 0.75, 0.01)
        ce.append(-t * q.log() - (1 - t) * (1 - q).log() + q**2 * (1 - q).log())
        l1.append((boxes[image, row] - wanted).abs().sum())
        giou_loss.append(1 - giou)
    return tuple(sum(term.sum() for term in terms) / divisor for terms in (ce, l1, giou_loss))


def make_targets(generator, counts, classes, dtype=torch.float64):
    targets = []
    for n in counts:
        centre = torch.rand(n, 2, generator=generator, dtype=dtype) * 0.6 + 0.2
        size = torch.rand(n, 2, generator=generator, dtype=dtype) * 0.3 + 0.05
        labels = torch.randint(classes, (n,), generator=generator)
        targets.append({"class_labels": labels, "boxes": torch.cat((centre, size), 1)})
    return targets


def make_predictions(generator, images, rows, classes, dtype=torch.float64):
    logits = torch.randn(images, rows, classes, generator=generator, dtype=dtype)
    centre = torch.rand(images, rows, 2, generator=generator, dtype=dtype) * 0.6 + 0.2
    size = torch.rand(images, rows, 2, generator=generator, dtype=dtype) * 0.3 + 0.05
    return logits.requires_grad_(), torch.cat((centre, size), -1).requires_grad_()
