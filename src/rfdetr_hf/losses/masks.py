"""Mask terms of matching and loss, on sampled points and from factors: no mask of an unmatched query is ever built.

A mask is the product of a query's features with the features of each cell. Reading it at a point is linear in the
latter, so the matching cost samples the feature map once for all queries, and the loss multiplies out the masks of
matched queries alone, which are dropped again before the next layer.

Points are in the frame of the un-padded image, as boxes are: (0, 0) is its upper left corner and (1, 1) its lower right
one, whatever the canvas and whatever the size of the masks on either side. They are random, and each image has its own:
they do not depend on how a step is split into batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .points import RandomPoints
from .types import (
    LayerOutput,
    LossConfig,
    MaskFactors,
    PackedObjects,
    QueryMatches,
    compute_dtype,
    sum_by_layer,
    to_device,
)

OVERSAMPLING = 3
UNCERTAIN_SHARE = 0.75

# Cells of matched masks and of their features that exist at a time (unless one image has more), 256 MB in float32.
_CELLS_AT_ONCE = 2**26
# Logits of unmatched queries, and their products with the truth, that exist at a time (likewise).
_SCORES_AT_ONCE = {"cpu": 2**21, "default": 2**25}
# Devices whose launches cost nothing: bringing the features of several layers together would only copy them.
_LAYERS_APART = {"cpu"}


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
        device, dtype = objects.boxes.device, objects.boxes.dtype
        batch, _, height, width = factors[0].features.shape
        count, images = max(height * width // self.sample_ratio, 1), torch.arange(batch, device=device)
        points = truth.points.for_images(len(factors), count)  # (layers, B, P, 2)
        every_object = torch.arange(len(objects.labels), device=device)
        slots = max((*objects.counts, 1))
        slot = objects.image * slots + to_device(_numbers(objects.counts), device)  # of (B, slots)
        limit = _SCORES_AT_ONCE.get(device.type, _SCORES_AT_ONCE["default"])
        costs = []
        for layer, own in enumerate(factors):
            inside = points.new_zeros((batch * slots, count), dtype=dtype)
            inside[slot] = truth.read(every_object, points[layer, objects.image]).to(dtype)
            inside = inside.view(batch, slots, count)
            read = _read_maps(own.features.to(dtype), own.canvas_grid(points[layer], images))  # (B, C, P)
            rows = max(1, limit // (own.queries.shape[1] * (count + slots)))
            pieces = zip(own.queries.split(rows), read.split(rows), inside.split(rows), strict=True)
            cost = torch.cat([self._cost_of(*piece, own.bias.to(dtype)) for piece in pieces])  # (B, slots, Q)
            costs.append(cost.flatten(0, 1)[slot])
        return torch.cat(costs, dim=1)

    def _cost_of(self, queries: Tensor, read: Tensor, inside: Tensor, bias: Tensor) -> Tensor:
        """Queries (B, Q, C), features (B, C, P) and truth (B, n, P) at the points of each image -> (B, n, Q)."""
        scores = torch.baddbmm(bias, queries.to(read.dtype), read)  # (B, Q, P)
        softplus = F.softplus(scores).sum(2)[:, None]
        cross_entropy = (softplus - inside @ scores.mT) / scores.shape[2]
        probability = scores.sigmoid_()
        total = probability.sum(2)[:, None] + inside.sum(2)[..., None] + 1
        dice = 1 - (2 * (inside @ probability.mT) + 1) / total
        return self.ce_weight * cross_entropy + self.dice_weight * dice

    def losses(
        self,
        layers: Sequence[LayerOutput],
        objects: PackedObjects,
        truth: MaskTruth,
        matches: QueryMatches,
        num_groups: int,
    ) -> Tensor:
        """Cross entropy and dice of each layer, summed over the matched pairs: (2, layers)."""
        factors = [layer.masks for layer in layers if layer.masks is not None]
        dtype = compute_dtype(factors[0].features)
        if not sum(matches.per_layer):
            parts = [torch.stack([part[:0].sum() for part in each[:3]]).sum() for each in factors]
            return torch.stack(parts).to(dtype).expand(2, -1)
        keys = truth.points.for_pairs(matches.layer, matches.batch, matches.query)
        queries = torch.cat([each.queries.flatten(0, 1) for each in factors]).index_select(0, matches.row)  # (M, C)
        height, width = factors[0].features.shape[-2:]
        count = max(height, height * width // self.sample_ratio)
        limits = [layer.logits.shape[1] // num_groups for layer in layers]
        per_image = [[min(n, limit) * num_groups for n in objects.counts] for limit in limits]
        scores, points = [], []
        together = queries.device.type not in _LAYERS_APART
        for run in _runs(per_image, factors[0].features[0].numel(), height * width, together):
            batch, own_keys, own_queries = run.padded(matches.batch[run.pairs], keys[run.pairs], queries[run.pairs])
            read, chosen = _read_run(run, factors, batch, own_keys, own_queries, count)
            scores.append(run.without_padding(read))
            points.append(run.without_padding(chosen))
        scores, points = torch.cat(scores), torch.cat(points)
        terms = point_losses(scores, truth.read(matches.target, points).to(scores.dtype))
        return sum_by_layer(torch.stack(terms), matches.per_layer)


class _Run(NamedTuple):
    """Pairs whose masks are multiplied out together: those of some images of one layer or more.

    Attributes:
        parts: layer, first image and end of each stretch of images.
        counts: pairs of each image; where they differ, all are padded to the most.
        pairs: of all pairs.
    """

    parts: list[tuple[int, int, int]]
    counts: list[int]
    pairs: slice

    @property
    def slots(self) -> np.ndarray:
        """Where the pairs are among those of (images, most pairs of an image)."""
        return _numbers(self.counts) + np.repeat(np.arange(len(self.counts)) * max(self.counts), self.counts)

    def padded(self, *values: Tensor) -> list[Tensor]:
        """Values (pairs, ...) with zeros where an image has less pairs than another: (images * most pairs, ...)."""
        if len(set(self.counts)) == 1:
            return list(values)
        rows, slots = len(self.counts) * max(self.counts), to_device(self.slots, values[0].device)
        return [value.new_zeros(rows, *value.shape[1:]).index_copy(0, slots, value) for value in values]

    def without_padding(self, values: Tensor) -> Tensor:
        """The pairs out of (images * most pairs, ...)."""
        return values if len(set(self.counts)) == 1 else values[to_device(self.slots, values.device)]


def _numbers(counts: Sequence[int]) -> np.ndarray:
    """0, 1, ... for each of the counts, end to end."""
    return np.concatenate([np.arange(count, dtype=np.int64) for count in counts])


def _runs(per_image: list[list[int]], features: int, cells: int, across_layers: bool) -> Iterator[_Run]:
    """Consecutive images whose features and masks fit into memory together.

    Args:
        per_image: pairs of each image, for each layer.
        features, cells: numbers in the features of an image and in a mask.
        across_layers: whether the images of several layers may be taken together, which copies their features.
    """
    parts, counts, end = [], [], 0
    for layer, row in enumerate(per_image):
        for image, count in enumerate(row):
            size = (len(counts) + 1) * (features * across_layers + max((count, *counts)) * cells)
            if counts and (size > _CELLS_AT_ONCE or not across_layers and layer != parts[-1][0]):
                yield _Run(parts, counts, slice(end - sum(counts), end))
                parts, counts = [], []
            if count:
                follows = parts and parts[-1][0] == layer and parts[-1][2] == image
                first = parts.pop()[1] if follows else image
                parts.append((layer, first, image + 1))
                counts.append(count)
                end += count
    if counts:
        yield _Run(parts, counts, slice(end - sum(counts), end))


def _read_run(
    run: _Run, factors: Sequence[MaskFactors], image: Tensor, keys: Tensor, queries: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Logits of padded pairs at the points that the loss reads, (K, count), and the points (K, count, 2).

    Args:
        run: of the pairs.
        factors: of all layers.
        image, keys, queries: (K,), (K,), (K, C), image, key of the random points and features of each pair.
        count: points of each pair.
    """
    features = [factors[layer].features[first:end] for layer, first, end in run.parts]
    bias = torch.cat([factors[layer].bias.expand(end - first) for layer, first, end in run.parts])
    read = partial(_read_masks, bias, queries, *features)
    uniform = RandomPoints.draw(keys, num_uniform(count))
    chosen = choose_points(lambda points: read(factors[0].canvas_grid(points, image)), uniform, count)
    grid = factors[0].canvas_grid(chosen, image)
    # The masks would be the largest tensors of the step: they are built again in the backward pass.
    return checkpoint(read, grid, use_reentrant=False, preserve_rng_state=False), chosen


