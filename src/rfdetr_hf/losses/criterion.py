"""The training loss of detection: matching, IoU-aware classification and boxes, over all supervised layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .boxes import box_terms
from .matcher import SOFTPLUS_THRESHOLD, HungarianMatcher
from .types import (
    LayerOutput,
    LossConfig,
    PackedObjects,
    QueryMatches,
    TaskTerms,
    ValueCheck,
    pack_objects,
    sum_by_layer,
    to_device,
)

_MIN_QUALITY = 0.01  # floor of the classification target of a matched query


# Logits of several layers that are brought together: fewer launches on an accelerator, no copy on a CPU.
_LOGITS_AT_ONCE = {"cpu": 0, "default": 2**26}


# Logits that are computed in one go where there are caches to stay in.
_SCORES_AT_ONCE = {"cpu": 2**16}


class _QualityFocalLoss(torch.autograd.Function):
    # Written by hand for memory and time: the logits are the largest tensor of the loss, and autograd would keep
    # several float32 copies of them until the backward pass. Here the derivative is made beside the values, of which it
    # needs all, and kept in the type of the logits; of the values only the sums are kept.

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        index: Tensor,
        matched: Tensor,
        quality: Tensor,
        labelled: Tensor | None,
        per_layer: Sequence[int],
        *logits: Tensor,
    ) -> Tensor:
        # A logit of -inf gives neither value nor derivative: as what is matched, and what may be there unlabelled.
        slope = scores.clone()
        slope.index_fill_(0, index, -torch.inf)
        if labelled is not None:
            slope.view(len(logits), *logits[0].shape).masked_fill_(~labelled, -torch.inf)
        rows, sums = slope.view(len(logits), -1), []
        for own in rows.split(_SCORES_AT_ONCE.get(slope.device.type, max(rows.shape[1], 1)), dim=1):
            # p^2 b and p^2 (p + 2 (1 - p) b), b being -log(1 - p)
            p, b = own.sigmoid(), F.softplus(own, threshold=SOFTPLUS_THRESHOLD)
            value = p * p
            torch.add(p, torch.addcmul(b, b, p, value=-1), alpha=2, out=own).mul_(value)
            sums.append(value.mul_(b).sum(1))
        # t log p + (1 - t) log(1 - p), log p being the logit more than log(1 - p).
        background = F.softplus(matched, threshold=SOFTPLUS_THRESHOLD)
        sums.append(sum_by_layer(torch.addcmul(background, quality, matched, value=-1), per_layer))
        slope[index] = matched.sigmoid() - quality
        ctx.save_for_backward(slope.to(logits[0].dtype))
        ctx.shape = logits[0].shape
        return torch.stack(sums).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        rows = slope.view(len(grad), -1)
        scaled = torch.mul(rows, grad[:, None], out=torch.empty_like(rows))
        return (*(None,) * 6, *(own.view(ctx.shape) for own in scaled.unbind()))


def flat_scores(logits: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The logits of some layers end to end, without gradient."""
    if len(logits) == 1:
        return logits[0].detach().flatten().to(dtype)
    scores = logits[0].new_empty(sum(layer.numel() for layer in logits), dtype=dtype)
    parts = scores.split([layer.numel() for layer in logits])
    sources = [layer.detach().flatten() for layer in logits]
    torch._foreach_copy_(parts, sources)  # pyright: ignore[reportPrivateImportUsage]
    return scores


def quality_focal_loss(
    logits: Sequence[Tensor],
    index: Tensor,
    quality: Tensor,
    per_layer: Sequence[int],
    scores: Tensor | None = None,
    matched: Tensor | None = None,
    labelled: Tensor | None = None,
) -> Tensor:
    """Sum of the IoU-aware binary cross entropy over all logits of each layer.

    With p = sigmoid(logit): a matched entry gives -t log p - (1-t) log(1-p) for its target t, any other entry
    -p^2 log(1-p), where the factor p^2 carries gradient too.

    Args:
        logits: layers of one shape and float type; finite values of any size give finite results.
        index: (M,) int64 positions of the matched entries in the logits end to end, no position twice.
        quality: (M,) targets t in [0, 1], taken as constants; their type is that of the computation and of the result.
        per_layer: number of matched entries of each layer, in whose order they are.
        scores: `flat_scores` of the logits, where the caller has them.
        matched: and those of the matched entries.
        labelled: bool, broadcast to the logits of a layer; entries where it is false give nothing unless they are
            matched, since it is not known that there is no object of that class.

    Returns:
        (layers,).
    """
    scores = flat_scores(logits, quality.dtype) if scores is None else scores
    matched = scores[index] if matched is None else matched
    return _QualityFocalLoss.apply(scores, index, matched, quality, labelled, per_layer, *logits)


