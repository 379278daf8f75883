"""YOLO data sets: a data.yaml, image folders, and one text file of rows per image.

A row is a class id and, all relative to the image's width and height, a box (cx, cy, w, h), a polygon (x, y, x, y, …)
or, where the data.yaml has `kpt_shape`, a box and keypoints.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..annotations import Annotations, Boxes, Labels, ReadOptions, build_dataset, class_table, map_ids, path_array
from ..checks import settle
from ..errors import DetectionDataError, Problems
from ..images import IMAGE_SUFFIXES, ImageFolder
from ..keypoints import ClassKeypoints
from ..pipeline.pixels import image_size
from . import Found
from .hub import is_saved
from .yolo_yaml import YoloConfig, read_yaml

logger = logging.getLogger(__name__)

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_THREADS = 8
_CHUNK = 64
# Exporters round, and some polygons leave their image by a hair. Pixel coordinates are far beyond.
_SLACK = 0.01


def find(root: Any, options: ReadOptions) -> Found | None:
    """The YOLO data set of a yaml file or of a folder with one.

    Raises:
        DetectionDataError: the file is no data.yaml, or its fields do not fit each other.
    """
    if not isinstance(root, str) or options.load.get("data_files") or is_saved(Path(root)):
        return None
    path = Path(root)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        file = path
    else:
        file = next((path / name for name in _YAML_NAMES if (path / name).is_file()), None)
    if file is None:
        return None
    config = read_yaml(file)
    options.refuse(root, "is a YOLO data set, which", "load", "image_dir")
    return Found(root, {name: name for name in config.splits}, config)


def read(found: Found, splits: Mapping[str, str], options: ReadOptions) -> dict[str, Dataset]:
    """Read splits; the label table is all names of the yaml file by ascending id, or `class_names`.

    The rows of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, the last folder called images being replaced; where no
    folder is called images, beside the image. Boxes of polygon rows are those of the polygons, and areas too. Box rows
    are objects without a mask.

    Raises:
        DetectionDataError: missing images, or rows that are malformed; up to ten, with file and line.
    """
    config: YoloConfig = found.details
    labels = class_table(config.names, options.class_names, f"{config.file}: field names")
    keypoints = [config.keypoints.get(i, ClassKeypoints()) for i in labels.ids]
    labels = options.with_keypoints(labels, keypoints, f"{config.file}: field kpt_shape")
    reader = _Reader(config, labels, options)
    return {split: reader.read(theirs, split, options.label_dir or "labels") for split, theirs in splits.items()}


# ------------------------------------------------------------------------------------------------ images and labels


@dataclass(frozen=True)
class _Found:
    """The images of a split, and where their rows are."""

    paths: list[str]
    label_paths: list[str]


def _find(config: YoloConfig, split: str, label_dir: str, problems: Problems) -> _Found:
    if label_dir in ("", ".", "..") or os.path.basename(label_dir) != label_dir:
        raise DetectionDataError(f"label_dir={label_dir!r}: give the name of a folder beside images, e.g. 'labels'")
    paths, labels = [], []
    for entry in config.splits[split]:
        source = _resolve(config, entry, split)
        found = _listed(config, source, problems) if source.is_file() else sorted(ImageFolder(source).paths.values())
        home = source.parent if source.is_file() else source
        paths += found
        labels += [_label_path(Path(path), config.root, home, label_dir) for path in found]
    if not paths and not problems.count:
        where = ", ".join(config.splits[split])
        raise DetectionDataError(f"{config.file}: field {split}: no images in {where}; correct the path")
    return _Found(paths, labels)


def _resolve(config: YoloConfig, entry: str, split: str) -> Path:
    """A folder or file that the yaml names. Exports that say ../train/images mean train/images beside the yaml."""
    candidates = [config.root / entry, config.file.parent / entry]
    if entry.startswith("../"):
        candidates.append(config.root / entry.removeprefix("../"))
    for path in candidates:
        if path.is_dir() or path.suffix == ".txt" and path.is_file():
            return Path(os.path.normpath(path.absolute()))
    looked = ", ".join(str(path) for path in dict.fromkeys(candidates))
    raise DetectionDataError(
        f"{config.file}: field {split}: {entry!r} is neither a folder of images nor a .txt file that lists them "
        f"(looked at {looked}); correct field {split} or field path"
    )


def _listed(config: YoloConfig, file: Path, problems: Problems) -> list[str]:
    """The images that a file lists; they must be in the data set's folder or beside the list."""
    allowed = (config.root, Path(os.path.normpath(config.file.parent.absolute())), file.parent)
    paths = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        options = [Path(os.path.normpath(base / line.strip())) for base in (file.parent, config.root)]
        path = next((option for option in options if option.is_file()), None)
        if path is None or path.suffix.lower() not in IMAGE_SUFFIXES:
            problems.add(f"{file}:{number}: {line.strip()!r} is no image file", "correct the list or restore the files")
        elif not any(path.is_relative_to(base) for base in allowed):
            problems.add(
                f"{file}:{number}: {line.strip()!r} is outside of {config.root}",
                "set field path of the yaml file to the folder that holds all images",
            )
        else:
            paths.append(str(path))
    return paths


