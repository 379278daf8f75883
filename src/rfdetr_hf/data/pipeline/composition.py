"""Several images of a data set as one: mosaic, mixup, copy-paste.

Each image is seen through a `View`, so that its pixels are resampled once, straight to where they are needed. Boxes,
masks and keypoints come along. What is covered by another image is cut off its object; an object of which nothing is
left is dropped, the rule of `clip_objects`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .view import Sample, View, select_objects

__all__ = ["Look", "copy_paste", "mixup", "mosaic", "region_of_shape"]

Target = dict[str, np.ndarray]
See = Callable[[Sample], Sample]
Look = Callable[[See], Sample]
"""Another image of the data set, chosen at random, as a function sees it."""
_SPLIT = (0.3, 0.7)
_HIDDEN = 1  # COCO's flag of a keypoint that is labelled and cannot be seen


@dataclass(frozen=True)
class Cell:
    """A rectangle of the picture that is made, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def mosaic(
    sample: Sample, size: tuple[int, int], see: Callable[[Cell], See], look: Look, rng: np.random.Generator
) -> Sample:
    """Four images around a point near the middle: the sample in one of the four cells, others in the rest.

    Args:
        sample: as it comes from its file.
        size: height and width of the picture, at least 4 pixels each.
        see: makes the view of a cell: a function from a sample as it comes from its file to its pixels in the cell.
        look: another image.
        rng: the only source of randomness.
    """
    height, width = size
    x, y = (round(side * rng.uniform(*_SPLIT)) for side in (width, height))
    cells = [Cell(0, 0, x, y), Cell(x, 0, width, y), Cell(0, y, x, height), Cell(x, y, width, height)]
    own = int(rng.integers(4))
    pixels, targets = torch.empty(3, height, width, dtype=torch.uint8), []
    for place, cell in enumerate(cells):
        piece = see(cell)(sample) if place == own else look(see(cell))
        pixels[:, cell.top : cell.bottom, cell.left : cell.right] = piece.image
        targets.append(_moved(piece.target, cell, size))
    return sample.with_image(pixels, _joined(targets))


def mixup(sample: Sample, see: See, look: Look, rng: np.random.Generator, alpha: float) -> Sample:
    """A blend of two pictures with the objects of both; the sample's share is drawn from Beta(alpha, alpha).

    Args:
        sample: with its pixels.
        see: sees an image in the size of the sample's picture.
        look, rng: as for `mosaic`.
        alpha: 1 for any share, large for shares near a half.
    """
    share, other = float(rng.beta(alpha, alpha)), look(see)
    blend = sample.image.float().mul_(share).add_(other.image.float(), alpha=1 - share)
    return sample.with_image(blend.round_().to(torch.uint8), _joined([sample.target, other.target]))


def copy_paste(sample: Sample, see: See, look: Look, rng: np.random.Generator, max_objects: int) -> Sample:
    """Objects of another image on top of the sample's, at the places that they have there.

    With masks the pixels of the chosen objects are pasted. Without, the contents of their boxes are, and with them the
    parts of other objects that lie inside.

    Args:
        sample: with its pixels.
        see: as for `mixup`.
        look, rng: as for `mosaic`.
        max_objects: at most so many are chosen, and at least one.
    """
    other = look(see)
    count = len(other.target["boxes"])
    if not count:
        return sample
    chosen = np.sort(
        rng.choice(count, size=min(count, int(rng.integers(1, max_objects, endpoint=True))), replace=False)
    )
    stencils = _stencils(other.target, sample.image.shape[1:])
    pasted = np.asarray(stencils[chosen].any(axis=0))  # (h, w)
    taken = select_objects(other.target, chosen) if "masks" in other.target else other.target
    taken = _cut(taken, pasted, hidden=0)
    below = _cut(sample.target, ~pasted, hidden=_HIDDEN)
    pixels = torch.where(torch.from_numpy(pasted), other.image, sample.image)
    return sample.with_image(pixels, _joined([below, taken]))