class RFDETRCriterion:
    """Matching and losses of RF-DETR.

    Terms of each layer, every one a sum over the batch divided by `num_boxes`:

    - `loss_ce`: IoU-aware classification over all entries, see `quality_focal_loss`; the target of a matched entry is
      max(p^alpha * IoU^(1-alpha), 0.01). Where images say which classes are labelled in them (`labelled_classes`), the
      others give nothing there, neither loss nor gradient, unless they are matched;
    - `loss_bbox`: L1 distance of cxcywh over the matched pairs;
    - `loss_giou`: 1 - GIoU over the matched pairs.

    Without objects the box terms are zeros connected to the boxes, and the classification term is the background's.

    Args:
        config: read for class_cost, bbox_cost, giou_cost, focal_alpha, class_loss_coefficient, bbox_loss_coefficient,
            giou_loss_coefficient, auxiliary_loss and decoder_layers.
        task: the terms of masks or keypoints, see `MaskTerms` and `KeypointTerms`.
    """

    def __init__(self, config: LossConfig, task: TaskTerms | None = None) -> None:
        self.task, self._check = task, ValueCheck()
        self.focal_alpha = config.focal_alpha
        self.matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost, config.focal_alpha)
        self.coefficients = {
            "loss_ce": float(config.class_loss_coefficient),
            "loss_bbox": float(config.bbox_loss_coefficient),
            "loss_giou": float(config.giou_loss_coefficient),
            **(task.coefficients if task else {}),
        }
        auxiliary = [f"_{layer}" for layer in range(config.decoder_layers - 1)] if config.auxiliary_loss else []
        self._weights: dict[Any, Tensor] = {}  # those of `weighted_sum`, on their device
        suffixes, terms = ("", *auxiliary, "_enc"), self.coefficients.items()
        self.weight_dict = {f"{name}{suffix}": weight for suffix in suffixes for name, weight in terms}

    def __call__(
        self,
        layers: Sequence[LayerOutput],
        targets: Sequence[Mapping[str, Tensor]],
        num_groups: int = 1,
        num_boxes: float | Tensor | None = None,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Compute every loss term, unweighted.

        Args:
            layers: the supervised layers; the one with suffix "" also gives `class_error`.
            targets: per image `class_labels` (n,) integers, `boxes` (n, 4) cxcywh in [0, 1], perhaps
                `labelled_classes` (C,) bool, and what the task needs; other keys are ignored. Matching reads the
                logits of the objects' own classes alone, and needs no `labelled_classes`.
            num_groups: query groups in the rows of each layer: `group_detr` in training, 1 in evaluation.
            num_boxes: what the sums are divided by: boxes x groups of the accumulation window per process. By
                default that of this batch, averaged over the processes, and at least 1.
            seed: what random points of the task's terms derive from, together with the `image_id` of the targets (or
                the position in the batch) and the layer: the terms of an image are then the same in any batch. By
                default a number from torch's generator of the CPU.

        Returns:
            `loss_ce`, `loss_bbox`, `loss_giou` and the task's terms of each layer (name + suffix), with gradient,
            float32 (float64 for float64 logits); and for the log, without gradient: `cardinality_error` of each layer
            (number of rows whose best class has p > 0.5, less the number of objects; absolute value, mean over images)
            and `class_error` (percentage of the matched queries of the last layer whose best class is another one; 100
            when nothing is matched).

        Raises:
            ValueError: for targets that do not fit, naming image and field, see `pack_objects`.
        """
        reference = layers[0].logits
        with torch.autocast(reference.device.type, enabled=False):
            objects = pack_objects(targets, reference, reference.shape[0], reference.shape[2], self._check)
            truth = task_cost = None
            if self.task:
                truth = self.task.pack(targets, objects, int(torch.randint(2**62, ())) if seed is None else seed)
                with torch.no_grad():
                    task_cost = self.task.pair_cost(layers, objects, truth)
            logits: Any = [o.logits for o in layers]
            scores = None
            if len(list(_runs(layers))) == 1:
                scores = flat_scores(logits, objects.boxes.dtype)
                logits = scores.view(len(layers), *reference.shape)
            matches = self.matcher(logits, [o.boxes for o in layers], objects, num_groups, task_cost)
            divisor = self._divisor(num_boxes, objects, num_groups)
            losses = self._detection_losses(layers, objects, matches, divisor, scores)
            if self.task:
                table = self.task.losses(layers, objects, truth, matches, num_groups) / divisor  # (terms, layers)
                names = [f"{name}{o.name_suffix}" for name in self.task.coefficients for o in layers]
                losses |= dict(zip(names, table.flatten().unbind(), strict=True))
            return losses | logging_values(layers, logits, objects, matches)

    def weighted_sum(self, loss_dict: Mapping[str, Tensor]) -> Tensor:
        """The loss to minimise: each term of `loss_dict` that has a weight in `weight_dict`, times it."""
        names = tuple(name for name in self.weight_dict if name in loss_dict)
        values = torch.stack([loss_dict[name] for name in names])
        key = names, values.device, values.dtype
        if key not in self._weights:
            weights = np.asarray([self.weight_dict[name] for name in names])
            self._weights[key] = to_device(weights, values.device).to(values.dtype)
        return (values * self._weights[key]).sum()

    def _divisor(self, num_boxes: float | Tensor | None, objects: PackedObjects, num_groups: int) -> Tensor:
        if isinstance(num_boxes, Tensor):
            return num_boxes.to(objects.boxes)
        if num_boxes is not None:
            return objects.boxes.new_full((), num_boxes)
        divisor = objects.boxes.new_full((), sum(objects.counts) * num_groups)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(divisor)
            divisor = divisor / torch.distributed.get_world_size()
        return divisor.clamp(min=1)

    def _detection_losses(
        self,
        layers: Sequence[LayerOutput],
        objects: PackedObjects,
        matches: QueryMatches,
        divisor: Tensor,
        all_scores: Tensor | None,
    ) -> dict[str, Tensor]:
        truth, labels = objects.boxes[matches.target], objects.labels[matches.target]  # (M, 4), (M,)
        boxes = torch.cat([layer.boxes.flatten(0, 1) for layer in layers])  # (all rows, 4)
        distance, giou, iou = box_terms(boxes.index_select(0, matches.row).to(truth.dtype), truth)
        closeness = iou ** (1 - self.focal_alpha)
        # (M,), of the logits of all layers end to end
        entries = torch.add(labels, matches.row, alpha=layers[0].logits.shape[2])
        labelled = None if objects.labelled is None else objects.labelled[:, None]  # (B, 1, C)
        classification, first, end = [], 0, 0
        for run in _runs(layers):
            counts = matches.per_layer[run]
            start, end = end, end + sum(counts)
            logits, own = [layer.logits for layer in layers[run]], slice(start, end)
            scores = flat_scores(logits, iou.dtype) if all_scores is None else all_scores
            index = entries[own] - first if first else entries[own]
            matched = scores[index]
            quality = (matched.sigmoid() ** self.focal_alpha * closeness[own]).clamp(min=_MIN_QUALITY)
            classification.append(quality_focal_loss(logits, index, quality, counts, scores, matched, labelled))
            first += len(scores)
        sums = torch.cat((*classification, sum_by_layer(torch.stack((distance, giou)), matches.per_layer).flatten()))
        names = [f"{name}{o.name_suffix}" for name in ("loss_ce", "loss_bbox", "loss_giou") for o in layers]
        return dict(zip(names, (sums / divisor).unbind(), strict=True))


def _runs(layers: Sequence[LayerOutput]) -> Iterator[slice]:
    """Layers of one shape that are computed together."""
    limit = _LOGITS_AT_ONCE.get(layers[0].logits.device.type, _LOGITS_AT_ONCE["default"])
    first = 0
    for end in range(1, len(layers) + 1):
        size = sum(layer.logits.numel() for layer in layers[first : end + 1])
        if end == len(layers) or size > limit or layers[end].logits.shape != layers[first].logits.shape:
            yield slice(first, end)
            first = end


@torch.no_grad()
def logging_values(
    layers: Sequence[LayerOutput], logits: Sequence[Tensor] | Tensor, objects: PackedObjects, matches: QueryMatches
) -> dict[str, Tensor]:
    """`cardinality_error` of each layer and `class_error` of the layer with suffix "", computed on the device.

    `logits`: of the layers, as a list or stacked.
    """
    present = to_device(np.asarray(objects.counts), objects.image.device)
    # (layers, B), rows with p > 0.5
    if isinstance(logits, Tensor):
        predicted = (logits.amax(-1) > 0).sum(2)
    else:
        predicted = torch.stack([(layer.amax(-1) > 0).sum(1) for layer in logits])
    errors = (predicted - present).abs().mean(1, dtype=objects.boxes.dtype)
    values = {f"cardinality_error{o.name_suffix}": own for o, own in zip(layers, errors.unbind(), strict=True)}
    for output, batch, query, target in zip(layers, *matches.split("batch", "query", "target"), strict=True):
        if output.name_suffix == "":
            right = output.logits[batch, query].argmax(-1) == objects.labels[target]  # (m,)
            number = right.sum(dtype=objects.boxes.dtype)
            values["class_error"] = torch.rsub(number, 100, alpha=100 / max(len(batch), 1))
    return values