def point_losses(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (mean over the points) and dice of each pair, (M,).

    Args:
        scores: (M, P) logits.
        truth: (M, P), 0 or 1.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(1)
    probability = scores.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return cross_entropy, dice


def num_uniform(count: int) -> int:
    """How many uniform points `choose_points` needs to choose `count`."""
    return OVERSAMPLING * count + count - int(UNCERTAIN_SHARE * count)


@torch.no_grad()
def choose_points(read: Callable[[Tensor], Tensor], uniform: Tensor, count: int) -> Tensor:
    """Points (M, count, 2) for M pairs, most of them where the predicted mask is undecided.

    Args:
        read: gives the logits (M, P) of the pairs' masks at points (M, P, 2).
        uniform: (M, `num_uniform(count)`, 2) uniform points: those to choose from, then those that are always taken.
        count: points of each pair.
    """
    candidates, taken = uniform.split([OVERSAMPLING * count, uniform.shape[1] - OVERSAMPLING * count], dim=1)
    nearest = read(candidates).abs().topk(count - taken.shape[1], dim=1, largest=False).indices
    undecided = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([undecided, taken], dim=1)


def _read_masks(bias: Tensor, queries: Tensor, *features_and_grid: Tensor) -> Tensor:
    """Logits (K, P) of the masks of K queries, as many for each of B images, at their points.

    Args:
        bias: (B,).
        queries: (K, C).
        features_and_grid: features (B, C, Hm, Wm), together of all images, and points (K, P, 2) in [-1, 1].
    """
    *features, grid = features_and_grid
    maps = features[0] if len(features) == 1 else torch.cat(features)
    maps = maps.to(compute_dtype(maps))
    bias, queries = bias.to(maps.dtype)[:, None, None], queries.to(maps.dtype).unflatten(0, (len(maps), -1))
    dense = torch.baddbmm(bias, queries, maps.flatten(2))
    # (images, queries, Hm * Wm) -> (K, 1, Hm, Wm)
    return _read_maps(dense.flatten(0, 1).unflatten(1, maps.shape[-2:])[:, None], grid)[:, 0]


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
