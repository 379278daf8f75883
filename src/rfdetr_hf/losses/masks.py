"""Mask terms of matching and loss, on sampled points and from factors: no mask of an unmatched query is ever built.

A mask is the product of a query's features with the features of each cell. Reading it at a point is linear in the
latter, so the matching cost samples the feature map once for all queries, and the loss multiplies out the masks of
matched queries alone, which are dropped again before the next layer.

Points are in the frame of the un-padded image, as boxes are: (0, 0) is its upper left corner and (1, 1) its lower right
one, whatever the canvas and whatever the size of the masks on either side. They are random, and each image has its own:
they do not depend on how a step is split into batches and processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .points import RandomPoints
from .types import LayerOutput, LossConfig, MaskFactors, PackedObjects, QueryMatches, compute_dtype, to_device

OVERSAMPLING = 3
UNCERTAIN_SHARE = 0.75

# Cells of matched masks that exist at a time (unless one image has more), 256 MB in float32.
_CELLS_AT_ONCE = 2**26


class MaskTruth(NamedTuple):
    """The true masks of a batch, end to end, each in its own size.

    Attributes:
        cells: (total,) uint8, non-zero = object.
        start: (N,) where the mask of each object begins.
        width, height: (N,).
        points: where masks of the batch are read.
    """

    cells: Tensor
    start: Tensor
    width: Tensor
    height: Tensor
    points: RandomPoints

    def read(self, target: Tensor, points: Tensor) -> Tensor:
        """Whether the points (M, P, 2) lie in the masks `target` (M,): 0 or 1 in the dtype of the points."""
        width, height = self.width[target][:, None], self.height[target][:, None]
        column = (points[..., 0] * width).long().clamp(min=0).minimum(width - 1)
        row = (points[..., 1] * height).long().clamp(min=0).minimum(height - 1)
        return (self.cells[self.start[target][:, None] + row * width + column] != 0).to(points.dtype)


class MaskTerms:
    """Matching cost and losses of masks: binary cross entropy and dice.

    The cost of a pair reads `Hm * Wm / mask_point_sample_ratio` uniform points, the same for all pairs of an image and
    layer. The loss reads as many (at least Hm), chosen for each pair as in PointRend (arXiv:1912.08193, section 3.1):
    of three times as many uniform ones the 75 % whose logits are nearest to 0, and fresh uniform ones for the rest.

    Terms of each layer, summed over the matched pairs: `loss_mask_ce`, the mean over the points of the cross entropy;
    `loss_mask_dice`, 1 - (2 sum p t + 1) / (sum p + sum t + 1).

    Without objects both are zeros connected to the factors.

    Args:
        config: read for mask_point_sample_ratio, mask_class_loss_coefficient and mask_dice_loss_coefficient.
    """

    def __init__(self, config: LossConfig) -> None:
        self.sample_ratio = config.mask_point_sample_ratio
        self.ce_weight = float(config.mask_class_loss_coefficient)
        self.dice_weight = float(config.mask_dice_loss_coefficient)
        self.coefficients = {"loss_mask_ce": self.ce_weight, "loss_mask_dice": self.dice_weight}

    def pack(self, targets: Sequence[Mapping[str, Tensor]], objects: PackedObjects, seed: int) -> MaskTruth:
        """Lay the masks of all images end to end.

        Args:
            targets: per image `masks` (n, h, w), bool or uint8 (non-zero = object), in any size; they cover the
                un-padded image. `image_id`, one integer, see `RandomPoints`.
            objects: the objects of the batch.
            seed: of the random points.

        Raises:
            ValueError: naming the image whose field 'masks' is missing or of another shape or type.
        """
        for index, (target, count) in enumerate(zip(targets, objects.counts, strict=True)):
            _check_masks(f"labels of image {index} of the batch", target.get("masks"), count)
        device, shapes = objects.boxes.device, [target["masks"].shape[-2:] for target in targets]
        height, width = np.repeat(np.asarray(shapes, dtype=np.int64), objects.counts, axis=0).T.copy()  # (N,) each
        start = np.cumsum(height * width) - height * width
        cells = torch.cat([target["masks"].to(device).view(torch.uint8).flatten() for target in targets])
        points = RandomPoints.of(targets, seed, device)
        start, width, height = to_device(np.stack((start, width, height)), device)
        return MaskTruth(cells, start, width, height, points)

    @torch.no_grad()
    def pair_cost(self, layers: Sequence[LayerOutput], objects: PackedObjects, truth: MaskTruth) -> Tensor:
        """Weighted cost of each object with each query of its image: (N, rows of all layers side by side)."""
        factors = [layer.masks for layer in layers if layer.masks is not None]
        costs = [self._layer_cost(number, each, objects, truth) for number, each in enumerate(factors)]
        return torch.cat(costs, dim=1)

    def _layer_cost(self, layer: int, factors: MaskFactors, objects: PackedObjects, truth: MaskTruth) -> Tensor:
        batch, _, height, width = factors.features.shape
        device, dtype = objects.boxes.device, objects.boxes.dtype
        points = truth.points.for_images(layer, max(height * width // self.sample_ratio, 1))
        every_object = torch.arange(len(objects.labels), device=device)
        inside = truth.read(every_object, points[objects.image]).to(dtype)  # (N, P)
        grid = factors.canvas_grid(points, torch.arange(batch, device=device))
        features = _read_maps(factors.features.to(dtype), grid)  # (B, C, P)
        costs = []
        for queries, read, own in zip(factors.queries, features, inside.split(objects.counts), strict=True):
            scores = queries.to(dtype) @ read + factors.bias.to(dtype)  # (Q, P), own (n, P)
            cross_entropy = (F.softplus(scores).sum(1) - own @ scores.T) / scores.shape[1]
            probability = scores.sigmoid()
            dice = 1 - (2 * (own @ probability.T) + 1) / (probability.sum(1) + own.sum(1)[:, None] + 1)
            costs.append(self.ce_weight * cross_entropy + self.dice_weight * dice)  # (n, Q)
        return torch.cat(costs)

    def losses(
        self,
        layers: Sequence[LayerOutput],
        objects: PackedObjects,
        truth: MaskTruth,
        matches: QueryMatches,
        num_groups: int,
    ) -> dict[str, Tensor]:
        """`loss_mask_ce` and `loss_mask_dice` of each layer, summed over the matched pairs."""
        losses = {}
        factors = [layer.masks for layer in layers if layer.masks is not None]
        pairs = zip(*matches.split("batch", "query", "target"), strict=True)
        for number, (layer, masks, own) in enumerate(zip(layers, factors, pairs, strict=True)):
            limit = layer.logits.shape[1] // num_groups
            per_image = [min(count, limit) * num_groups for count in objects.counts]
            cross_entropy, dice = self._layer_losses(number, masks, own, per_image, truth)
            losses[f"loss_mask_ce{layer.name_suffix}"] = cross_entropy
            losses[f"loss_mask_dice{layer.name_suffix}"] = dice
        return losses

    def _layer_losses(
        self,
        layer: int,
        factors: MaskFactors,
        matched: tuple[Tensor, ...],
        per_image: list[int],
        truth: MaskTruth,
    ) -> tuple[Tensor, Tensor]:
        if not sum(per_image):
            dtype = compute_dtype(factors.features)
            parts = [part[:0].sum() for part in (factors.features, factors.queries, factors.bias)]
            zero = torch.stack([part.to(dtype) for part in parts]).sum()
            return zero, zero
        height, width = factors.features.shape[-2:]
        count = max(height, height * width // self.sample_ratio)
        batch, query, target = matched
        queries = factors.queries[batch, query]  # (m, C)
        scores, points = [], []
        for images, pairs in _runs(per_image, height * width):
            mask = (queries[pairs], factors.features[images], factors.bias, per_image[images])
            uniform = truth.points.for_pairs(layer, batch[pairs], query[pairs], num_uniform(count))
            chosen = choose_points(factors, mask, batch[pairs], uniform, count)  # (pairs, count, 2)
            grid = factors.canvas_grid(chosen, batch[pairs])
            # The masks would be the largest tensors of the step: they are built again in the backward pass.
            scores.append(checkpoint(_read_masks, mask, grid, use_reentrant=False, preserve_rng_state=False))
            points.append(chosen)
        scores, points = torch.cat(scores), torch.cat(points)
        return point_losses(scores, truth.read(target, points).to(scores.dtype))


def point_losses(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (mean over the points) and dice, each summed over the pairs.

    Args:
        scores: (M, P) logits.
        truth: (M, P), 0 or 1.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(1).sum()
    probability = scores.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return cross_entropy, dice.sum()


def num_uniform(count: int) -> int:
    """How many uniform points `choose_points` needs to choose `count`."""
    return OVERSAMPLING * count + count - int(UNCERTAIN_SHARE * count)


@torch.no_grad()
def choose_points(
    factors: MaskFactors, mask: tuple[Tensor, Tensor, Tensor, list[int]], image: Tensor, uniform: Tensor, count: int
) -> Tensor:
    """Points (M, count, 2) for M pairs, most of them where the predicted mask is undecided.

    Args:
        factors: the layer that the pairs are of.
        mask: what `_read_masks` takes.
        image: (M,) image of each pair.
        uniform: (M, `num_uniform(count)`, 2) uniform points: those to choose from, then those that are always taken.
        count: points of each pair.
    """
    candidates, taken = uniform.split([OVERSAMPLING * count, uniform.shape[1] - OVERSAMPLING * count], dim=1)
    scores = _read_masks(mask, factors.canvas_grid(candidates, image))  # (M, 3 * count)
    nearest = scores.abs().topk(count - taken.shape[1], dim=1, largest=False).indices
    undecided = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([undecided, taken], dim=1)


def _runs(per_image: list[int], cells: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive images, and their pairs, whose masks of `cells` cells fit into memory together."""
    first, pairs, end = 0, 0, 0
    for image, count in enumerate(per_image):
        if pairs and (pairs + count) * cells > _CELLS_AT_ONCE:
            yield slice(first, image), slice(end - pairs, end)
            first, pairs = image, 0
        pairs, end = pairs + count, end + count
    yield slice(first, len(per_image)), slice(end - pairs, end)


