"""Coloured shapes on noise: a data set that needs no download, for the quickstart and for tests.

Shapes are rasterised with integer arithmetic and colours come from NumPy's `Generator`, so that a seed gives the same
pixels on every platform and with every version of Pillow.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from PIL import Image

from ..tasks import TaskName
from .annotations import Annotations, Boxes, Labels, ReadOptions, build_dataset
from .keypoints import ClassKeypoints
from .masks import encode_mask, mask_array
from .splits import SPLIT_NAMES

SYNTHETIC_NAME = "synthetic-shapes"
SHAPES = ("circle", "square", "triangle")
SHAPE_KEYPOINTS = {
    "circle": ClassKeypoints.of(["centre"]),
    "square": ClassKeypoints.of(
        ["top_left", "top_right", "bottom_right", "bottom_left"], [(0, 1), (1, 2), (2, 3), (3, 0)]
    ),
    "triangle": ClassKeypoints.of(["top", "bottom_right", "bottom_left"], [(0, 1), (1, 2), (2, 0)]),
}
# In units of the box.
_PLACES = {"circle": [(0.5, 0.5)], "square": [(0, 0), (1, 0), (1, 1), (0, 1)], "triangle": [(0.5, 0), (1, 1), (0, 1)]}
_EMPTY_SHARE = 0.05
_MAX_SHAPES = 4
_TRIES = 20


class _Shape(NamedTuple):
    label: int
    left: int
    top: int
    side: int
    crowd: bool = False


def make_shapes_dataset(
    num_images: int,
    image_size: int = 96,
    seed: int = 0,
    classes: Sequence[str] = SHAPES,
    *,
    crowd_share: float = 0.0,
    split: str = "train",
    task: TaskName = "detection",
) -> Dataset:
    """Images with up to four shapes each, in the one schema; about one image in twenty is empty.

    Image i depends on (seed, split, i) alone, so a larger data set starts with the images of a smaller one. Shapes may
    overlap, but each shows at least half of its box.

    Args:
        num_images: how many.
        image_size: side of the square images in pixels, at least 32.
        seed: not negative.
        classes: which of circle, square, triangle, in the order of the labels.
        crowd_share: share of the images that also hold a crowd: a cluster of small shapes with one box.
        split: train, validation or test; their images differ.
        task: "segmentation" adds masks: outlines of the painted pixels of whole shapes, also where others cover them,
            and the box of a crowd as a run-length encoding. "keypoints" adds the corners of squares and triangles and
            the centre of circles, hidden (v = 1) where a later shape covers them.

    Raises:
        ValueError: an argument outside what is said above.
    """
    unknown = [name for name in classes if name not in SHAPES]
    if unknown or not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes={list(classes)}: choose distinct names from {list(SHAPES)}")
    if num_images < 1 or image_size < 32 or seed < 0 or not 0 <= crowd_share <= 1 or split not in SPLIT_NAMES:
        raise ValueError(
            f"num_images={num_images} must be at least 1, image_size={image_size} at least 32, seed={seed} at least 0, "
            f"crowd_share={crowd_share} between 0 and 1, split={split!r} one of {list(SPLIT_NAMES)}"
        )
    stream = list(SPLIT_NAMES).index(split)
    pngs, objects = [], []
    for index in range(num_images):
        rng = np.random.default_rng(np.random.SeedSequence([seed, stream, index]))
        shapes = _arrange(rng, image_size, len(classes), crowd_share)
        buffer = io.BytesIO()
        Image.fromarray(_paint(rng, image_size, shapes, classes)).save(buffer, "PNG", compress_level=1)
        pngs.append(buffer.getvalue())
        objects.extend((index, shape) for shape in shapes)
    images = pa.StructArray.from_arrays(
        [pa.array(pngs, pa.binary()), pa.nulls(num_images, pa.string())], names=["bytes", "path"]
    )
    annotations = Annotations(
        source=SYNTHETIC_NAME,
        image_id=np.arange(num_images),
        size=np.full((num_images, 2), image_size),
        file_name=[f"{split}_{index:06d}.png" for index in range(num_images)],
        boxes=_boxes(objects),
    )
    labels = ReadOptions(task).with_keypoints(
        Labels(list(classes), list(range(len(classes)))), [SHAPE_KEYPOINTS[name] for name in classes], SYNTHETIC_NAME
    )
    if task != "detection":
        parts = _masks(objects, image_size, classes) if task == "segmentation" else _keypoints(objects, labels)
        annotations = replace(annotations, boxes=replace(annotations.boxes, **parts))
    return build_dataset(annotations, labels, images, split)


def make_shapes_splits(
    num_images: int = 1000,
    image_size: int = 96,
    seed: int = 0,
    classes: Sequence[str] = SHAPES,
    crowd_share: float = 0.0,
    num_eval_images: int | None = None,
    task: TaskName = "detection",
) -> DatasetDict:
    """The splits train, validation and test of shapes.

    Args:
        num_images: training images.
        image_size, seed, classes, crowd_share, task: as for `make_shapes_dataset`.
        num_eval_images: images of validation and of test; a fifth of the training images by default.
    """
    held_out = max(1, num_images // 5) if num_eval_images is None else num_eval_images
    sizes = {"train": num_images, "validation": held_out, "test": held_out}
    return DatasetDict(
        {
            split: make_shapes_dataset(
                count, image_size, seed, classes, crowd_share=crowd_share, split=split, task=task
            )
            for split, count in sizes.items()
        }
    )


def _arrange(rng: np.random.Generator, size: int, num_classes: int, crowd_share: float) -> list[_Shape]:
    """Choose what lies where, later shapes on top."""
    shapes: list[_Shape] = []
    if rng.random() < crowd_share:
        side = size // 3
        left, top = rng.integers(0, size - side, 2).tolist()
        shapes.append(_Shape(int(rng.integers(num_classes)), left, top, side, crowd=True))
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, _MAX_SHAPES + 1))
    for _ in range(count):
        for _ in range(_TRIES):
            side = int(rng.integers(size // 8, size // 2))
            left, top = rng.integers(0, size - side, 2).tolist()
            shape = _Shape(int(rng.integers(num_classes)), left, top, side)
            if all(_uncovered(below, shapes[i + 1 :] + [shape]) for i, below in enumerate(shapes)):
                shapes.append(shape)
                break
    return shapes


def _uncovered(below: _Shape, above: Sequence[_Shape]) -> bool:
    """Whether the boxes above leave half of the one below free, their own overlap counted twice."""
    covered = 0
    for shape in above:
        width = min(below.left + below.side, shape.left + shape.side) - max(below.left, shape.left)
        height = min(below.top + below.side, shape.top + shape.side) - max(below.top, shape.top)
        covered += max(width, 0) * max(height, 0)
    return 2 * covered <= below.side**2


def _paint(rng: np.random.Generator, size: int, shapes: Sequence[_Shape], classes: Sequence[str]) -> np.ndarray:
    background = rng.integers(0, 256, 3)
    noise = rng.integers(-24, 25, (size, size, 3))
    canvas = np.clip(background + noise, 0, 255)
    for shape in shapes:
        parts = [shape]
        if shape.crowd:
            # Nine small shapes that fill the box up to its edges.
            small = shape.side // 3
            places = [0, (shape.side - small) // 2, shape.side - small]
            parts = [_Shape(shape.label, shape.left + x, shape.top + y, small) for y in places for x in places]
        for part in parts:
            region = canvas[part.top : part.top + part.side, part.left : part.left + part.side]
            # At least 96 levels away from the background in each channel, around the circle of levels.
            region[_mask(classes[part.label], part.side)] = (background + rng.integers(96, 161, 3)) % 256
    return canvas.astype(np.uint8)


def _mask(shape: str, side: int) -> np.ndarray:
    """(side, side) bool; touches all four edges of its box."""
    # Odd coordinates of pixel centres, in half pixels from the middle.
    axis = 2 * np.arange(side) - (side - 1)
    if shape == "square":
        return np.ones((side, side), dtype=bool)
    if shape == "circle":
        return axis[None, :] ** 2 + axis[:, None] ** 2 <= side**2
    # The half width grows from the tip at the top to the whole base.
    return np.abs(axis)[None, :] <= np.arange(1, side + 1)[:, None]


def _boxes(objects: Sequence[tuple[int, _Shape]]) -> Boxes:
    bbox = np.array([(s.left, s.top, s.side, s.side) for _, s in objects], dtype=np.float64).reshape(-1, 4)
    return Boxes(
        row=np.array([index for index, _ in objects], dtype=np.int64),
        id=np.arange(1, len(objects) + 1),
        bbox=bbox,
        category=np.array([shape.label for _, shape in objects], dtype=np.int64),
        area=bbox[:, 2] * bbox[:, 3],
        iscrowd=np.array([shape.crowd for _, shape in objects], dtype=bool),
    )


def _masks(objects: Sequence[tuple[int, _Shape]], size: int, classes: Sequence[str]) -> dict[str, Any]:
    """The fields of `Boxes` for masks: exact outlines; of a crowd the box, run-length encoded."""
    masks: list[list[np.ndarray] | str] = []
    areas = []
    for _, shape in objects:
        pixels = np.ones((shape.side, shape.side), bool) if shape.crowd else _mask(classes[shape.label], shape.side)
        areas.append(float(pixels.sum()))
        if shape.crowd:
            canvas = np.zeros((size, size), dtype=np.uint8, order="F")
            canvas[shape.top : shape.top + shape.side, shape.left : shape.left + shape.side] = 1
            masks.append(encode_mask(canvas))
        else:
            masks.append([(_outline(pixels) + (shape.left, shape.top)).ravel()])
    return {"masks": mask_array(masks), "area": np.array(areas)}


def _outline(pixels: np.ndarray) -> np.ndarray:
    """(m, 2) corners x, y of the polygon along the pixels' edges; every row of pixels is one run."""
    starts = pixels.argmax(axis=1)
    ends = starts + pixels.sum(axis=1)
    rows = np.arange(len(pixels))
    right = np.stack([ends, rows, ends, rows + 1], axis=1).reshape(-1, 2)
    left = np.stack([starts, rows, starts, rows + 1], axis=1).reshape(-1, 2)
    return np.concatenate([right, left[::-1]]).astype(np.float64)


def _keypoints(objects: Sequence[tuple[int, _Shape]], labels: Labels) -> dict[str, Any]:
    """The field of `Boxes` for keypoints."""
    values = np.zeros((len(objects), labels.keypoints.num_keypoints if labels.keypoints else 0, 3))
    for index, (image, shape) in enumerate(objects):
        if shape.crowd:
            continue
        above = [other for i, other in objects[index + 1 :] if i == image]
        for k, (x, y) in enumerate(_PLACES[labels.names[shape.label]]):
            point = np.array([shape.left + x * shape.side, shape.top + y * shape.side])
            values[index, k] = (*point, 2)
            for other in above:
                x, y = np.floor(point - (other.left, other.top)).astype(int)
                if 0 <= x < other.side and 0 <= y < other.side and _mask(labels.names[other.label], other.side)[y, x]:
                    values[index, k, 2] = 1
    return {"keypoints": values.reshape(len(objects), 3 * values.shape[1])}
