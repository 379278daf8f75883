"""What the readers of annotation tools share: pictures with objects whose class is a name."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ...choices import counted
from ..annotations import Annotations, Boxes, Labels, ReadOptions, build_dataset, name_box, path_array
from ..checks import settle, without_repeated_files
from ..errors import DetectionDataError, Problems
from ..images import ImageFolder, choose_folder
from ..keypoints import ClassKeypoints
from ..masks import coco_masks
from ..pipeline.pixels import image_size
from ..splits import check_one_split

logger = logging.getLogger(__name__)

Corners = list[float]  # x, y, x, y, … of a polygon, in pixels
Points = Mapping[str, tuple[float, float, int]]  # name of a keypoint -> x, y, v as in the schema


@dataclass(frozen=True)
class NamedObject:
    """One object as an annotation tool writes it.

    Attributes:
        image: position of its picture in the split.
        label: name of its class.
        box: left, top, width, height in pixels, or what `written` of `finish_splits` says.
        place: where it is written, for messages.
        ignored: neither a training target nor counted in scoring, which COCO calls a crowd.
        mask: in any form that `parse_mask` reads; None for none.
        keypoints: by name.
    """

    image: int
    label: str
    box: tuple[float, float, float, float]
    place: str
    ignored: bool = False
    mask: Any = None
    keypoints: Points = field(default_factory=dict)


@dataclass
class NamedSplit:
    """One split as a tool wrote it.

    Attributes:
        source: for messages.
        paths: of the pictures.
        file_names: as the source writes them.
        sizes: width and height of each picture; None reads them from the picture.
        objects: of all pictures.
        background: why pictures have no objects -> how many, where the source says why.
        left_out: what of the source is no object -> how many; counted in the log.
    """

    source: str
    paths: list[str] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    objects: list[NamedObject] = field(default_factory=list)
    background: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def add_picture(self, path: str, file_name: str, size: tuple[int, int] | None) -> int:
        """Note a picture, and return its position."""
        self.paths.append(path)
        self.file_names.append(file_name)
        self.sizes.append(size)
        return len(self.paths) - 1


def finish_splits(
    splits: Mapping[str, NamedSplit],
    options: ReadOptions,
    faults: Mapping[str, Problems],
    *,
    table: Sequence[str] | None = None,
    keypoints: Mapping[str, ClassKeypoints] | None = None,
    written: str | None = None,
) -> dict[str, Dataset]:
    """Check and repair the splits, and bring them into the schema.

    Args:
        splits: by our names; the first one's class names, sorted, are the label table where there is no other.
        options: what was asked for.
        faults: what the readers have found, by split.
        table: all class names in the order of the source, where it lists them.
        keypoints: of each class.
        written: how the boxes are written, which their numbers are checked against; None for left, top, width, height
            that need no check.

    Raises:
        DetectionDataError: faults that no rule repairs; up to ten.
    """
    first = next(iter(splits.values()))
    names = options.class_names or table or sorted({each.label for each in first.objects})
    if not names:
        raise DetectionDataError(f"{first.source}: no object has a class; give the label table with class_names=[…]")
    labels = Labels(list(names), list(range(len(names))))
    own = [(keypoints or {}).get(name, ClassKeypoints()) for name in labels.names]
    labels = options.with_keypoints(labels, own, first.source)
    return {name: _finish(split, labels, name, options, faults[name], written) for name, split in splits.items()}


def _finish(
    split: NamedSplit, labels: Labels, name: str, options: ReadOptions, problems: Problems, written: str | None
) -> Dataset:
    for what, count in sorted(split.left_out.items()):
        logger.warning("%s: left out %d %s", split.source, count, what)
    sizes = [size or _size_of(path, problems) for path, size in zip(split.paths, split.sizes, strict=True)]
    boxes = _boxes(split.objects, labels, options, sizes)
    annotations = Annotations(
        split.source,
        np.arange(len(split.paths)),
        np.array(sizes, np.int64).reshape(-1, 2),
        split.file_names,
        boxes,
        split.background,
    )
    problems.add_all(
        (
            f"{name_box(annotations, i)}: the class {split.objects[i].label!r} is not in the label table {labels.names}"
            for i in np.flatnonzero(boxes.category < 0).tolist()
        ),
        "the label table is that of the training split: have the class there, correct the name, or pass class_names",
    )
    masks: list[Any] | None = [each.mask for each in split.objects] if options.task == "segmentation" else None
    paths = split.paths
    annotations, paths, masks = without_repeated_files(annotations, paths, masks, problems)
    settled = settle(annotations, labels, options, problems, masks, written=written)
    settled = replace(settled, boxes=replace(settled.boxes, id=np.arange(1, len(settled.boxes.id) + 1)))
    return build_dataset(settled, labels, path_array(paths), name)


def _size_of(path: str, problems: Problems) -> tuple[int, int]:
    try:
        return image_size(path, {})
    except DetectionDataError as error:
        problems.add(str(error))
        return 1, 1  # its size must not be a second fault


def _boxes(
    objects: Sequence[NamedObject], labels: Labels, options: ReadOptions, sizes: Sequence[tuple[int, int]]
) -> Boxes:
    position = {name: label for label, name in enumerate(labels.names)}
    places = np.empty(len(objects), dtype=object)
    places[:] = [each.place for each in objects]
    keypoints = None
    if options.task == "keypoints" and labels.keypoints is not None:
        keypoints = np.zeros((len(objects), labels.keypoints.num_keypoints, 3))
        for row, each in zip(keypoints, objects, strict=True):
            label = position.get(each.label, -1)
            own = labels.keypoints.classes[label].names if label >= 0 else ()
            for index, point in enumerate(own):
                row[index] = each.keypoints.get(point, (0, 0, 0))
        keypoints = keypoints.reshape(len(objects), 3 * keypoints.shape[1])
    return Boxes(
        row=np.array([each.image for each in objects], np.int64),
        id=np.arange(1, len(objects) + 1),
        bbox=np.array([each.box for each in objects], np.float64).reshape(-1, 4),
        category=np.array([position.get(each.label, -1) for each in objects], np.int64),
        area=np.array([_area_of(each.mask, sizes[each.image]) for each in objects], np.float64),
        iscrowd=np.array([each.ignored for each in objects], bool),
        keypoints=keypoints,
        place=places,
    )


def _area_of(mask: Any, size: tuple[int, int]) -> float:
    """What polygons or pixels cover, as COCO's files give it; NaN, for the box's, where there are none."""
    if isinstance(mask, Mapping):
        return float(coco_masks.area({"size": size[::-1], "counts": mask["rle"]}))
    if not isinstance(mask, list):
        return math.nan
    total = 0.0
    for corners in mask:
        x, y = np.asarray(corners, np.float64).reshape(-1, 2).T
        total += abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return total or math.nan


def hull(corners: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, width, height of the smallest upright box around points x, y, x, y, …"""
    points = np.asarray(corners, np.float64).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def turned(corners: Sequence[float], degrees: float, centre: tuple[float, float]) -> Corners:
    """Points x, y, x, y, … turned clockwise, as pictures are seen, around a centre."""
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    points = np.asarray(corners, np.float64).reshape(-1, 2) - centre
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    return (points @ matrix + centre).ravel().tolist()


