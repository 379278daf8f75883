"""Bipartite matching of queries and objects for all layers, images and query groups of a batch at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from .boxes import cxcywh_to_xyxy, iou_and_giou

_HAS_BATCHED_SOLVER = find_spec("torch_linear_assignment") is not None

# (object, query) pairs whose cost is computed in one go: bounds the temporaries, about a dozen arrays of this size.
PAIRS_AT_ONCE = {"cpu": 2**16, "default": 2**22}  # on the CPU they then stay in the second-level cache


class PackedObjects(NamedTuple):
    """The objects of a batch, end to end: the N objects of image 0, then of image 1, ...

    Attributes:
        labels: (N,) int64 class of each object.
        boxes: (N, 4) cxcywh in [0, 1].
        image: (N,) int64 image of each object, on the device.
        counts: objects per image, on the host.
    """

    labels: Tensor
    boxes: Tensor
    image: Tensor
    counts: list[int]


class Matches(NamedTuple):
    """Matched (layer, query, object) triples as flat index tensors on the device, ordered by layer.

    Attributes:
        layer, batch, query, target: (M,) int64. `query` counts the rows of that layer, groups included; `target` counts
            the objects of the whole batch. No (layer, batch, query) occurs twice.
        per_layer: number of matches of each layer, on the host.
    """

    layer: Tensor
    batch: Tensor
    query: Tensor
    target: Tensor
    per_layer: list[int]

    def split(self, *fields: str) -> tuple[tuple[Tensor, ...], ...]:
        """The named index tensors, each cut into one piece per layer."""
        return tuple(getattr(self, field).split(self.per_layer) for field in fields)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which costs and losses are computed: float64 for float64, float32 for anything narrower."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small host array to the device without making the host wait."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack_objects(
    targets: Sequence[Mapping[str, Tensor]], like: Tensor, num_images: int, num_classes: int
) -> PackedObjects:
    """Check the targets of a batch and lay their objects end to end.

    Class labels are range-checked where they are on the host. On an accelerator that check would make the host wait for
    the device in every step, so there a label out of range is left to the audit of the data set (and to the device's
    own assertion).

    Args:
        targets: one mapping per image with `class_labels` (n,) integers and `boxes` (n, 4) floats.
        like: any prediction; the objects are brought to its device.
        num_images: images in the batch.
        num_classes: number of class logits.

    Raises:
        ValueError: naming the image and the field that is missing, has another shape or type, or is out of range.
    """
    if len(targets) != num_images:
        raise ValueError(f"labels hold {len(targets)} images, the predictions {num_images}: pass one dict per image")
    for index, target in enumerate(targets):
        _check_target(index, target, num_classes)
    counts = [len(target["class_labels"]) for target in targets]
    image = np.repeat(np.arange(num_images, dtype=np.int64), counts)
    labels = torch.cat([target["class_labels"].to(like.device, torch.int64) for target in targets])
    boxes = torch.cat([target["boxes"].to(like.device, compute_dtype(like)) for target in targets])
    return PackedObjects(labels, boxes, to_device(image, like.device), counts)


def _check_target(index: int, target: Mapping[str, Tensor], num_classes: int) -> None:
    where = f"labels of image {index} of the batch"
    for field in ("class_labels", "boxes"):
        if field not in target:
            raise ValueError(f"{where}: field '{field}' is missing")
    labels, boxes = target["class_labels"], target["boxes"]
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{where}: field 'class_labels' must be integers of shape (n,), got {labels.dtype} {tuple(labels.shape)}"
        )
    if boxes.shape != (len(labels), 4) or not boxes.is_floating_point():
        raise ValueError(
            f"{where}: field 'boxes' must be floats of shape ({len(labels)}, 4), one row (cx, cy, w, h) per class "
            f"label, got {boxes.dtype} {tuple(boxes.shape)}"
        )
    if labels.device.type == "cpu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{where}: field 'class_labels' holds {low if low < 0 else high}, outside [0, {num_classes}): make the "
                "ids contiguous from 0 and give the model as many classes (num_labels)"
            )


class HungarianMatcher:
    """Match every object to one query of each group, in each layer, at the least total cost.

    cost = bbox_cost * L1(cxcywh) - giou_cost * GIoU + class_cost * (focal(1) - focal(0)) at the class of the object,
    focal(1) = -alpha (1-p)^2 log p and focal(0) = -(1-alpha) p^2 log(1-p), p = sigmoid(logit).

    Only queries and objects of the same image are paired, and only the logits at the objects' classes are read, so the
    cost holds (objects of the batch) x (rows of all layers) numbers, however the objects are spread over the images.
    """

    def __init__(self, class_cost: float, bbox_cost: float, giou_cost: float, focal_alpha: float = 0.25) -> None:
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha

    @torch.no_grad()
    def __call__(
        self,
        logits: Sequence[Tensor] | Tensor,
        boxes: Sequence[Tensor] | Tensor,
        objects: PackedObjects,
        num_groups: int,
        extra_cost: Tensor | None = None,
    ) -> Matches:
        """Solve all layers x images x groups.

        Args:
            logits: per layer (B, G*q, C), as a list or stacked; q may differ between layers.
            boxes: per layer (B, G*q, 4), cxcywh in [0, 1].
            objects: the objects of the batch, see `pack_objects`.
            num_groups: G, the query groups that lie one after the other in each layer's rows.
            extra_cost: (N, rows of all layers side by side), added to the cost of each object with each query.

        Returns:
            min(n, q) matches for each layer, image with n objects, and group.

        Raises:
            ValueError: when the rows of a layer are no multiple of `num_groups`.
        """
        rows = [layer.shape[1] for layer in boxes]
        for count in rows:
            if count % num_groups:
                raise ValueError(f"{count} query rows cannot be split into num_groups={num_groups} groups")
        queries = [count // num_groups for count in rows]
        device = boxes[0].device
        if not sum(objects.counts):
            empty = torch.empty(0, dtype=torch.int64, device=device)
            return Matches(empty, empty, empty, empty, [0] * len(rows))
        with torch.autocast(device.type, enabled=False):
            cost = self.pair_cost(logits, boxes, objects)
            cost = replace_non_finite(cost if extra_cost is None else cost + extra_cost)
            if use_batched_solver(device) and max(objects.counts) <= min(queries):
                columns = solve_batched(cost, objects, queries, num_groups)
                return _index_on_device(columns, objects, queries)
            return _index_on_host(
                solve_scipy(cost.cpu().numpy(), objects.counts, queries, num_groups), queries, objects, device
            )

    def pair_cost(
        self, logits: Sequence[Tensor] | Tensor, boxes: Sequence[Tensor] | Tensor, objects: PackedObjects
    ) -> Tensor:
        """Cost of each object with each query of its image: (N, rows of all layers side by side)."""
        all_boxes = torch.cat([layer.to(objects.boxes.dtype) for layer in boxes], dim=1)
        # Coordinate by coordinate (8, B, rows), so that what is gathered for the objects is read in one run.
        coordinates = torch.cat((all_boxes, cxcywh_to_xyxy(all_boxes)), dim=-1).movedim(-1, 0).contiguous()
        num_pairs = PAIRS_AT_ONCE.get(all_boxes.device.type, PAIRS_AT_ONCE["default"])
        chunk = max(1, num_pairs // all_boxes.shape[1])
        pieces = zip(objects.image.split(chunk), objects.labels.split(chunk), objects.boxes.split(chunk), strict=True)
        return torch.cat([self._cost_of(logits, coordinates, *piece) for piece in pieces])

    def _cost_of(
        self, logits: Sequence[Tensor] | Tensor, coordinates: Tensor, image: Tensor, labels: Tensor, boxes: Tensor
    ) -> Tensor:
        scores = torch.cat([layer[image, :, labels] for layer in logits], dim=1).to(boxes.dtype)
        cost = self._class_cost(scores)
        predicted, boxes = coordinates[:, image], boxes[:, None]
        for axis in range(4):
            cost += self.bbox_cost * (predicted[axis] - boxes[..., axis]).abs()
        _, giou = iou_and_giou(predicted[4:].movedim(0, -1), cxcywh_to_xyxy(boxes))
        return cost - self.giou_cost * giou

    def _class_cost(self, scores: Tensor) -> Tensor:
        # The logarithms come from the logits: that of a saturated probability would be infinite.
        probability = scores.sigmoid()
        positive = self.focal_alpha * (1 - probability).square() * F.logsigmoid(scores)
        negative = (1 - self.focal_alpha) * probability.square() * F.logsigmoid(-scores)
        return self.class_cost * (negative - positive)


def replace_non_finite(cost: Tensor) -> Tensor:
    """Give NaN and infinite costs one value above all finite ones, so that they are taken last and no solver fails.

    It stays near the finite costs, since a far larger one would round the others away in the solvers' sums.
    """
    finite = cost.isfinite()
    largest = torch.where(finite, cost, 0).abs().amax()
    worst = (2 * largest + 1).clamp(max=torch.finfo(cost.dtype).max / 16)
    return torch.where(finite, cost, worst)


def use_batched_solver(device: torch.device) -> bool:
    """Whether the solver of the extra `gpu` serves this device."""
    return device.type == "cuda" and _HAS_BATCHED_SOLVER


def solve_scipy(cost: np.ndarray, counts: Sequence[int], queries: Sequence[int], num_groups: int) -> np.ndarray:
    """Solve one problem after the other on the host.

    Args:
        cost: (N, sum of G*q over the layers) finite costs.
        counts: objects per image.
        queries: q of each layer.
        num_groups: G.

    Returns:
        (layers, N, G) int64: the query within its group, or -1 for an object that found none (there were more objects
        than queries).
    """
    columns = np.full((len(queries), len(cost), num_groups), -1, dtype=np.int64)
    object_ends = np.cumsum(counts)
    row_ends = np.cumsum([q * num_groups for q in queries])
    for layer, (q, row_end) in enumerate(zip(queries, row_ends, strict=True)):
        for n, end in zip(counts, object_ends, strict=True):
            block = cost[end - n : end, row_end - q * num_groups : row_end].reshape(n, num_groups, q)
            for group in range(num_groups if n else 0):
                picked, query = linear_sum_assignment(block[:, group])
                columns[layer, end - n + picked, group] = query
    return columns


def solve_batched(cost: Tensor, objects: PackedObjects, queries: Sequence[int], num_groups: int) -> Tensor:
    """Solve all problems in one call on the device with `torch_linear_assignment` (extra `gpu`).

    Every problem is padded to one number of objects and of queries. Padding costs more than any pair: a padded object,
    which costs the same everywhere, changes no choice of the others, and a padded query goes to padded objects only. No
    problem may have more objects than queries. The cost matrix never leaves the device, but version 0.1.0 of the solver
    itself reads two flags back, and it solves in the type of the costs, where SciPy solves in float64.

    Args:
        cost: (N, sum of G*q over the layers) finite costs.
        objects: the objects of the batch.
        queries: q of each layer.
        num_groups: G.

    Returns:
        (layers, N, G) int64 on the device of `cost`: the query within its group.
    """
    from torch_linear_assignment import batch_linear_assignment

    counts = objects.counts
    # The solver compiles one kernel per shape: powers of two keep the number of shapes small.
    slots = min(1 << (max(counts) - 1).bit_length(), min(queries))
    slot = to_device(np.concatenate([np.arange(n, dtype=np.int64) for n in counts]), cost.device)
    shape = (len(counts), slots, len(queries), num_groups, max(queries))
    padded = (cost.amax() + 1).expand(shape).contiguous()
    for layer, block in enumerate(cost.split([q * num_groups for q in queries], dim=1)):
        padded[objects.image, slot, layer, :, : queries[layer]] = block.view(len(cost), num_groups, -1)
    problems = padded.permute(0, 2, 3, 1, 4).reshape(-1, slots, max(queries))
    solved = batch_linear_assignment(problems).view(len(counts), len(queries), num_groups, slots)
    return solved[objects.image, :, :, slot].transpose(0, 1)


def _index_on_host(
    columns: np.ndarray, queries: Sequence[int], objects: PackedObjects, device: torch.device
) -> Matches:
    layer, target, group = np.nonzero(columns >= 0)
    query = columns[layer, target, group] + group * np.asarray(queries, dtype=np.int64)[layer]
    batch = np.repeat(np.arange(len(objects.counts)), objects.counts)[target]
    per_layer = np.bincount(layer, minlength=len(queries)).tolist()
    layer, batch, query, target = to_device(np.stack((layer, batch, query, target)), device)
    return Matches(layer, batch, query, target, per_layer)


def _index_on_device(columns: Tensor, objects: PackedObjects, queries: Sequence[int]) -> Matches:
    num_layers, num_objects, num_groups = columns.shape
    stride = to_device(np.asarray(queries, dtype=np.int64), columns.device)
    group = torch.arange(num_groups, device=columns.device)
    query = (columns + group * stride[:, None, None]).flatten()
    layer = torch.arange(num_layers, device=columns.device)[:, None, None].expand_as(columns).flatten()
    target = torch.arange(num_objects, device=columns.device)[:, None].expand_as(columns).flatten()
    return Matches(layer, objects.image[target], query, target, [num_objects * num_groups] * num_layers)
