"""CVAT's format "CVAT for images 1.1": one XML file for many pictures.

Coordinates are edges in pixels, from 0. Boxes, polygons, ellipses and masks are objects, and so are skeletons, whose
box is the smallest one around their labelled keypoints. The box of a turned box or ellipse is the upright one around
it; its mask is the turned shape. Polylines, single points, cuboids, tags and what is marked as outside cover nothing
that could be found; they are left out, and counted in the log.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from datasets import Dataset

from ...choices import counted
from ...values import as_flag, as_integer, shown
from ..annotations import ReadOptions
from ..errors import DetectionDataError, Problems
from ..images import ImageFolder
from ..keypoints import ClassKeypoints
from ..masks import encode_mask
from ..pipeline.pixels import image_size
from . import Found, read_splits, warn_of_others
from .hub import is_saved
from .named import NamedObject, NamedSplit, ellipse, find_pictures, finish_splits, hull, rectangle, turned
from .xml_file import attributes_of, find_xml, has_element, number, read_xml, text_of

logger = logging.getLogger(__name__)

_NO_OBJECTS = {
    "polyline": "polylines, which have no area", "points": "points without a skeleton", "cuboid": "cuboids",
    "tag": "tags of whole pictures", "attribute": "",
}  # fmt: skip
# As CVAT and datumaro call it.
_NO_SUBSET = "default"
# Attributes of shapes with which other formats come to CVAT.
_IGNORED = ("is_crowd", "iscrowd", "difficult")
_REMEDY = "correct or delete the shape in CVAT, and export again as 'CVAT for images 1.1'"


@dataclass(frozen=True)
class CvatLocation:
    """Where one split lies: its file, and in it the pictures of a subset, or all for None."""

    file: Path
    subset: str | None
    image_folders: tuple[Path, ...]


def find(root: Any, options: ReadOptions) -> Found | None:
    """An XML file of CVAT, or a folder with some; the subsets of a project are splits."""
    if not isinstance(root, str) or options.load.get("data_files") or is_saved(Path(root)):
        return None
    path = Path(root)
    files = [path] if path.is_file() and path.suffix.lower() == ".xml" else find_xml(path) if path.is_dir() else []
    files = [file for file in files if has_element(file, "annotations")]
    if not files:
        return None
    options.refuse(root, "is a CVAT export, which", "load", "label_dir", "bbox_format")
    splits: dict[str, CvatLocation] = {}
    for file in files:
        named = {subset or "" for subset in attributes_of(file, "image", "subset")}
        # An image without the attribute is in no subset where others are: they are a split of their own.
        subsets = sorted({subset or _NO_SUBSET for subset in named}) if any(named) else [None]
        for subset in subsets:
            name = file.stem if subset is None else subset if len(files) == 1 else f"{file.stem}_{subset}"
            given = options.image_dir.get(name) if isinstance(options.image_dir, Mapping) else options.image_dir
            images = file.parent / "images"
            folders = [file.parent / given] if given else [images, *([images / subset] if subset else []), file.parent]
            if name in splits:
                raise DetectionDataError(
                    f"{file}: two splits would be called {name!r} ({splits[name].file} has the other); rename the file"
                )
            splits[name] = CvatLocation(file, subset, tuple(folders))
    return Found(root, "CVAT for images", splits)


def near(folder: Path) -> str:
    """How near a folder comes to an export of CVAT."""
    return f"no XML file with the root 'annotations' and images in it{' beside images/' if folder.is_dir() else ''}"


def read(found: Found, splits: Mapping[str, CvatLocation], options: ReadOptions) -> dict[str, Dataset]:
    """Read splits; the label table is the labels of the first one's file, in their order, or `class_names`.

    Raises:
        DetectionDataError: a file that is no XML or for videos, missing pictures, and shapes that are malformed.
    """
    roots: dict[Path, ElementTree.Element] = {}
    faults = {name: Problems(f"{at.file}, {at.subset}" if at.subset else str(at.file)) for name, at in splits.items()}
    folders: dict[Path, ImageFolder] = {}

    def read_split(name: str, location: CvatLocation) -> NamedSplit:
        if location.file not in roots:
            roots[location.file] = read_xml(location.file)
        return _Reader(location, roots[location.file], faults[name]).read(folders)

    read = read_splits(splits, options, read_split)
    for problems in faults.values():
        problems.raise_if_any()
    for file, root in roots.items():
        without = sum(not image.get("subset") for image in root.findall("image"))
        if without and not any(at.file == file and at.subset in (None, _NO_SUBSET) for at in splits.values()):
            logger.warning(
                "%s: %s in no subset and left out; that is the split 'default', for train_split and its like",
                file, counted(without, "image", "is"),
            )  # fmt: skip
    known = [at.file for at in found.splits.values()]
    warn_of_others(found, splits, known, ".xml", lambda file: has_element(file, "annotations"))
    first = roots[next(iter(splits[name] for name in read)).file]
    table, keypoints = _labels(first)
    return finish_splits(read, options, {name: faults[name] for name in read}, table=table or None, keypoints=keypoints)


def _labels(root: ElementTree.Element) -> tuple[list[str], dict[str, ClassKeypoints]]:
    """The classes of a file, and the keypoints of those that are skeletons."""
    names: list[str] = []
    points: dict[str, list[str]] = {}
    for label in root.iterfind("meta//labels/label"):
        name, parent = text_of(label, "name"), text_of(label, "parent")
        if name is not None and parent is None and name not in names:
            names.append(name)
        elif name is not None and parent is not None:
            points.setdefault(parent, []).append(name)
    return names, {parent: ClassKeypoints.of(tuple(dict.fromkeys(own))) for parent, own in points.items()}


class _Reader:
    """Reads one split of a file."""

    def __init__(self, location: CvatLocation, root: ElementTree.Element, problems: Problems) -> None:
        self.location, self.root, self.problems = location, root, problems
        self.split = NamedSplit(problems.source)

    def read(self, folders: dict[Path, ImageFolder]) -> NamedSplit:
        """The pictures and objects of the split."""
        if self.root.tag != "annotations" or self.root.find("track") is not None:
            kind = "tracks of a video" if self.root.tag == "annotations" else f"the root {shown(self.root.tag)}"
            raise DetectionDataError(f"{self.location.file}: has {kind}; export as 'CVAT for images 1.1'")
        images = [
            image
            for image in self.root.findall("image")
            if self.location.subset is None or (image.get("subset") or _NO_SUBSET) == self.location.subset
        ]
        for index, image in enumerate(images):
            name = image.get("name") or ""
            place = f"{self.location.file}: image {name!r}" if name else f"{self.location.file}: image number {index}"
            if not name.strip() or "\0" in name:
                self.problems.add(f"{place}: field name is missing or empty", "name the picture's file")
            self.split.add_picture("", name, self._size(image, place))
        self.problems.raise_if_any()
        if not images:
            raise DetectionDataError(f"{self.location.file}: there is no image in it; export again with annotations")
        called = self.location.subset or self.location.file.stem
        find_pictures(self.split, called, self.location.image_folders, folders, self.problems)
        for index, image in enumerate(images):
            self._read_image(index, image)
        return self.split

    def _size(self, image: ElementTree.Element, place: str) -> tuple[int, int] | None:
        sides = [image.get(side) for side in ("width", "height")]
        if None in sides:
            return None
        width, height = (as_integer(side) for side in sides)
        if width is None or height is None or min(width, height) < 1:
            self.problems.add(
                f"{place}: fields width and height are {sides}, no size", "correct them, or leave them out"
            )
            return 1, 1
        return width, height

    def _read_image(self, index: int, image: ElementTree.Element) -> None:
        for position, shape in enumerate(image, start=1):
            place = f"{self.location.file}: image {image.get('name')!r}, shape {position} ({shape.tag})"
            if shape.tag in _NO_OBJECTS or shape.get("outside") == "1":
                what = "shapes that are marked as outside" if shape.get("outside") == "1" else _NO_OBJECTS[shape.tag]
                self.split.left_out[what] += 1
                continue
            label = shape.get("label") or ""
            if not label.strip():
                self.problems.add(f"{place}: field label is missing or empty", _REMEDY)
            if (read := _SHAPES.get(shape.tag)) is None:
                self.problems.add(f"{place}: shapes of this kind are not known", _REMEDY)
                continue
            flags = [as_flag(text_of(shape, f"attribute[@name='{name}']")) for name in _IGNORED]
            if None in flags:
                name = _IGNORED[flags.index(None)]
                self.problems.add(f"{place}: the attribute {name} is neither yes nor no", "write it as true or false")
            before = self.problems.count
            drawn = read(_Shape(shape, place, self, index))
            if drawn is not None and self.problems.count == before:
                box, mask, keypoints = drawn
                self.split.objects.append(NamedObject(index, label or "", box, place, any(flags), mask, keypoints))


@dataclass
class _Shape:
    """One shape while it is read; faults are noted, and make the result useless."""

    element: ElementTree.Element
    place: str
    reader: _Reader
    image: int

    def numbers(self, *fields: str) -> list[float]:
        """Numbers of attributes; those that may be left out are 0 then."""
        optional = {"rotation": "0"}
        return [
            number(self.element.get(f, optional.get(f)), self.place, f, self.reader.problems, _REMEDY) for f in fields
        ]

    def points(self, element: ElementTree.Element, least: int) -> list[float]:
        """x, y, x, y, … of the attribute points."""
        text = element.get("points") or ""
        pairs = [pair.split(",") for pair in text.split(";") if pair.strip()]
        try:
            values = [float(value) for pair in pairs for value in pair]
        except ValueError:
            values = [np.nan]
        if any(len(pair) != 2 for pair in pairs) or len(pairs) < least or not np.isfinite(values).all():
            fault = f"is {shown(text)}, not {least} or more pairs 'x,y' with ';' between them"
            self.reader.problems.add(f"{self.place}: field points {fault}", _REMEDY)
            return [0.0] * 2 * least
        return values

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        split = self.reader.split
        return split.sizes[self.image] or image_size(split.paths[self.image], {})

    def upright(self, corners: list[float], centre: tuple[float, float], degrees: float) -> Any:
        """Box and mask of corners that are turned around a centre."""
        if degrees % 360:
            corners = turned(corners, degrees, centre)
        return hull(corners), [corners], {}


def _box(shape: _Shape) -> Any:
    left, top, right, bottom, degrees = shape.numbers("xtl", "ytl", "xbr", "ybr", "rotation")
    if not degrees % 360:
        return (left, top, right - left, bottom - top), None, {}
    centre = ((left + right) / 2, (top + bottom) / 2)
    return shape.upright(rectangle(left, top, right - left, bottom - top), centre, degrees)


def _outline(shape: _Shape) -> Any:
    if shape.element.tag == "polygon":
        return shape.upright(shape.points(shape.element, 3), (0, 0), 0)
    x, y, across, down, degrees = shape.numbers("cx", "cy", "rx", "ry", "rotation")
    return shape.upright(ellipse((x, y), (across, down)), (x, y), degrees)


def _mask(shape: _Shape) -> Any:
    """Runs of background and object in turn, row by row of a part of the picture."""
    values = shape.numbers("left", "top", "width", "height")
    runs = [as_integer(run.strip()) for run in (shape.element.get("rle") or "").split(",")]
    if not all(float(value).is_integer() and value >= 0 for value in values if value == value) or None in runs:
        fault = f"fields rle, left, top, width, height are {shown(shape.element.attrib)}"
        shape.reader.problems.add(f"{shape.place}: {fault}, no numbers of pixels", _REMEDY)
        return None
    if any(value != value for value in values):
        return None
    left, top, width, height = map(int, values)
    lengths = np.array(runs, np.int64)
    frame = shape.size
    if (lengths < 0).any() or lengths.sum() != width * height or left + width > frame[0] or top + height > frame[1]:
        fault = (
            f"field rle has {lengths.sum()} pixels for {width} x {height} at ({left}, {top}) of a picture of {frame}"
        )
        shape.reader.problems.add(f"{shape.place}: {fault}", _REMEDY)
        return None
    inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)
    rows, columns = inside.any(axis=1).nonzero()[0], inside.any(axis=0).nonzero()[0]
    if not len(rows):
        return (left, top, 0.0, 0.0), None, {}
    box = (left + columns[0], top + rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    pixels = np.zeros(frame[::-1], np.uint8)
    pixels[top : top + height, left : left + width] = inside
    return tuple(map(float, box)), {"rle": encode_mask(pixels)}, {}


def _skeleton(shape: _Shape) -> Any:
    found: dict[str, tuple[float, float, int]] = {}
    for point in shape.element.iterfind("points"):
        name = point.get("label")
        if not name or name in found:
            fault = f"has two points {name!r}" if name else "has a point without a label"
            shape.reader.problems.add(f"{shape.place}: {fault}", _REMEDY)
        elif point.get("outside") != "1":
            x, y = shape.points(point, 1)[:2]
            found[name] = (x, y, 1 if point.get("occluded") == "1" else 2)
    if not found:
        shape.reader.split.left_out["skeletons without a visible point"] += 1
        return None
    return hull([value for x, y, _ in found.values() for value in (x, y)]), None, found


_SHAPES = {"box": _box, "polygon": _outline, "ellipse": _outline, "mask": _mask, "skeleton": _skeleton}
