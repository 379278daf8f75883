"""One image with its objects, and the geometry that moves both together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..masks import rasterise, resample_masks
from .pixels import Picture, Pixels, resample

__all__ = ["Others", "Sample", "View", "clip_objects", "select_objects"]

MAX_JPEG_REDUCTION = 8


@dataclass
class Sample:
    """What a transform receives and returns.

    Attributes:
        image: a PIL image, RGB, perhaps a JPEG that is not decoded yet; after a transform a tensor (3, H, W), uint8
            from training, normalised float from evaluation.
        target: arrays with one row per object: `boxes` (n, 4) float32 xyxy in pixels of `image`, `class_labels` (n,)
            int64, `area` (n,) float32, `iscrowd` (n,) bool; where the data set has them, `keypoints` (n, K, 3) float32
            (x, y, v), and `segmentation` (n,), masks as `masks.mask_column` makes them, which a transform turns into
            `masks` (n, h, w) bool of the whole image. Every entry is per object, so that whatever drops an object
            drops its row everywhere.
        image_id: id of the image in its data set.
        orig_size: (height, width) of the image as annotated.
        labelled: (classes,) bool, whether the class is labelled completely in the image; None for all. An image that is
            made of several has the classes that all of them have.
    """

    image: Any
    target: dict[str, np.ndarray]
    image_id: int
    orig_size: tuple[int, int]
    labelled: np.ndarray | None = None

    def with_image(self, image: Any, target: dict[str, np.ndarray]) -> Sample:
        """The same image of the data set, seen differently."""
        return replace(self, image=image, target=target)


@dataclass(frozen=True)
class Others:
    """The images of a data set, for a transform that joins several.

    Attributes:
        epoch: that the sample is drawn in.
        count: rows of the data set.
        visit: opens the image of a row, hands the sample to a function while it is open, and returns its result.
        ends: (count,) the sums of the rows' weights, each with those before, where rows are not drawn equally often.
    """

    epoch: int
    count: int
    visit: Callable[[int, Callable[[Sample], Sample]], Sample]
    ends: np.ndarray | None = None

    def draw(self, rng: np.random.Generator) -> int:
        """A row by chance, as often as a training draws it."""
        if self.ends is None:
            return int(rng.integers(self.count))
        return min(int(np.searchsorted(self.ends, rng.random() * self.ends[-1], side="right")), self.count - 1)


def select_objects(target: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    """Rows `keep` (a boolean mask or indices) of every field."""
    if keep.dtype == bool and keep.all():
        return target
    return {name: values[keep] for name, values in target.items()}


def clip_objects(target: dict[str, np.ndarray], region: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    """Cut boxes at a region (left, top, right, bottom) and drop the objects that have no area inside.

    Keypoints outside are not labelled any more: x, y and v become zero.

    There is no minimum visibility, as in the official recipe. The area of a cut object shrinks with its box: the
    share of an object's pixels inside is not known from the box alone, and for annotations whose area is the box's
    the rule is exact.
    """
    boxes = target["boxes"]
    left, top, right, bottom = region
    # (n, 4) float32, as the boxes are: numbers of another type would change theirs.
    low, high = np.array([left, top] * 2, np.float32), np.array([right, bottom] * 2, np.float32)
    clipped = np.minimum(np.maximum(boxes, low), high)
    sides, lengths = clipped[:, 2:] - clipped[:, :2], (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    whole = lengths[:, 0] * lengths[:, 1]
    seen = sides[:, 0].astype(np.float64) * sides[:, 1]
    share = np.divide(seen, whole, out=np.zeros(len(boxes)), where=whole > 0)
    moved = {"boxes": clipped, "area": (target["area"] * share).astype(np.float32)}
    if "keypoints" in target:
        xy = target["keypoints"][..., :2]
        inside = ((xy >= (left, top)) & (xy <= (right, bottom))).all(axis=-1, keepdims=True)
        labelled = inside & (target["keypoints"][..., 2:] > 0)
        moved["keypoints"] = np.where(labelled, target["keypoints"], np.float32(0))
    return select_objects({**target, **moved}, (sides[:, 0] > 0) & (sides[:, 1] > 0))


@dataclass(frozen=True)
class View:
    """A rectangle of the annotated image, the size that it is resampled to, and whether it is mirrored.

    Crop, resize and flip are one object, so that pixels are resampled once and boxes are mapped once. Coordinates are
    continuous: pixel column i covers [i, i + 1], the image [0, width], and a mirrored x is width - x.
    """

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int
    flip: bool = False

    def render(self, image: Image.Image) -> torch.Tensor:
        """Resample the rectangle with an antialiased bilinear filter.

        A JPEG (`Picture`) is decoded at 1/2, 1/4 or 1/8 where that leaves at least as many pixels as are asked for.

        Returns:
            uint8 (3, height, width).
        """
        source = self._decoded(image)
        left, top, right, bottom = (edge / source.reduction for edge in (self.left, self.top, self.right, self.bottom))
        width, height = -(-image.width // source.reduction), -(-image.height // source.reduction)
        pixels = resample(source, (left, top, min(right, width), min(bottom, height)), self.width, self.height)
        return pixels.flip(-1) if self.flip else pixels

    def _decoded(self, image: Image.Image) -> Pixels:
        """The image, at 1/2, 1/4 or 1/8 of its size where it is a JPEG and enough pixels are left."""
        if not isinstance(image, Picture):
            return Pixels(image if image.mode == "RGB" else image.convert("RGB"))
        spare = min((self.right - self.left) / self.width, (self.bottom - self.top) / self.height)
        return image.decode(min(1 << int(np.log2(max(spare, 1))), MAX_JPEG_REDUCTION))

    def map_objects(
        self,
        target: dict[str, np.ndarray],
        *,
        mask_size: tuple[int, int] | None = None,
        flip_index: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Move the objects into the view: cut at its border, drop what is outside, scale, mirror.

        Args:
            target: as `Sample.target`, in pixels of the annotated image.
            mask_size: height and width of the masks, which show the whole view; None leaves masks out. An object whose
                mask has no pixel in the view is dropped, even where its box reaches into it.
            flip_index: `KeypointSchema.flip_index`, needed to mirror keypoints.
        """
        target = clip_objects(target, (self.left, self.top, self.right, self.bottom))
        scale_x, scale_y = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        boxes = target["boxes"].astype(np.float64)
        boxes -= np.array([self.left, self.top] * 2)
        boxes *= np.array([scale_x, scale_y] * 2)
        if self.flip:
            boxes[:, 0], boxes[:, 2] = self.width - boxes[:, 2], self.width - boxes[:, 0]
        boxes = np.minimum(np.maximum(boxes, 0.0), np.array([self.width, self.height] * 2)).astype(np.float32)
        moved = {"boxes": boxes, "area": target["area"] * np.float32(scale_x * scale_y)}
        if "keypoints" in target:
            moved["keypoints"] = self._map_keypoints(target, (scale_x, scale_y), flip_index)
        target = select_objects({**target, **moved}, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        return self._map_masks(target, mask_size)

    def _map_keypoints(
        self, target: dict[str, np.ndarray], scale: tuple[float, float], flip_index: np.ndarray | None
    ) -> np.ndarray:
        keypoints = target["keypoints"].astype(np.float64)
        keypoints[..., :2] = (keypoints[..., :2] - (self.left, self.top)) * scale
        if self.flip:
            if flip_index is None:
                raise ValueError("keypoints cannot be mirrored without flip pairs: pass keypoint_schema or do not flip")
            keypoints[..., 0] = self.width - keypoints[..., 0]
            keypoints = np.take_along_axis(keypoints, flip_index[target["class_labels"]][..., None], axis=1)
        return np.where(keypoints[..., 2:] > 0, keypoints, 0).astype(np.float32)

    def _map_masks(self, target: dict[str, np.ndarray], mask_size: tuple[int, int] | None) -> dict[str, np.ndarray]:
        rest = {name: values for name, values in target.items() if name not in ("segmentation", "masks")}
        source = target.get("segmentation", target.get("masks"))
        if mask_size is None or source is None:
            return rest
        masks = self._draw(source, mask_size)
        empty = np.flatnonzero(~np.any(masks, axis=(1, 2)))
        if not len(empty):
            return {**rest, "masks": masks}
        # Too small for the coarse grid, or not in the view at all: the pixels of the view itself tell.
        fine = self._draw(source[empty], (self.height, self.width))
        for row, pixels in zip(empty, fine, strict=True):
            if pixels.any():
                y, x = np.argwhere(pixels).mean(axis=0) + 0.5
                masks[row, int(y * mask_size[0] / self.height), int(x * mask_size[1] / self.width)] = True
        return select_objects({**rest, "masks": masks}, np.any(masks, axis=(1, 2)))

    def _draw(self, source: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        region = (self.left, self.top, self.right, self.bottom)
        draw: Any = rasterise if source.dtype == object else resample_masks
        return draw(source, region, size, self.flip)
