"""The rows of YOLO label files as arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....choices import counted
from ....tasks import BOXES_ALONE
from ...annotations import Annotations, Boxes, Labels, ReadOptions, map_ids
from ...conventions import check_convention, to_xywh
from ...errors import Problems
from .yaml_file import YoloConfig

# How the boxes of rows are written.
USUAL = "cxcywhn"
# Exporters round, and some polygons leave their image by a hair. Pixel coordinates are far beyond.
_SLACK = 0.01
# So many rows, and such a share of all, tell what rows are.
_ENOUGH_ROWS, _NO_OUTLINES = 5, 0.25
_NO_POLYGON = "a box without a polygon"
_WITHOUT_POLYGONS = f"use boxes as masks (--missing_masks box), or {BOXES_ALONE}"


@dataclass
class Rows:
    """The rows of a split as they are read.

    Attributes:
        place: label file and line of each row, for messages.
        image: the image's row in its split.
        category: class ids.
        box: four numbers as they are written; of polygons their extent as x1, y1, x2, y2.
        polygon: x, y, x, y, … relative to the image, or None.
        keypoints: x, y, v in a row, x and y relative to the image.
    """

    place: list[str] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    box: list[Sequence[float]] = field(default_factory=list)
    polygon: list[np.ndarray | None] = field(default_factory=list)
    keypoints: list[list[float]] = field(default_factory=list)


class RowReader:
    """Reads label files of one data set."""

    def __init__(self, config: YoloConfig, labels: Labels, options: ReadOptions) -> None:
        self.config = config
        self.labels = labels
        self.options = options
        self.written = options.bbox_format or USUAL

    def read(self, rows: Rows, image: int, path: str, text: str, problems: Problems) -> None:
        """Add the rows of one label file; faults are noted with file and line."""
        for number, line in enumerate(text.splitlines(), start=1):
            parts = line.split()
            if not parts:
                continue
            try:
                self._read_row(rows, image, parts)
                rows.place.append(f"{path}:{number}")
            except ValueError as error:
                remedy = _WITHOUT_POLYGONS if str(error) == _NO_POLYGON else "correct these rows, or delete them"
                problems.add(f"{path}:{number}: {error}", remedy)

    def _read_row(self, rows: Rows, image: int, parts: list[str]) -> None:
        numbers = [_number(part) for part in parts]
        category = int(numbers[0])
        if category != numbers[0] or category not in self.config.names:
            raise ValueError(f"class {parts[0][:40]} is not among the names of {self.config.file.name}")
        box, polygon, points = self._split_row(numbers[1:])
        if self.options.task == "segmentation" and polygon is None and self.options.missing_masks == "error":
            raise ValueError(_NO_POLYGON)
        rows.image.append(image)
        rows.category.append(category)
        rows.box.append(box)
        rows.polygon.append(polygon)
        if self.options.task == "keypoints":
            rows.keypoints.append(points)

    def _split_row(self, numbers: list[float]) -> tuple[Sequence[float], np.ndarray | None, list[float]]:
        """The box, the polygon if it is one, and the keypoints as x, y, v triples."""
        count, dims = self.config.num_keypoints, self.config.keypoint_dims
        if len(numbers) == 4 or (count and len(numbers) == 4 + count * dims):
            if self.written.endswith("n"):
                _check_range(numbers[:4])
            points = _triples(numbers[4:], dims) if len(numbers) > 4 else [0.0] * (3 * count)
            return numbers[:4], None, points
        if count:
            raise ValueError(f"{len(numbers) + 1} numbers; kpt_shape asks for 5 or {5 + count * dims}")
        if len(numbers) < 6 or len(numbers) % 2:
            hint = " (take the confidence of a prediction away)" if len(numbers) == 5 else ""
            raise ValueError(
                f"{counted(len(numbers) + 1, 'number')}; a box has 5, and a polygon an odd number from 7 on: "
                f"the class and three or more corners{hint}"
            )
        _check_range(numbers)
        xs, ys = numbers[0::2], numbers[1::2]
        return (min(xs), min(ys), max(xs), max(ys)), np.array(numbers), []

    def annotations(
        self, rows: Rows, source: str, names: list[str], size: np.ndarray, problems: Problems
    ) -> tuple[Annotations, list[Any]]:
        """The rows in pixels, and the polygon of each or None.

        Args:
            rows: of all images.
            source: for messages.
            names: of the images.
            size: (m, 2) width and height of the images.
            problems: collects the faults.
        """
        image = np.array(rows.image, dtype=np.int64)
        scale = size[image].astype(np.float64)
        box = np.array(rows.box, dtype=np.float64).reshape(-1, 4)
        outlined = np.array([polygon is not None for polygon in rows.polygon], dtype=bool)
        plain = np.flatnonzero(~outlined)
        _note_other_rows([p for p in rows.polygon if p is not None], rows, outlined, problems)
        check_convention(box[plain], scale[plain], self.written, lambda i: rows.place[plain[i]], problems)
        bbox = np.where(outlined[:, None], to_xywh(box, scale, "xyxyn"), to_xywh(box, scale, self.written))
        keypoints = None
        if self.options.task == "keypoints":
            points = np.array(rows.keypoints, dtype=np.float64).reshape(-1, self.config.num_keypoints, 3)
            points[..., :2] *= scale[:, None]
            keypoints = points.reshape(len(points), 3 * self.config.num_keypoints)
        polygons = [None if p is None else p * np.resize(s, len(p)) for p, s in zip(rows.polygon, scale, strict=True)]
        area = np.full(len(image), np.nan)
        for index in np.flatnonzero(outlined).tolist():
            x, y = polygons[index][0::2], polygons[index][1::2]
            area[index] = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        boxes = Boxes(
            row=image,
            id=np.arange(1, len(image) + 1),
            bbox=bbox,
            category=map_ids(np.array(rows.category, dtype=np.int64), self.labels.ids),
            area=area,
            iscrowd=np.zeros(len(image), dtype=bool),
            keypoints=keypoints,
            place=np.array(rows.place, dtype=object),
        )
        for i in sorted({rows.category[i] for i in np.flatnonzero(boxes.category < 0).tolist()}):
            problems.add(
                f"class {i} ({self.config.names[i]}) is not in the label table {self.labels.names}",
                "have the class in class_names, or leave class_names out",
            )
        return Annotations(source, np.arange(len(names)), size, names, boxes), polygons


def looks_like_rows(text: str) -> bool:
    """Whether a text file may hold rows: its first line with something in it is of five numbers or more."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    try:
        return len([_number(part) for part in line.split()]) >= 5
    except ValueError:
        return False


