"""Keypoint terms of matching and loss: position, findable, visible, and the likelihood of the predicted Gaussian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .types import (
    FARTHEST,
    LayerOutput,
    LossConfig,
    PackedObjects,
    QueryMatches,
    ValueCheck,
    compute_dtype,
    is_finite,
    refuse,
    sum_by_layer,
    to_device,
)

KEYPOINT_CHANNELS = 8
TERMS = ("loss_keypoints_l1", "loss_keypoints_findable", "loss_keypoints_visible", "loss_keypoints_nll")

# (object, query, keypoint) triples whose cost is computed in one go; each has some sixteen numbers.
_POINTS_AT_ONCE = {"cpu": 2**16, "default": 2**23}
_MIN_AREA = torch.finfo(torch.float32).eps


class KeypointTruth(NamedTuple):
    """The true keypoints of a batch, end to end.

    Attributes:
        points: (N, K, 3) of (x, y, v).
        active: (N, K), True at the keypoints that the class of the object has.
        labelled: (N, K), True where the position is known: active, v > 0, finite, in a box that is not degenerate.
        slots: (N, K) where the keypoints of the object's class are among the predictions of a query.
        area: (N,) of the box, normalised; 1 where it is degenerate.
    """

    points: Tensor
    active: Tensor
    labelled: Tensor
    slots: Tensor
    area: Tensor

    def rows(self, index: Tensor | slice) -> KeypointTruth:
        """The objects `index`."""
        return KeypointTruth(*(field[index] for field in self))


class KeypointTerms:
    """Matching cost and losses of keypoints.

    Terms of each layer, summed over the matched pairs, A being the area of the object's box (normalised):

    - `loss_keypoints_l1`: mean over the labelled keypoints (v > 0) of (|dx| + |dy|) / sqrt(A);
    - `loss_keypoints_findable`: mean over the keypoints of the class of the binary cross entropy of "v > 0";
    - `loss_keypoints_visible`: likewise of "v = 2";
    - `loss_keypoints_nll`: mean over the labelled ones of |Lᵀ d|² / 2A - log det L, the negative log likelihood of
      d = (dx, dy) under the predicted precision L Lᵀ / A, up to a constant. It may be negative.

    A prediction that is not finite is left out of its term and gets no gradient. Objects of a class without keypoints
    or beyond the schema have zeros; for one of the latter the official package drops the keypoint terms of its batch.
    The matching cost of a pair is the weighted sum of the same terms.

    Args:
        config: read for num_keypoints_per_class and the four keypoint_*_loss_coefficient.
    """

    def __init__(self, config: LossConfig) -> None:
        self.schema = list(config.num_keypoints_per_class)
        weights = (
            config.keypoint_l1_loss_coefficient,
            config.keypoint_findable_loss_coefficient,
            config.keypoint_visible_loss_coefficient,
            config.keypoint_nll_loss_coefficient,
        )
        self._check = ValueCheck()
        self.coefficients = {name: float(weight) for name, weight in zip(TERMS, weights, strict=True)}

    def pack(self, targets: Sequence[Mapping[str, Tensor]], objects: PackedObjects, seed: int = 0) -> KeypointTruth:
        """Lay the keypoints of all images end to end.

        Args:
            targets: per image `keypoints` (n, k, 3) of (x, y, v), x and y in [0, 1] of the un-padded image, v in {0, 1,
                2}. k is at most the largest number of keypoints of a class; missing ones count as not labelled.
            objects: the objects of the batch.
            seed: is not needed, nothing here is random.

        Raises:
            ValueError: naming the image whose field 'keypoints' is missing, of another shape or type, or in pixels, or
                has another v; values are looked at as those of boxes are.
        """
        slots = max(self.schema)
        for index, (target, count) in enumerate(zip(targets, objects.counts, strict=True)):
            _check_keypoints(f"labels of image {index} of the batch", target.get("keypoints"), count, slots)
        own = [target["keypoints"].to(objects.boxes) for target in targets]
        missing = [slots - keypoints.shape[1] for keypoints in own]
        own = [F.pad(each, (0, 0, 0, n)) if n else each for each, n in zip(own, missing, strict=True)]
        points = torch.cat(own)
        if self._check(targets[0]["keypoints"]):
            x, y, state = points.unbind(-1)
            # A position that is not finite counts as not labelled.
            far = (state > 0) & points.isfinite().all(-1) & ((x.abs() > FARTHEST) | (y.abs() > FARTHEST))
            wrong = far | ~((state == 0) | (state == 1) | (state == 2) | state.isnan())
            remedy = "keypoints are rows (x, y, v), x and y in shares of the image from 0 to 1, v one of 0, 1 and 2"
            refuse(wrong.any(1), points, objects.counts, "keypoints", remedy)
        sizes = to_device(np.asarray(self.schema, dtype=np.int64), points.device)
        known = objects.labels.clamp(max=len(self.schema) - 1)
        counts = torch.where(objects.labels < len(self.schema), sizes[known], 0)
        slot = torch.arange(slots, device=points.device)
        active = slot < counts[:, None]  # (N, K)
        area = objects.boxes[:, 2] * objects.boxes[:, 3]
        sound = is_finite(area) & (area > _MIN_AREA)
        labelled = active & is_finite(points).all(-1) & (points[..., 2] > 0) & sound[:, None]
        return KeypointTruth(points, active, labelled, known[:, None] * slots + slot, torch.where(sound, area, 1))

    @torch.no_grad()
    def pair_cost(self, layers: Sequence[LayerOutput], objects: PackedObjects, truth: KeypointTruth) -> Tensor:
        """Weighted cost of each object with each query of its image: (N, rows of all layers side by side)."""
        keypoints = torch.cat([layer.keypoints for layer in layers if layer.keypoints is not None], dim=1)
        rows = torch.arange(keypoints.shape[1], device=keypoints.device)[:, None]
        budget = _POINTS_AT_ONCE.get(keypoints.device.type, _POINTS_AT_ONCE["default"])
        chunk = max(1, budget // (len(rows) * max(self.schema)))
        costs = [keypoints.new_empty((0, len(rows)), dtype=objects.boxes.dtype)]
        for start in range(0, len(objects.labels), chunk):
            own = truth.rows(slice(start, start + chunk))
            image = objects.image[start : start + chunk]
            predicted = keypoints[image[:, None, None], rows, own.slots[:, None]]  # (n, rows, K, 8)
            own = KeypointTruth(*(field[:, None] for field in own))
            terms = keypoint_terms(predicted, own)  # (n, rows) each
            first, *others = zip(self.coefficients.values(), terms, strict=True)
            costs.append(reduce(lambda sum_, pair: sum_.add_(pair[1], alpha=pair[0]), others, first[0] * first[1]))
        return torch.cat(costs)

    def losses(
        self,
        layers: Sequence[LayerOutput],
        objects: PackedObjects,
        truth: KeypointTruth,
        matches: QueryMatches,
        num_groups: int,
    ) -> Tensor:
        """The four terms of each layer, summed over the matched pairs: (4, layers)."""
        rows = [layer.keypoints.flatten(0, 1) for layer in layers if layer.keypoints is not None]
        own = truth.rows(matches.target)
        predicted = torch.cat(rows)[matches.row[:, None], own.slots]  # (M, K, 8)
        return sum_by_layer(torch.stack(keypoint_terms(predicted, own)), matches.per_layer)


def keypoint_terms(predicted: Tensor, truth: KeypointTruth) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four terms for each pair, see `KeypointTerms`.

    Args:
        predicted: (..., K, 8), the slots of the class of the pair's object.
        truth: fields (..., K[, 3]) that broadcast with it.

    Returns:
        Four tensors of the shape in front of K.
    """
    predicted = predicted.to(compute_dtype(predicted))
    position, state = predicted[..., :2], truth.points[..., 2]
    located = truth.labelled & is_finite(position).all(-1)
    offset = (position - truth.points[..., :2]).masked_fill(~located[..., None], 0)
    l1 = _mean(offset.abs().sum(-1), located) / truth.area.sqrt()
    # Findable and visible together, (2, ..., K).
    logits, wanted = predicted[..., 2:4].movedim(-1, 0), torch.stack((state > 0, state > 1))
    usable = truth.active & is_finite(logits)
    logits = logits.masked_fill(~usable, 0)
    wanted = wanted.to(logits.dtype).expand_as(logits)
    entropies = _mean(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * usable, usable)
    return l1, entropies[0], entropies[1], _likelihood(offset, predicted[..., 4:7], truth.area[..., None], located)