def _label_path(image: Path, root: Path, home: Path, label_dir: str) -> str:
    # Folders above the data set may be called images too; they are none of its business.
    start = len(root.parts) if image.is_relative_to(root) else len(home.parts) - 2
    parts = list(image.with_suffix(".txt").parts)
    for index in range(len(parts) - 2, max(start, 1) - 1, -1):
        if parts[index] == "images":
            parts[index] = label_dir
            break
    return os.path.join(*parts)


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DetectionDataError(f"{path}: cannot be read ({error}); restore the label file") from error


def _in_threads(function: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """One result per path. Threads wait for slow disks side by side; handing them single files would cost more."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result for part in pool.map(lambda chunk: [function(path) for path in chunk], chunks) for result in part
        ]


# ------------------------------------------------------------------------------------------------------------- rows


@dataclass
class _Rows:
    """The rows of a split as they are read, relative to the images."""

    image: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    box: list[tuple[float, float, float, float]] = field(default_factory=list)  # x1, y1, x2, y2
    polygon: list[np.ndarray | None] = field(default_factory=list)
    keypoints: list[list[float]] = field(default_factory=list)


class _Reader:
    def __init__(self, config: YoloConfig, labels: Labels, options: ReadOptions) -> None:
        self.config = config
        self.labels = labels
        self.options = options

    def read(self, theirs: str, split: str, label_dir: str) -> Dataset:
        """One split; `theirs` is its name in the yaml file."""
        source = f"{self.config.file}, {theirs}"
        problems = Problems(source)
        found = _find(self.config, theirs, label_dir, problems)
        problems.raise_if_any()
        self._report_orphans(found, source)
        texts = _in_threads(_read_text, found.label_paths)
        found, texts = self._labelled(found, texts, source)
        sizes = _in_threads(lambda path: image_size(path, {}), found.paths)
        rows = _Rows()
        for image, (path, text) in enumerate(zip(found.label_paths, texts, strict=True)):
            self._read_rows(rows, image, path, text or "", problems)
        problems.raise_if_any()
        annotations = self._annotations(rows, source, found, np.array(sizes, np.int64).reshape(-1, 2), problems)
        return build_dataset(annotations, self.labels, path_array(found.paths), split)

    def _report_orphans(self, found: _Found, source: str) -> None:
        known = set(found.label_paths)
        folders = sorted({os.path.dirname(path) for path in known})
        orphans = [
            entry.path
            for folder in folders
            if os.path.isdir(folder)
            for entry in os.scandir(folder)
            if entry.name.endswith(".txt") and entry.name != "classes.txt" and entry.path not in known
        ]
        if orphans:
            logger.warning(
                "%s: %d label files have no image and are left out, such as %s", source, len(orphans), min(orphans)
            )

    def _labelled(self, found: _Found, texts: list[str | None], source: str) -> tuple[_Found, list[str | None]]:
        missing = [text is None for text in texts]
        if all(missing):
            raise DetectionDataError(
                f"{source}: none of {len(missing)} images has a label file, such as {found.label_paths[0]}; "
                "name the folder of the label files with label_dir=…"
            )
        empty = sum(text is not None and not text.strip() for text in texts)
        keep = [i for i in range(len(texts)) if not (self.config.skip_unlabelled and missing[i])]
        fate = "left out, as the yaml file says" if self.config.skip_unlabelled else "taken as images without objects"
        logger.info(
            "%s: %d images, %d without a label file (%s), %d with an empty one",
            source, len(texts), sum(missing), fate, empty,
        )  # fmt: skip
        kept = _Found([found.paths[i] for i in keep], [found.label_paths[i] for i in keep])
        return kept, [texts[i] for i in keep]

    def _read_rows(self, rows: _Rows, image: int, path: str, text: str, problems: Problems) -> None:
        for number, line in enumerate(text.splitlines(), start=1):
            parts = line.split()
            if not parts:
                continue
            try:
                self._read_row(rows, image, parts)
            except ValueError as error:
                problems.add(f"{path}:{number}: {error}", "correct these rows, or delete them")

    def _read_row(self, rows: _Rows, image: int, parts: list[str]) -> None:
        numbers = [float(part) for part in parts]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number is not finite")
        category = int(numbers[0])
        if category != numbers[0] or category not in self.config.names:
            raise ValueError(f"class {parts[0]} is not among the names of {self.config.file.name}")
        box, polygon, points = self._split_row(numbers[1:])
        if self.options.task == "segmentation" and polygon is None and self.options.missing_masks == "error":
            raise ValueError("a box without a polygon (missing_masks='box' uses the box as mask)")
        rows.image.append(image)
        rows.category.append(category)
        rows.box.append(box)
        rows.polygon.append(polygon)
        if self.options.task == "keypoints":
            rows.keypoints.append(points)

    def _split_row(
        self, numbers: list[float]
    ) -> tuple[tuple[float, float, float, float], np.ndarray | None, list[float]]:
        """The box as corners, the polygon if it is one, and the keypoints as x, y, v triples."""
        count, dims = self.config.num_keypoints, self.config.keypoint_dims
        if len(numbers) == 4 or (count and len(numbers) == 4 + count * dims):
            x, y, width, height = numbers[:4]
            _check_range(numbers[:4])
            points = _triples(numbers[4:], dims) if len(numbers) > 4 else [0.0] * (3 * count)
            return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None, points
        if count:
            raise ValueError(f"{len(numbers) + 1} numbers; kpt_shape asks for 5 or {5 + count * dims}")
        if len(numbers) < 6 or len(numbers) % 2:
            raise ValueError(
                f"{len(numbers) + 1} numbers; a box has 5, and a polygon an odd number from 7 on: "
                "the class and three or more corners"
            )
        _check_range(numbers)
        xs, ys = numbers[0::2], numbers[1::2]
        return (min(xs), min(ys), max(xs), max(ys)), np.array(numbers), []

    def _annotations(
        self, rows: _Rows, source: str, found: _Found, size: np.ndarray, problems: Problems
    ) -> Annotations:
        image = np.array(rows.image, dtype=np.int64)
        scale = size[image].astype(np.float64)
        corners = np.array(rows.box, dtype=np.float64).reshape(-1, 4) * np.tile(scale, 2)
        polygons = [None if p is None else p * np.resize(s, len(p)) for p, s in zip(rows.polygon, scale, strict=True)]
        keypoints = None
        if self.options.task == "keypoints":
            points = np.array(rows.keypoints, dtype=np.float64).reshape(-1, self.config.num_keypoints, 3)
            points[..., :2] *= scale[:, None]
            keypoints = points.reshape(len(points), -1)
        area = np.full(len(image), np.nan)
        for index, polygon in enumerate(polygons):
            if polygon is not None:
                x, y = polygon[0::2], polygon[1::2]
                area[index] = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        boxes = Boxes(
            row=image,
            id=np.arange(1, len(image) + 1),
            bbox=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            category=map_ids(np.array(rows.category, dtype=np.int64), self.labels.ids),
            area=area,
            iscrowd=np.zeros(len(image), dtype=bool),
            keypoints=keypoints,
        )
        names = [os.path.relpath(path, self.config.root).replace(os.sep, "/") for path in found.paths]
        annotations = Annotations(source, np.arange(len(names)), size, names, boxes)
        for i in sorted({rows.category[i] for i in np.flatnonzero(boxes.category < 0)}):
            problems.add(
                f"class {i} ({self.config.names[i]}) is not in the label table {self.labels.names}",
                "have the class in class_names, or leave class_names out",
            )
        masks = polygons if self.options.task == "segmentation" else None
        return settle(annotations, self.labels, self.options, problems, masks)


def _check_range(numbers: Sequence[float]) -> None:
    if min(numbers) < -_SLACK or max(numbers) > 1 + _SLACK:
        raise ValueError(
            f"coordinates from {min(numbers):g} to {max(numbers):g}; they are relative to the image, between 0 and 1"
        )


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