def _number(text: str) -> float:
    try:
        if "_" in text or not text.isascii():
            raise ValueError
        number = float(text)
    except ValueError:
        hint = "; write blanks between numbers, and points in them" if "," in text else ""
        raise ValueError(f"could not convert string to float: {text[:40]!r}{hint}") from None
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number


def _check_range(numbers: Sequence[float]) -> None:
    if min(numbers) < -_SLACK or max(numbers) > 1 + _SLACK:
        raise ValueError(
            f"coordinates from {min(numbers):g} to {max(numbers):g}; they are relative to the image, between 0 and 1"
        )


def _note_other_rows(polygons: Sequence[np.ndarray], rows: Rows, outlined: np.ndarray, problems: Problems) -> None:
    """Note a fault when all rows that are read as polygons look like boxes with something behind them."""
    length = len(polygons[0]) if polygons else 0
    if len(polygons) < _ENOUGH_ROWS or any(len(each) != length for each in polygons):
        return
    values, place = np.stack(polygons), rows.place[int(np.flatnonzero(outlined)[0])]
    centre, half = values[:, None, :2], values[:, None, 2:4] / 2  # (n, 1, 2)
    if (np.abs(centre - 0.5) + half > 0.5 + _SLACK).any() or (half <= 0).any():
        return
    found = f"{place}: all {len(values)} rows of {length + 1} numbers look like"
    if length == 6 and np.isin(values[:, 5], (0, 1)).all():
        problems.add(f"{found} predictions, a box with confidence and number of the track", "keep the first 5 numbers")
        return
    for dims in (3, 2):
        if (length - 4) % dims:
            continue
        points = values[:, 4:].reshape(len(values), -1, dims)
        known = (points[..., :2] != 0).any(axis=2)
        inside = (np.abs(points[..., :2] - centre) <= half + _SLACK).all(axis=2) | ~known
        flags = dims == 3 and np.isin(points[..., 2], (0, 1, 2)).all()
        if inside.all() and (flags or (dims == 2 and _are_no_outlines(values))):
            count = points.shape[1]
            problems.add(
                f"{found} a box with {count} keypoints, which all lie in it, and not like polygons",
                f"add kpt_shape: [{count}, {dims}] to the yaml file; of polygons repeat the first corner of one",
            )
            return


def _are_no_outlines(values: np.ndarray) -> bool:
    """Whether many rows x, y, x, y, … (n, 2k) cross themselves, or have a second point far from all others."""
    points = values.reshape(len(values), -1, 2)
    others = np.delete(points, 1, axis=1)
    low, high = others.min(axis=1), others.max(axis=1)
    reach = 3 * (high - low).max(axis=1, keepdims=True)
    far = ((points[:, 1] < low - reach) | (points[:, 1] > high + reach)).any(axis=1)
    edges = np.roll(points, -1, axis=1) - points
    angles = np.arctan2(edges[..., 1], edges[..., 0])
    bends = (np.roll(angles, -1, axis=1) - angles + np.pi) % (2 * np.pi) - np.pi
    crossing = np.rint(np.abs(bends.sum(axis=1)) / (2 * np.pi)) != 1  # an outline turns once around itself
    crossing &= (edges != 0).any(axis=2).all(axis=1)
    odd = int((far | crossing).sum())
    return odd >= _ENOUGH_ROWS and odd >= _NO_OUTLINES * len(values)


def _triples(numbers: list[float], dims: int) -> list[float]:
    """Keypoints as x, y, v. Without v, the origin means that the keypoint is not labelled."""
    triples: list[float] = []
    for start in range(0, len(numbers), dims):
        x, y = numbers[start : start + 2]
        v = numbers[start + 2] if dims == 3 else 2.0 * (x != 0 or y != 0)
        if v not in (0, 1, 2):
            raise ValueError(f"visibility {v:g} of keypoint {start // dims}; 0, 1 and 2 are known")
        if v:
            _check_range((x, y))
        triples += (x, y, v) if v else (0.0, 0.0, 0.0)
    return triples