def region_of_shape(
    height: int, width: int, cell: Cell, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A part of an image with the proportions of a cell, in whole pixels: left, top, right, bottom.

    Args:
        height, width: of the image.
        cell: where the part will be.
        share: of the sides of the largest such part.
        rng: says where the part lies.
    """
    aspect = (cell.right - cell.left) / (cell.bottom - cell.top)
    wide = min(width, height * aspect) * share
    wide, high = max(1, round(wide)), max(1, min(height, round(wide / aspect)))
    left, top = int(rng.integers(width - wide, endpoint=True)), int(rng.integers(height - high, endpoint=True))
    return left, top, left + wide, top + high


def cell_view(sample: Sample, cell: Cell, share: float, flip: bool, rng: np.random.Generator) -> View:
    """The view that fills a cell with a random part of an image."""
    region = region_of_shape(*sample.orig_size, cell, share, rng)
    return View(*region, cell.right - cell.left, cell.bottom - cell.top, flip=flip)


def _moved(target: Target, cell: Cell, size: tuple[int, int]) -> Target:
    """The objects of a cell in the picture."""
    offset = np.array([cell.left, cell.top], np.float32)
    moved = {**target, "boxes": target["boxes"] + np.tile(offset, 2)}
    if "keypoints" in target:
        labelled = target["keypoints"][..., 2:] > 0
        moved["keypoints"] = target["keypoints"] + np.where(labelled, np.append(offset, np.float32(0)), np.float32(0))
    if "masks" in target:
        moved["masks"] = np.zeros((len(target["masks"]), *size), bool)
        moved["masks"][:, cell.top : cell.bottom, cell.left : cell.right] = target["masks"]
    return moved


def _joined(targets: Sequence[Target]) -> Target:
    return {name: np.concatenate([target[name] for target in targets]) for name in targets[0]}


def _stencils(target: Target, size: Sequence[int]) -> np.ndarray:
    """(n, h, w) the pixels of each object: its mask, or the pixels that its box reaches into."""
    if "masks" in target:
        return target["masks"]
    height, width = size
    found = np.zeros((len(target["boxes"]), height, width), bool)
    for stencil, box in zip(found, target["boxes"], strict=True):
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.ceil(box[2:]).astype(int)
        stencil[top:bottom, left:right] = True
    return found


def _cut(target: Target, visible: np.ndarray, hidden: int) -> Target:
    """Objects of which only some pixels are to be seen: boxes and masks shrink, areas with them.

    Args:
        target: objects with masks of the picture's size, or without.
        visible: (h, w).
        hidden: the flag of labelled keypoints that are not visible; 0 takes their labels.
    """
    before = _stencils(target, visible.shape)
    after = before & visible
    counts, left = before.sum(axis=(1, 2)), after.sum(axis=(1, 2))
    boxes, area = target["boxes"].copy(), target["area"].copy()
    for row in np.flatnonzero((left < counts) & (left > 0)):
        columns, rows = (np.flatnonzero(after[row].any(axis=axis)) for axis in (0, 1))
        bounds = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        boxes[row, :2] = np.maximum(boxes[row, :2], bounds[:2])
        boxes[row, 2:] = np.minimum(boxes[row, 2:], bounds[2:])
    sides = boxes[:, 2:] - boxes[:, :2]
    if "masks" in target:
        area *= (left / np.maximum(counts, 1)).astype(np.float32)
    else:
        whole = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(axis=1)
        area *= np.divide(sides.prod(axis=1), whole, out=np.zeros(len(area), np.float32), where=whole > 0)
    cut = {**target, "boxes": boxes, "area": area}
    if "masks" in target:
        cut["masks"] = after
    if "keypoints" in target:
        points = target["keypoints"].copy()
        x, y = points[..., 0].astype(int), points[..., 1].astype(int)
        seen = visible[y.clip(0, visible.shape[0] - 1), x.clip(0, visible.shape[1] - 1)]
        points[~seen & (points[..., 2] > 0), 2] = hidden
        cut["keypoints"] = np.where(points[..., 2:] > 0, points, np.float32(0))
    return select_objects(cut, (left > 0) & (sides > 0).all(axis=1))
