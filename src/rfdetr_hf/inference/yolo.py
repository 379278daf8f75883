"""Detections as a YOLO data set: pictures, one text file of rows for each, a data.yaml."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from contourpy import contour_generator
from pycocotools import mask as mask_utils

from ..data.keypoints import ClassKeypoints
from ..evaluation.detection_table import compressed
from .images import NamedImage

VISIBLE, NOT_LABELLED = 2, 0


class YoloDataset(AbstractContextManager):
    """A YOLO data set that grows on disk: data.yaml, images/, labels/.

    A row is a class and, relative to the image, a box (cx, cy, w, h), cut to the image; with masks the polygon around
    the largest part of the mask; with keypoints the box and x, y, v of each. YOLO has one number of keypoints for all
    classes: rows of classes with fewer are filled up with unlabelled ones. Rows have no scores.

    Args:
        path: of the folder.
        id2label: names of the classes.
        keypoints: of the classes by label, where the model finds any.
        keypoint_threshold: keypoints of this confidence or less are not labelled (v = 0), others visible (v = 2).
    """

    def __init__(
        self, path: Path, id2label: Mapping[int, str], keypoints: Sequence[ClassKeypoints], keypoint_threshold: float
    ) -> None:
        self.path, self._threshold = path, keypoint_threshold
        self._count = max((len(each.names) for each in keypoints), default=0)
        content: dict[str, Any] = {"train": "images", "names": dict(sorted(id2label.items()))}
        if self._count:
            names = {i: [*each.names] for i, each in enumerate(keypoints)}
            names = {i: [*own, *(f"none_{k}" for k in range(len(own), self._count))] for i, own in names.items()}
            content |= {"kpt_shape": [self._count, 3], "kpt_names": names}
            flips = {each.flip_pairs for each in keypoints if each.names}
            if len(flips) == 1 and (pairs := flips.pop()) is not None:
                turned = dict(pairs) | {b: a for a, b in pairs}
                content["flip_idx"] = [turned.get(k, k) for k in range(self._count)]
        path.mkdir(parents=True, exist_ok=True)
        (path / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """One more image with its detections: its rows, and its picture as a link, or a copy where links are refused.

        Frames of a video and rows of a data set are written as PNG.
        """
        picture = Path("images", f"{item.name}.png" if item.place else f"{item.name}{item.source.suffix}")
        # A reader replaces the last folder called images, be it one of the user's.
        parts = list(picture.with_suffix(".txt").parts)
        at = max(n for n, part in enumerate(parts[:-1]) if part == "images")
        rows, picture = self.path.joinpath(*parts[:at], "labels", *parts[at + 1 :]), self.path / picture
        for folder in (picture.parent, rows.parent):
            folder.mkdir(parents=True, exist_ok=True)
        picture.unlink(missing_ok=True)  # never through a link of an earlier prediction
        if item.place:
            item.image.save(picture)
        else:
            try:
                picture.symlink_to(os.path.abspath(item.source))
            except OSError:
                shutil.copyfile(item.source, picture)
        lines = [line for i in range(len(found["scores"])) if (line := self._row(found, i, item.image.size))]
        rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _row(self, found: Mapping[str, Any], i: int, size: tuple[int, int]) -> str:
        """The row of one detection; empty where nothing of it is in the image."""
        scale = np.array(size, dtype=np.float64)
        low, high = (found["boxes"][i].double().numpy().reshape(2, 2) / scale).clip(0, 1)
        numbers = [*(low + high) / 2, *(high - low)]
        if found.get("masks") is not None:
            numbers = (outline(found["masks"][i]) / scale).ravel().tolist()
        if not numbers or not (high > low).all():
            return ""
        if self._count:
            for x, y, confidence in found["keypoints"][i].tolist()[: self._count]:
                inside = 0 <= x <= size[0] and 0 <= y <= size[1] and confidence > self._threshold
                numbers += [x / size[0], y / size[1], VISIBLE] if inside else [0, 0, NOT_LABELLED]
            numbers += [0.0] * (4 + 3 * self._count - len(numbers))
        return " ".join(
            [str(int(found["labels"][i])), *(f"{number:.6f}".rstrip("0").rstrip(".") for number in numbers)]
        )

    def __exit__(self, *error: object) -> None:
        """Every file is written."""


def outline(mask: Any) -> np.ndarray:
    """The polygon around the largest part of a mask, without its holes.

    Args:
        mask: (height, width), or a COCO run-length encoding.

    Returns:
        (corners, 2), x and y in pixels; (0, 2) for an empty mask.
    """
    rle: Any = compressed(mask) if isinstance(mask, Mapping) else None
    pixels = np.asarray(mask if rle is None else mask_utils.decode(rle))
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((0, 2))
    # Its box alone, since numbers of 64 bits of a large picture take long.
    pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    # A border of zeros closes the lines; the middle of a pixel is at half its side.
    lines = [np.asarray(line)[:-1] for line in contour_generator(z=np.pad(pixels, 1)).lines(0.5)]
    if not lines:
        return np.zeros((0, 2))
    areas = [abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) for x, y in (line.T for line in lines)]
    corners = lines[int(np.argmax(areas))] + (columns[0] - 0.5, rows[0] - 0.5)
    steps = corners - np.roll(corners, 1, axis=0)
    after = np.roll(steps, -1, axis=0)
    return corners[np.abs(steps[:, 0] * after[:, 1] - steps[:, 1] * after[:, 0]) > 1e-9]