def _likelihood(offset: Tensor, precision: Tensor, area: Tensor, located: Tensor) -> Tensor:
    with torch.no_grad():
        # An exponential may overflow although its argument is finite. This has to be known before the terms that take
        # part are computed, since a mask behind an infinite value lets its gradient pass as NaN.
        distance = _squared_distance(offset, precision)
        usable = located & is_finite(distance + precision.sum(-1))
        if not precision.requires_grad:
            values = distance / (2 * area) - (precision[..., 0] + precision[..., 2])
            return _mean(values.masked_fill(~usable, 0), usable)
    unusable = ~usable[..., None]
    precision = precision.masked_fill(unusable, 0)
    distance = _squared_distance(offset.masked_fill(unusable, 0), precision)
    return _mean(distance / (2 * area) - (precision[..., 0] + precision[..., 2]), usable)


def _squared_distance(offset: Tensor, precision: Tensor) -> Tensor:
    """|Lᵀ d|² of offsets (..., 2) and log l11, l21, log l22 (..., 3)."""
    diagonal = precision[..., ::2].exp() * offset  # (l11 dx, l22 dy)
    return (diagonal[..., 0] + precision[..., 1] * offset[..., 1]).square() + diagonal[..., 1].square()


def _mean(values: Tensor, usable: Tensor) -> Tensor:
    """Mean over the last dimension of the values that are usable, the others being 0; 0 where none is."""
    return values.sum(-1) / usable.sum(-1).clamp(min=1)


def _check_keypoints(where: str, keypoints: Tensor | None, count: int, slots: int) -> None:
    if keypoints is None:
        raise ValueError(f"{where}: field 'keypoints' is missing: keypoint models are trained on data with keypoints")
    shape = tuple(keypoints.shape)
    if len(shape) != 3 or shape[0] != count or shape[2] != 3 or not keypoints.is_floating_point():
        raise ValueError(
            f"{where}: field 'keypoints' must be floats of shape ({count}, k, 3), k rows (x, y, v) per class label, "
            f"got {keypoints.dtype} {shape}"
        )
    if shape[1] > slots:
        raise ValueError(
            f"{where}: field 'keypoints' has {shape[1]} keypoints per object, the model {slots} at most: set "
            "num_keypoints_per_class to those of the data set"
        )
