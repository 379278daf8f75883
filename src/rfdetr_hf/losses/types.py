"""What matcher and criterion share with the terms of the tasks: predictions of a layer, objects of a batch, matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger("rfdetr_hf")

# Boxes and points in shares of the image: no crop of an image leaves an object that reaches further from it.
FARTHEST = 10.0
# So many boxes of a batch say what their numbers mean, if one of so many lies partly outside its image.
_ENOUGH = 8


class LossConfig(Protocol):
    """The values of a configuration that matching and losses read."""

    decoder_layers: int
    auxiliary_loss: bool
    focal_alpha: float
    class_cost: float
    bbox_cost: float
    giou_cost: float
    class_loss_coefficient: float
    bbox_loss_coefficient: float
    giou_loss_coefficient: float
    mask_point_sample_ratio: int
    mask_class_loss_coefficient: float
    mask_dice_loss_coefficient: float
    num_keypoints_per_class: list[int]
    keypoint_l1_loss_coefficient: float
    keypoint_findable_loss_coefficient: float
    keypoint_visible_loss_coefficient: float
    keypoint_nll_loss_coefficient: float


class MaskFactors(NamedTuple):
    """Masks of one layer as a product: mask = queries . features + bias.

    Attributes:
        features: (B, C, Hm, Wm), of the complete canvas.
        queries: (B, G*q, C).
        bias: (1,).
        image_share: (B, 2) share of the canvas' (width, height) that is image; None where nothing is padded.
    """

    features: Tensor
    queries: Tensor
    bias: Tensor
    image_share: Tensor | None = None

    def dense(self) -> Tensor:
        """All masks, (B, G*q, Hm, Wm)."""
        return torch.einsum("bchw,bnc->bnhw", self.features, self.queries) + self.bias

    def canvas_grid(self, points: Tensor, image: Tensor) -> Tensor:
        """Points (M, P, 2) of the images `image` (M,) in the coordinates of `grid_sample`.

        Points in the outer half of a border cell read that cell alone: past the image's border there is nothing, even
        where the canvas goes on.
        """
        points = points.to(compute_dtype(self.features))
        if self.image_share is None:
            return 2 * points - 1
        share = self.image_share.to(points.dtype)[image][:, None]  # (M, 1, 2)
        height, width = self.features.shape[2:]
        size = torch.stack([torch.full_like(share[..., 0], side) for side in (width, height)], -1)
        return 2 * (points * share).minimum(share - 0.5 / size) - 1


class LayerOutput(NamedTuple):
    """The predictions of one supervised layer.

    Attributes:
        name_suffix: ending of its loss names: "" for the last decoder layer, "_0", "_1", ... for earlier ones, "_enc"
            for the encoder.
        logits: (B, G*q, C) class logits, any float type.
        boxes: (B, G*q, 4) cxcywh in [0, 1], any float type. q may differ between layers.
        masks: what the masks of all rows are the product of; of segmentation models.
        keypoints: (B, G*q, classes * K, 8), K slots for each class of the schema; of keypoint models.
    """

    name_suffix: str
    logits: Tensor
    boxes: Tensor
    masks: MaskFactors | None = None
    keypoints: Tensor | None = None


class PackedObjects(NamedTuple):
    """The objects of a batch, end to end: the N objects of image 0, then of image 1, ...

    Attributes:
        labels: (N,) int64 class of each object.
        boxes: (N, 4) cxcywh in [0, 1].
        image: (N,) int64 image of each object, on the device.
        counts: objects per image, on the host.
        labelled: (B, C) bool, whether a class is labelled completely in an image; None for all classes in all images.
    """

    labels: Tensor
    boxes: Tensor
    image: Tensor
    counts: list[int]
    labelled: Tensor | None = None


class QueryMatches(NamedTuple):
    """Matched (layer, query, object) triples as flat index tensors on the device, ordered by layer.

    Attributes:
        layer, batch, query, target: (M,) int64. `query` counts the rows of that layer, groups included; `target` counts
            the objects of the batch. No (layer, batch, query) occurs twice. Within a layer they are in the order of the
            objects.
        row: (M,) int64, of the rows (B, G*q) of all layers end to end.
        per_layer: number of matches of each layer, on the host.
    """

    layer: Tensor
    batch: Tensor
    query: Tensor
    target: Tensor
    row: Tensor
    per_layer: list[int]

    def split(self, *fields: str) -> tuple[tuple[Tensor, ...], ...]:
        """The named index tensors, each cut into one piece (m,) per layer."""
        return tuple(getattr(self, field).split(self.per_layer) for field in fields)


class TaskTerms(Protocol):
    """What a task beyond detection adds to matching and loss.

    Attributes:
        coefficients: weight of each of its loss terms, in loss and matching alike.
    """

    coefficients: dict[str, float]

    def pack(self, targets: Sequence[Mapping[str, Tensor]], objects: PackedObjects, seed: int) -> Any:
        """Check what the targets hold for this task, and lay it end to end as `objects` are.

        All that is random in the task's terms follows from the seed and the images themselves.
        """

    def pair_cost(self, layers: Sequence[LayerOutput], objects: PackedObjects, truth: Any) -> Tensor:
        """Cost of each object with each query of its image: (N, rows of all layers side by side)."""
        ...

    def losses(
        self, layers: Sequence[LayerOutput], objects: PackedObjects, truth: Any, matches: QueryMatches, num_groups: int
    ) -> Tensor:
        """The terms in the order of `coefficients`, summed over the matched pairs of each layer: (terms, layers)."""
        ...


def sum_by_layer(terms: Tensor, per_layer: Sequence[int]) -> Tensor:
    """Terms (..., M) of the matches, of which there are `per_layer`, summed for each layer: (..., layers)."""
    if len(set(per_layer)) == 1:
        return terms.unflatten(-1, (len(per_layer), per_layer[0])).sum(-1)
    return torch.stack([own.sum(-1) for own in terms.split(list(per_layer), dim=-1)], dim=-1)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which costs and losses are computed: float64 for float64, float32 for anything narrower."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def is_finite(tensor: Tensor) -> Tensor:
    """Whether each number is neither NaN nor infinite: two launches, where `isfinite` takes four."""
    return (tensor - tensor) == 0


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy a small host array to the device without making the host wait."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class ValueCheck:
    """Whether to look at the values of labels: always on the host. On a device the host waits for it: once."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, labels: Tensor) -> bool:
        """`labels` are any of the batch."""
        due = labels.device.type == "cpu" or (not self.done and type(labels) is Tensor)
        self.done = True
        return due