def _read_masks(mask: tuple[Tensor, Tensor, Tensor, list[int]], grid: Tensor) -> Tensor:
    """Logits (M, P) of the masks of M queries, image after image, at their points.

    Args:
        mask: queries (M, C), features (B, C, Hm, Wm), bias (1,), and the number of queries of each image.
        grid: (M, P, 2) in [-1, 1].
    """
    queries, features, bias, per_image = mask
    dtype = compute_dtype(features)
    products = [
        own.to(dtype) @ cells.to(dtype).flatten(1)
        for own, cells in zip(queries.split(per_image), features, strict=True)
    ]
    # (M, Hm * Wm) -> (M, Hm, Wm)
    dense = torch.cat(products).unflatten(1, features.shape[-2:]) + bias.to(dtype)
    return _read_maps(dense[:, None], grid)[:, 0]


def _read_maps(maps: Tensor, grid: Tensor) -> Tensor:
    """Maps (M, C, h, w) at points (M, P, 2), bilinear with the border repeated: (M, C, P)."""
    return F.grid_sample(maps, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def _check_masks(where: str, masks: Tensor | None, count: int) -> None:
    if masks is None:
        raise ValueError(f"{where}: field 'masks' is missing: segmentation is trained on data with masks")
    if masks.ndim != 3 or len(masks) != count or masks.dtype not in (torch.bool, torch.uint8) or 0 in masks.shape[1:]:
        raise ValueError(
            f"{where}: field 'masks' must be bool or uint8 of shape ({count}, h, w), one mask per class label, got "
            f"{masks.dtype} {tuple(masks.shape)}"
        )
