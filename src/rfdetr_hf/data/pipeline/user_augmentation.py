"""Augmentations from elsewhere: Albumentations, torchvision v2 and plain functions behind one call."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from .pixels import pil_from_pixels, pixels_from_pil
from .view import Sample, clip_objects, select_objects

__all__ = ["Augmentation", "adapt_augmentation", "seeded_globals"]

Target = dict[str, np.ndarray]
_BORDER = 0.01  # pixels
_BOX_LIMITS = ("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio")


def adapt_augmentation(augmentation: Any, flip_index: np.ndarray | None = None) -> Augmentation:
    """Wrap a user's augmentation so that it maps `(Sample, Generator)` to a `Sample`.

    Args:
        augmentation: one of

            * an Albumentations transform or `Compose`; its box limits (`min_area`, `min_visibility`, …) are kept, the
              rest of its `bbox_params` is replaced;
            * a torchvision-v2 transform; it gets a dict of `image` (PIL), `boxes` (`BoundingBoxes`) and `labels`,
              which hold row numbers, so that `SanitizeBoundingBoxes` can drop objects; and if there are any, `masks`
              (`Mask`) and `keypoints` (`KeyPoints`, of torchvision 0.23 or later);
            * a function `(image, target) -> (image, target)` of a PIL image and arrays as in `Sample.target`; masks
              are as large as the image. If it mirrors keypoints, it swaps left and right itself.
        flip_index: `KeypointSchema.flip_index`. The two libraries move points without knowing left from right, so
            that is put right here whenever they have mirrored the image.

    Raises:
        TypeError: it is none of these.
    """
    homes = {cls.__module__.partition(".")[0] for cls in type(augmentation).__mro__}
    if "albumentations" in homes:
        return Augmentation(_Albumentations(augmentation, flip_index))
    if "torchvision" in homes:
        return Augmentation(_TorchvisionV2(augmentation, flip_index))
    if not callable(augmentation):
        raise TypeError(
            f"augmentation must be an Albumentations or torchvision-v2 transform or a function (image, target) -> "
            f"(image, target), got {type(augmentation).__name__}"
        )
    function: Any = augmentation
    return Augmentation(function)


class Augmentation:
    """Runs a function (image, target) -> (image, target) reproducibly and checks what it returns.

    Python's, NumPy's and torch's (CPU) global generators are seeded from the sample's own generator during the call,
    and put back afterwards. Boxes are cut at the border of the returned image; objects without area are dropped.
    """

    def __init__(self, function: Callable[[Image.Image, Target], tuple[Any, Target]]) -> None:
        self.function = function

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Augment one sample."""
        with seeded_globals(int(rng.integers(2**32))):
            image, target = self.function(pil_from_pixels(sample.image), sample.target)
        pixels = _as_pixels(image)
        height, width = pixels.shape[1:]
        return sample.with_image(pixels, clip_objects(_checked(target, height, width), (0, 0, width, height)))


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of python, NumPy and torch (CPU only) for the block, and put their states back."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    # Not `torch.manual_seed`: in the main process it would reseed the accelerator too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