def refuse(unsound: Tensor, values: Tensor, counts: Sequence[int], field: str, remedy: str) -> None:
    """Raise a ValueError for the first object that is unsound.

    Args:
        unsound: (N,) bool, of the objects of a batch end to end.
        values: (N, ...), what the field holds of each.
        counts: objects per image.
        field: of the labels.
        remedy: what it must hold.
    """
    if not unsound.any():
        return
    row = int(unsound.nonzero()[0, 0])
    image = int(np.repeat(np.arange(len(counts)), counts)[row])
    found = values[row].tolist()
    raise ValueError(f"labels of image {image} of the batch: field '{field}' holds {found}: {remedy}")


def pack_objects(
    targets: Sequence[Mapping[str, Tensor]],
    like: Tensor,
    num_images: int,
    num_classes: int,
    check: ValueCheck | None = None,
) -> PackedObjects:
    """Check the targets of a batch and lay their objects end to end.

    Args:
        targets: one mapping per image with `class_labels` (n,) integers and `boxes` (n, 4) floats; all or none of them
            with `labelled_classes` (num_classes,) bool.
        like: any prediction; the objects are brought to its device.
        num_images: images in the batch.
        num_classes: number of class logits.
        check: says whether the values are looked at; by default they are where the targets are on the host.

    Raises:
        ValueError: naming the image and the field that is missing, has another shape or type, or holds what cannot be
            right: a class out of range; a box that is not finite, of negative size, or in pixels.
    """
    if len(targets) != num_images:
        raise ValueError(f"labels hold {len(targets)} images, the predictions {num_images}: pass one dict per image")
    for index, target in enumerate(targets):
        _check_target(index, target)
    counts = [len(target["class_labels"]) for target in targets]
    image = np.repeat(np.arange(num_images, dtype=np.int64), counts)
    device = targets[0]["boxes"].device
    labels = torch.cat([target["class_labels"].to(device, torch.int64) for target in targets])
    boxes = torch.cat([target["boxes"].to(device) for target in targets])
    if check(boxes) if check else device.type == "cpu":
        _check_values(labels, boxes, counts, num_classes)
    labelled = [target["labelled_classes"] for target in targets if "labelled_classes" in target]
    kinds = {(each.dtype, *each.shape) for each in labelled}
    if labelled and (kinds != {(torch.bool, num_classes)} or len(labelled) < num_images):
        raise ValueError(
            f"labels: field 'labelled_classes' must be bool ({num_classes},) of every image or of none, got "
            f"{len(labelled)} for {num_images} images, {sorted(kinds, key=str)}"
        )
    packed = torch.stack(labelled).to(like.device) if labelled else None
    labels, boxes = labels.to(like.device), boxes.to(like.device, compute_dtype(like))
    return PackedObjects(labels, boxes, to_device(image, like.device), counts, packed)


def _check_target(index: int, target: Mapping[str, Tensor]) -> None:
    where = f"labels of image {index} of the batch"
    for field in ("class_labels", "boxes"):
        if not isinstance(target.get(field), Tensor):
            found = f"is a {type(target[field]).__name__}, no tensor" if field in target else "is missing"
            raise ValueError(f"{where}: field '{field}' {found}")
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


def _check_values(labels: Tensor, boxes: Tensor, counts: Sequence[int], num_classes: int) -> None:
    """Refuse classes (N,) and boxes (N, 4) that cannot be right, and say where boxes look like corners."""
    unknown = (labels < 0) | (labels >= num_classes)
    # Comparisons with NaN are false.
    wrong = ~((boxes.abs() <= FARTHEST).all(1) & (boxes[:, 2:] >= 0).all(1))
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    ordered = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes >= 0).all(1) & (boxes <= 1).all(1)
    outside = ((low < -0.01) | (high > 1.01)).any(1)
    # Of all that can be known one read, for the host may wait for it.
    any_wrong, like_corners = torch.stack(
        [(unknown | wrong).any(), ordered.all() & (_ENOUGH * outside.sum() > len(boxes))]
    ).tolist()
    if any_wrong:
        remedy = (
            f"classes are 0 to {num_classes - 1}; make the ids contiguous from 0 and give the model as many classes"
        )
        refuse(unknown, labels, counts, "class_labels", f"{remedy} (num_labels)")
        remedy = "boxes are finite (centre x, centre y, width, height) in shares of the image, from 0 to 1"
        refuse(wrong, boxes, counts, "boxes", f"{remedy}; divide pixels by the image's width and height")
    if like_corners and len(boxes) >= _ENOUGH:
        logger.warning_once(
            "the boxes of the labels look like corners (x1, y1, x2, y2): all are ordered so, and as (centre x, "
            "centre y, width, height) some lie partly outside the image; convert corners, cut other boxes at the border"
        )
