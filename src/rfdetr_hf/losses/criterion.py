"""The training loss of detection: matching, IoU-aware classification and boxes, over all supervised layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .boxes import cxcywh_to_xyxy, iou_and_giou
from .matcher import HungarianMatcher
from .types import LayerOutput, LossConfig, PackedObjects, QueryMatches, TaskTerms, pack_objects, to_device

_MIN_QUALITY = 0.01  # floor of the classification target of a matched query


class _QualityFocalLoss(torch.autograd.Function):
    # Written by hand for memory: the logits are the largest tensor of the loss, and autograd would keep several float32
    # copies of them until the backward pass. This keeps the logits as they came and computes the rest twice.

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, quality: Tensor) -> Tensor:
        ctx.save_for_backward(logits, index, quality)
        scores = logits.flatten().to(quality.dtype)
        matched = scores[index]
        terms = F.logsigmoid(-scores).mul_(scores.sigmoid().square_())
        terms[index] = quality * F.logsigmoid(matched) + (1 - quality) * F.logsigmoid(-matched)
        return -terms.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, index, quality = ctx.saved_tensors
        scores = logits.flatten().to(quality.dtype)
        probability = scores.sigmoid()
        slope = F.logsigmoid(-scores).mul_(1 - probability).mul_(-2).add_(probability).mul_(probability.square())
        slope[index] = probability[index] - quality
        return slope.mul_(grad).view_as(logits).to(logits.dtype), None, None


def quality_focal_loss(logits: Tensor, index: Tensor, quality: Tensor) -> Tensor:
    """Sum of the IoU-aware binary cross entropy over all logits.

    With p = sigmoid(logit): a matched entry gives -t log p - (1-t) log(1-p) for its target t, any other entry
    -p^2 log(1-p), where the factor p^2 carries gradient too.

    Args:
        logits: any shape and float type; finite values of any size give finite results.
        index: (M,) int64 positions of the matched entries in the flattened logits, no position twice.
        quality: (M,) targets t in [0, 1], taken as constants; their type is that of the computation and of the result.

    Returns:
        A scalar.
    """
    return _QualityFocalLoss.apply(logits, index, quality)


class RFDETRCriterion:
    """Matching and losses of RF-DETR.

    Terms of each layer, every one a sum over the batch divided by `num_boxes`:

    - `loss_ce`: IoU-aware classification over all entries, see `quality_focal_loss`; the target of a matched entry is
      max(p^alpha * IoU^(1-alpha), 0.01);
    - `loss_bbox`: L1 distance of cxcywh over the matched pairs;
    - `loss_giou`: 1 - GIoU over the matched pairs.

    Without objects the box terms are zeros connected to the boxes, and the classification term is the background's.

    Args:
        config: read for class_cost, bbox_cost, giou_cost, focal_alpha, class_loss_coefficient, bbox_loss_coefficient,
            giou_loss_coefficient, auxiliary_loss and decoder_layers.
        task: the terms of masks or keypoints, see `MaskTerms` and `KeypointTerms`.
    """

    def __init__(self, config: LossConfig, task: TaskTerms | None = None) -> None:
        self.task = task
        self.focal_alpha = config.focal_alpha
        self.matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost, config.focal_alpha)
        self.coefficients = {
            "loss_ce": float(config.class_loss_coefficient),
            "loss_bbox": float(config.bbox_loss_coefficient),
            "loss_giou": float(config.giou_loss_coefficient),
            **(task.coefficients if task else {}),
        }
        auxiliary = [f"_{layer}" for layer in range(config.decoder_layers - 1)] if config.auxiliary_loss else []
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
            targets: per image `class_labels` (n,) integers, `boxes` (n, 4) cxcywh in [0, 1], and what the task needs;
                other keys are ignored.
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
            objects = pack_objects(targets, reference, reference.shape[0], reference.shape[2])
            truth = task_cost = None
            if self.task:
                truth = self.task.pack(targets, objects, int(torch.randint(2**62, ())) if seed is None else seed)
                with torch.no_grad():
                    task_cost = self.task.pair_cost(layers, objects, truth)
            logits, boxes = [o.logits for o in layers], [o.boxes for o in layers]
            matches = self.matcher(logits, boxes, objects, num_groups, task_cost)
            divisor = self._divisor(num_boxes, objects, num_groups)
            losses = self._detection_losses(layers, objects, matches, divisor)
            if self.task:
                sums = self.task.losses(layers, objects, truth, matches, num_groups)
                losses |= {name: value / divisor for name, value in sums.items()}
            return losses | logging_values(layers, objects, matches)

    def weighted_sum(self, loss_dict: Mapping[str, Tensor]) -> Tensor:
        """The loss to minimise: each term of `loss_dict` that has a weight in `weight_dict`, times it."""
        return torch.stack(
            [loss_dict[name] * weight for name, weight in self.weight_dict.items() if name in loss_dict]
        ).sum()

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
        self, layers: Sequence[LayerOutput], objects: PackedObjects, matches: QueryMatches, divisor: Tensor
    ) -> dict[str, Tensor]:
        truth, labels = objects.boxes[matches.target], objects.labels[matches.target]  # (M, 4), (M,)
        boxes, entries, scores = [], [], []
        pairs = zip(layers, *matches.split("batch", "query"), labels.split(matches.per_layer), strict=True)
        for output, batch, query, label in pairs:
            row = batch * output.boxes.shape[1] + query  # (m,), of B * G*q
            boxes.append(output.boxes.flatten(0, 1).index_select(0, row))  # (m, 4)
            entries.append(row * output.logits.shape[2] + label)  # (m,), of B * G*q * C
            scores.append(output.logits.detach().flatten()[entries[-1]])  # (m,)
        predicted = torch.cat(boxes).to(truth.dtype)
        iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))  # (M,)
        quality = torch.cat(scores).to(iou.dtype).sigmoid() ** self.focal_alpha * iou.detach() ** (1 - self.focal_alpha)
        quality = quality.clamp(min=_MIN_QUALITY).split(matches.per_layer)
        box_terms = torch.stack(((predicted - truth).abs().sum(-1), 1 - giou))  # (2, M)
        box_sums = torch.stack([terms.sum(1) for terms in box_terms.split(matches.per_layer, dim=1)])  # (layers, 2)
        losses = {}
        for output, index, target, sums in zip(layers, entries, quality, box_sums / divisor, strict=True):
            losses[f"loss_ce{output.name_suffix}"] = quality_focal_loss(output.logits, index, target) / divisor
            losses[f"loss_bbox{output.name_suffix}"], losses[f"loss_giou{output.name_suffix}"] = sums
        return losses


@torch.no_grad()
def logging_values(layers: Sequence[LayerOutput], objects: PackedObjects, matches: QueryMatches) -> dict[str, Tensor]:
    """`cardinality_error` of each layer and `class_error` of the layer with suffix "", computed on the device."""
    values = {}
    present = to_device(np.asarray(objects.counts), objects.image.device)
    for output, batch, query, target in zip(layers, *matches.split("batch", "query", "target"), strict=True):
        predicted = (output.logits.amax(-1) > 0).sum(1)  # (B,), rows with p > 0.5
        values[f"cardinality_error{output.name_suffix}"] = (predicted - present).abs().to(objects.boxes.dtype).mean()
        if output.name_suffix == "":
            right = output.logits[batch, query].argmax(-1) == objects.labels[target]  # (m,)
            accuracy = right.to(objects.boxes.dtype).sum() / max(len(batch), 1)
            values["class_error"] = 100 - 100 * accuracy
    return values