class _Points:
    """The keypoints of all objects in one list, with three more that tell how the image was moved.

    A mirrored image turns their triangle over, whatever else is done to it. Points are indices of pixels to both
    libraries where they mirror and rotate (x becomes width - 1 - x), but not where they resize (x becomes x * scale).
    The list is therefore half a pixel off, which is right for the former, and the boxes of the same objects, which both
    libraries take for continuous, say by how much it is wrong for the latter.
    """

    def __init__(self, target: Target, image: Image.Image, flip_index: np.ndarray | None) -> None:
        self.keypoints = target["keypoints"]
        self.boxes = target["boxes"].astype(np.float64)
        self.labels = target["class_labels"]
        self.flip_index = flip_index
        self.corners = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]) * image.size
        self.flat = np.concatenate([self.keypoints[..., :2].reshape(-1, 2), self.corners]).astype(np.float32) - 0.5

    def moved(self, flat: np.ndarray, rows: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(m, K, 3) keypoints of the surviving objects.

        Args:
            flat: the moved list.
            rows: (m,) of the objects that are left.
            boxes: (m, 4) xyxy, moved.
            size: width and height of the moved image.
        """
        points = np.asarray(flat, np.float32).reshape(-1, 2) + 0.5
        if len(points) != len(self.flat):
            raise ValueError(f"augmentation returned {len(points)} of {len(self.flat)} keypoints: leave all of them in")
        xy, (a, b, c) = points[:-3].reshape(self.keypoints[..., :2].shape), points[-3:].astype(np.float64)
        sides = self.corners[1:] - self.corners[0]
        linear = np.stack([b - a, c - a], axis=1) / np.array([sides[0, 0], sides[1, 1]])
        offset = self._offset(linear, a - linear @ self.corners[0], rows, boxes, size)
        keypoints = np.concatenate([xy + offset.astype(np.float32), self.keypoints[..., 2:]], axis=-1)
        if np.linalg.det(linear) < 0:
            if self.flip_index is None:
                raise ValueError("augmentation mirrored an image with keypoints whose flip pairs are not known")
            keypoints = np.take_along_axis(keypoints, self.flip_index[self.labels][..., None], axis=1)
        return keypoints[rows]

    def _offset(
        self, linear: np.ndarray, shift: np.ndarray, rows: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """(2,) what the boxes move further than the points, from the edges that the border of the image has not cut."""
        before = self.boxes[rows]
        centre = ((before[:, :2] + before[:, 2:]) / 2) @ linear.T + shift
        reach = ((before[:, 2:] - before[:, :2]) / 2) @ np.abs(linear).T
        low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
        offset = np.zeros(2)
        for axis in range(2):
            uncut_low, uncut_high = low[:, axis] > _BORDER, high[:, axis] < size[axis] - _BORDER
            found = np.concatenate([(low + reach - centre)[uncut_low, axis], (high - reach - centre)[uncut_high, axis]])
            found = found[np.abs(found) <= 0.5 * (1 + np.abs(linear).sum()) + _BORDER]
            offset[axis] = np.median(found) if len(found) else 0.0
        return offset


class _Albumentations:
    """Boxes travel as pascal_voc with their row number, so that every field follows the survivors."""

    def __init__(self, transform: Any, flip_index: np.ndarray | None) -> None:
        import albumentations  # pyright: ignore[reportMissingImports]

        transform = copy.deepcopy(transform)
        limits: dict[str, Any] = {}
        if isinstance(transform, albumentations.Compose) and "bboxes" in transform.processors:
            params = transform.processors["bboxes"].params
            limits = {name: getattr(params, name) for name in _BOX_LIMITS if hasattr(params, name)}
        single = not isinstance(transform, albumentations.Compose)
        self.flip_index = flip_index
        self.compose = albumentations.Compose(
            [transform] if single else transform.transforms,
            p=1.0 if single else transform.p,
            bbox_params=albumentations.BboxParams(format="pascal_voc", label_fields=["rows"], **limits),
            keypoint_params=albumentations.KeypointParams(format="xy", remove_invisible=False),
        )

    def __call__(self, image: Image.Image, target: Target) -> tuple[Image.Image, Target]:
        # Albumentations ignores the global generators, and `set_random_seed` would give every transform the same draws,
        # so that all those with p=0.5 fire together; generators that they share do neither.
        seed = random.getrandbits(32)
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        boxes = target["boxes"]
        inputs = {"image": np.asarray(image), "bboxes": boxes, "rows": np.arange(len(boxes))}
        points = _Points(target, image, self.flip_index) if "keypoints" in target else None
        if points is not None:
            inputs["keypoints"] = points.flat
        if "masks" in target and len(boxes):
            inputs["masks"] = target["masks"].astype(np.uint8)
        result = self.compose(**inputs)
        moved: Target = {"boxes": np.asarray(result["bboxes"], np.float32).reshape(-1, 4)}
        rows = np.asarray(result["rows"], np.int64)
        if points is not None:
            size = (result["image"].shape[1], result["image"].shape[0])
            moved["keypoints"] = points.moved(result["keypoints"], rows, moved["boxes"], size)
        if "masks" in inputs:
            moved["masks"] = np.asarray(result["masks"])[rows].astype(bool)
        elif "masks" in target:
            moved["masks"] = np.zeros((0, *result["image"].shape[:2]), dtype=bool)
        return result["image"], _move_objects(target, rows, moved)


class _TorchvisionV2:
    def __init__(self, transform: Any, flip_index: np.ndarray | None) -> None:
        self.transform = transform
        self.flip_index = flip_index

    def __call__(self, image: Image.Image, target: Target) -> tuple[Any, Target]:
        from torchvision import tv_tensors  # pyright: ignore[reportMissingImports]

        canvas = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(target["boxes"]), format="XYXY", canvas_size=canvas)
        inputs = {"image": image, "boxes": boxes, "labels": torch.arange(len(boxes))}
        points = _Points(target, image, self.flip_index) if "keypoints" in target else None
        if points is not None:
            inputs["keypoints"] = tv_tensors.KeyPoints(torch.from_numpy(points.flat), canvas_size=canvas)
        if "masks" in target:
            inputs["masks"] = tv_tensors.Mask(torch.from_numpy(target["masks"].astype(np.uint8)))
        result = self.transform(inputs)
        boxes, rows = result["boxes"], result["labels"].numpy()
        if boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
            raise ValueError(f"augmentation returned boxes as {boxes.format}: leave their conversion to the trainer")
        if len(boxes) != len(rows):
            raise ValueError(
                f"augmentation returned {len(boxes)} boxes and {len(rows)} labels: drop objects with "
                "SanitizeBoundingBoxes, which keeps the two in step"
            )
        moved = {"boxes": boxes.as_subclass(torch.Tensor).numpy()}
        if points is not None:
            flat = result["keypoints"].as_subclass(torch.Tensor).numpy()
            size = (boxes.canvas_size[1], boxes.canvas_size[0])
            moved["keypoints"] = points.moved(flat, rows, moved["boxes"], size)
        if "masks" in target:
            masks = result["masks"].as_subclass(torch.Tensor).numpy().astype(bool)
            # SanitizeBoundingBoxes drops masks with their boxes.
            moved["masks"] = masks if len(masks) == len(rows) else masks[rows]
        return result["image"], _move_objects(target, rows, moved)


def _move_objects(target: Target, rows: np.ndarray, moved: Target) -> Target:
    """The surviving rows with the fields that moved; areas change as the boxes do."""
    target = select_objects(target, rows)
    before, after = (np.prod(b[:, 2:] - b[:, :2], axis=1, dtype=np.float64) for b in (target["boxes"], moved["boxes"]))
    growth = np.divide(after, before, out=np.zeros(len(rows)), where=before > 0)
    return {**target, **moved, "area": (target["area"] * growth).astype(np.float32)}


def _as_pixels(image: Any) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return pixels_from_pil(image if image.mode == "RGB" else image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3:
        return image.as_subclass(torch.Tensor)
    kind = type(image).__name__
    if hasattr(image, "dtype"):
        kind += f" of {image.dtype} {tuple(image.shape)}"
    raise TypeError(
        f"augmentation returned an image as {kind}: return a PIL image, a uint8 array (H, W, 3) or a uint8 tensor "
        "(3, H, W); conversion to float and normalisation are done on the device"
    )


def _checked(target: Target, height: int, width: int) -> Target:
    boxes = np.asarray(target["boxes"], np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise ValueError(f"augmentation returned boxes that are not finite: {boxes[~np.isfinite(boxes).all(axis=1)]}")
    reversed_ones = boxes[(boxes[:, 2:] < boxes[:, :2]).any(axis=1)]
    if len(reversed_ones):
        raise ValueError(
            f"augmentation returned boxes that end before they begin: {reversed_ones}; they are (x1, y1, x2, y2)"
        )
    lengths = {name: len(values) for name, values in target.items()}
    if set(lengths.values()) != {len(boxes)}:
        raise ValueError(f"augmentation returned fields of different lengths, one row per object is needed: {lengths}")
    if "masks" in target and target["masks"].shape[1:] != (height, width):
        raise ValueError(
            f"augmentation returned masks of {target['masks'].shape[1:]} for an image of {(height, width)}: "
            "move them as the image is moved"
        )
    return {**target, "boxes": boxes}