def ellipse(centre: tuple[float, float], radii: tuple[float, float], count: int = 64) -> Corners:
    """The outline of an upright ellipse, as many corners as `count`, a multiple of four: the extremes are corners."""
    angles = 2 * np.pi * np.arange(count) / count
    x, y = centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)
    return np.stack([x, y], axis=1).ravel().tolist()


def rectangle(left: float, top: float, width: float, height: float) -> Corners:
    """The corners of an upright box."""
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def find_pictures(
    split: NamedSplit, name: str, candidates: Sequence[Path], folders: dict[Path, ImageFolder], problems: Problems
) -> None:
    """Fill in the paths of a split's pictures; missing ones are noted, repaired names counted in the log.

    Args:
        split: with its file names.
        name: what the source calls the split.
        candidates: folders that may hold the pictures, likeliest first.
        folders: keeps what has been read for the next split.
        problems: collects pictures that are missing.

    Raises:
        SplitMissingError: none of the pictures is there.
    """
    folder, resolved = choose_folder(split.source, split.file_names, candidates, folders)
    check_one_split(split.source, name, split.file_names, problems)
    for reason, count in resolved.repairs.items():
        logger.warning("%s: found %s %s", split.source, counted(count, "image"), reason)
    split.paths = [path or "" for path in resolved.paths]
    for index, path in enumerate(resolved.paths):
        if path is None:
            split.sizes[index] = (1, 1)  # its size must not be a second fault
            problems.add(
                f"{split.file_names[index]!r} is missing in {folder.root}",
                "restore the missing pictures, take them out of the annotations, or name their folder: image_dir=…",
            )
