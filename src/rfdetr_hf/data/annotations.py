"""Annotations as flat arrays: what every reader produces, the rules for bad boxes, and the way into Arrow.

No Python object per image or box outlives the reader: arrays go into Arrow columns, which worker processes share.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, NamedSplit, concatenate_datasets

from .errors import DetectionDataError, Problems
from .keypoints import ClassKeypoints, KeypointSchema
from .masks import Polygons, mask_array, parse_mask
from .schema import TASKS, Task, detection_features

logger = logging.getLogger(__name__)

MissingMasks = Literal["error", "box"]
_EXAMPLES = 5


class Labels(NamedTuple):
    """The class table of a data set.

    Attributes:
        names: in the order of the labels.
        ids: of the source, likewise.
        keypoints: what the keypoints of each class are, where they are asked for.
    """

    names: list[str]
    ids: list[int]
    keypoints: KeypointSchema | None = None


@dataclass(frozen=True)
class Wanted:
    """What a reader brings beside boxes.

    Attributes:
        task: "detection" drops masks and keypoints as soon as they are read; "segmentation" keeps masks, "keypoints"
            keypoints.
        missing_masks: "error" refuses objects without a mask, "box" makes their box their mask.
        keypoints: what the keypoints are, by label, instead of what the source says.
    """

    task: Task = "detection"
    missing_masks: MissingMasks = "error"
    keypoints: KeypointSchema | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.missing_masks not in ("error", "box"):
            raise ValueError(
                f"task={self.task!r}, missing_masks={self.missing_masks!r}: task is one of {list(TASKS)}, "
                "missing_masks 'error' or 'box'"
            )

    def labels(self, labels: Labels, found: Sequence[ClassKeypoints], source: str) -> Labels:
        """The class table with its keypoints, when they are wanted.

        Args:
            labels: names and ids.
            found: the source's keypoints of each label.
            source: for messages.

        Raises:
            DetectionDataError: the source has no keypoints, or the given ones do not fit it.
        """
        if self.task != "keypoints":
            return labels
        theirs = KeypointSchema(tuple(found))
        if not theirs.num_keypoints:
            raise DetectionDataError(f"{source}: there are no keypoints; load it with task='detection'")
        if self.keypoints and self.keypoints.num_keypoints_per_class != theirs.num_keypoints_per_class:
            raise DetectionDataError(
                f"{source}: keypoint_schema has {self.keypoints.num_keypoints_per_class} keypoints per class, but the "
                f"classes {labels.names} have {theirs.num_keypoints_per_class}; give one entry per class, in this order"
            )
        return labels._replace(keypoints=self.keypoints or theirs)


@dataclass(frozen=True)
class Boxes:
    """All boxes of one split, one row each.

    Attributes:
        row: (n,) int64, the image's row in its split.
        id: (n,) int64, annotation ids.
        bbox: (n, 4) float64 xywh in pixels.
        category: (n,) int64, what the source writes, or labels after `map_ids`.
        area: (n,) float64, NaN where the source gives none.
        iscrowd: (n,) bool.
        masks: n elements of `mask_array`, or None where masks are not asked for.
        keypoints: (n, 3K) float64 as in the schema, or None where they are not asked for.
    """

    row: np.ndarray
    id: np.ndarray
    bbox: np.ndarray
    category: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    masks: pa.StructArray | None = None
    keypoints: np.ndarray | None = None

    def select(self, keep: np.ndarray) -> "Boxes":
        """The boxes at a boolean mask or at indices."""
        indices = np.flatnonzero(keep) if keep.dtype == bool else keep
        return Boxes(**{name: _take(getattr(self, name), indices) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Annotations:
    """One split without its pixels.

    Attributes:
        source: the file or split, for messages.
        image_id: (m,) int64.
        size: (m, 2) int64 width and height.
        file_name: one name or None per image.
        boxes: see `Boxes`.
    """

    source: str
    image_id: np.ndarray
    size: np.ndarray
    file_name: Sequence[str | None]
    boxes: Boxes


def class_table(names: Mapping[int, str], class_names: Sequence[str] | None, source: str) -> Labels:
    """The labels of a source that numbers its classes: by ascending id, or as `class_names` orders them.

    Raises:
        DetectionDataError: no class, a name that two of them share, or a name of `class_names` that none has.
    """
    ids = sorted(names)
    ordered = [names[i] for i in ids]
    shared = sorted({name for name in ordered if ordered.count(name) > 1})
    if shared or not names:
        fault = f"the name {shared[0]!r} belongs to several categories" if shared else "there are no categories"
        raise DetectionDataError(f"{source}: {fault}; give each class one name")
    if class_names is None:
        return Labels(ordered, ids)
    missing = [name for name in class_names if name not in ordered]
    if missing:
        raise DetectionDataError(
            f"{source}: class_names has {missing}, but the categories are {ordered}; use their names"
        )
    return Labels(list(class_names), [ids[ordered.index(name)] for name in class_names])


def _take(values: Any, indices: np.ndarray) -> Any:
    if values is None:
        return None
    return values.take(pa.array(indices)) if isinstance(values, pa.Array) else values[indices]


def map_ids(values: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Position of each value in `ids`, or -1.

    Args:
        values: (n,) integers.
        ids: distinct integers.
    """
    if not len(ids):
        return np.full(len(values), -1)
    table = np.asarray(ids, dtype=np.int64)
    order = np.argsort(table)
    found = order[np.searchsorted(table[order], values).clip(max=len(table) - 1)]
    return np.where(table[found] == values, found, -1)


def find_broken(annotations: Annotations, problems: Problems) -> None:
    """Note what no rule can repair: sizes that are none, image ids used twice, boxes and areas that are no numbers."""
    for row in np.flatnonzero((annotations.size <= 0).any(axis=1)):
        problems.add(
            f"image id {annotations.image_id[row]}: fields width and height are {annotations.size[row].tolist()}",
            "correct the sizes, or leave the fields out to have them read from the files",
        )
    ids, counts = np.unique(annotations.image_id, return_counts=True)
    problems.add_all(
        (f"image id {i}: used by {count} images" for i, count in zip(ids[counts > 1], counts[counts > 1], strict=True)),
        "give every image of a split an id of its own (a Hub data set without the column image_id is numbered by row)",
    )
    boxes = annotations.boxes
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field bbox is {boxes.bbox[i].tolist()}, not finite"
            for i in np.flatnonzero(~np.isfinite(boxes.bbox).all(axis=1))
        ),
        "correct these boxes or delete the annotations",
    )
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field area is {boxes.area[i]}"
            for i in np.flatnonzero(np.isinf(boxes.area) | (boxes.area < 0))
        ),
        "correct the areas, or leave the field out to use width x height",
    )


def name_box(annotations: Annotations, index: int) -> str:
    """How messages call one box."""
    boxes = annotations.boxes
    return f"annotation id {boxes.id[index]} (image id {annotations.image_id[boxes.row[index]]})"


def repair_boxes(annotations: Annotations) -> Annotations:
    """Clamp boxes to their images, and drop those of which nothing is left; count both in the log.

    Missing areas become width x height of the clamped box; given areas stay. Boxes inside their image keep their bits.
    """
    boxes = annotations.boxes
    limit = annotations.size[boxes.row].astype(np.float64)
    start, end = boxes.bbox[:, :2], boxes.bbox[:, :2] + boxes.bbox[:, 2:]
    empty = (boxes.bbox[:, 2:] <= 0).any(axis=1)
    low, high = start.clip(min=0), np.minimum(end, limit)
    outside = ~empty & (high <= low).any(axis=1)
    clamped = ((start < 0) | (end > limit)).any(axis=1) & ~empty & ~outside
    bbox = np.where(clamped[:, None], np.concatenate([low, high - low], axis=1), boxes.bbox)
    area = np.where(np.isnan(boxes.area), bbox[:, 2] * bbox[:, 3], boxes.area)
    # Exporters round to two decimals or so; such a box is repaired, but not worth a word.
    clearly = clamped & ((start < -0.5) | (end > limit + 0.5)).any(axis=1)
    _report(annotations, "dropped", "no width or no height", empty)
    _report(annotations, "dropped", "lie outside their image", outside)
    _report(annotations, "clamped", "reach beyond their image", clearly)
    return replace(annotations, boxes=replace(boxes, bbox=bbox, area=area).select(~(empty | outside)))


def _report(annotations: Annotations, verb: str, reason: str, mask: np.ndarray) -> None:
    rows = np.flatnonzero(mask)
    if len(rows):
        names = ", ".join(name_box(annotations, i) for i in rows[:_EXAMPLES])
        more = ", …" if len(rows) > _EXAMPLES else ""
        logger.warning("%s: %s %d boxes (%s): %s%s", annotations.source, verb, len(rows), reason, names, more)


def read_masks(values: Sequence[Any], annotations: Annotations, problems: Problems) -> pa.StructArray:
    """The masks of all boxes, null where there is none; those that are not understood are noted.

    Args:
        values: one per box, in any form that `parse_mask` reads.
        annotations: with the sizes of the images.
        problems: collects the faults.
    """
    parsed: list[Polygons | str | None] = []
    for index, value in enumerate(values):
        width, height = annotations.size[annotations.boxes.row[index]].tolist()
        try:
            parsed.append(parse_mask(value, height, width))
        except ValueError as error:
            parsed.append(None)
            problems.add(
                f"{name_box(annotations, index)}: field segmentation {error}",
                "write masks as polygons [[x, y, x, y, …], …] in pixels or as run-length encodings of the image's size",
            )
    return mask_array(parsed)


def settle_missing_masks(annotations: Annotations, missing: MissingMasks, problems: Problems) -> Annotations:
    """Every box with a mask: a box without one is a fault, or is its own mask.

    Args:
        annotations: repaired.
        missing: "error" or "box".
        problems: collects the faults.
    """
    boxes = annotations.boxes
    if boxes.masks is None or not boxes.masks.null_count:
        return annotations
    without = np.flatnonzero(boxes.masks.is_null().to_numpy(zero_copy_only=False))
    if missing == "error":
        problems.add_all(
            (f"{name_box(annotations, i)}: field segmentation is missing or empty" for i in without),
            "draw these masks, delete the annotations, or pass missing_masks='box' to use the boxes as masks",
        )
        return annotations
    x, y, width, height = boxes.bbox[without].T
    corners = np.stack([x, y, x + width, y, x + width, y + height, x, y + height], axis=1)
    order = np.arange(len(boxes.row))
    order[without] = len(boxes.row) + np.arange(len(without))
    filled = pa.concat_arrays([boxes.masks, mask_array([[polygon] for polygon in corners])]).take(pa.array(order))
    logger.warning("%s: %d objects without a mask use their box as mask", annotations.source, len(without))
    return replace(annotations, boxes=replace(boxes, masks=filled))


def build_dataset(annotations: Annotations, labels: Labels, images: Dataset | pa.Array, split: str) -> Dataset:
    """A data set of the schema.

    Args:
        annotations: checked and repaired; categories are labels.
        labels: the class table.
        images: one image per row: a struct array of ``bytes`` and ``path``, or a data set whose column ``image`` stays
            where it is.
        split: name of the split.
    """
    masks = annotations.boxes.masks is not None
    features = detection_features(labels.names, labels.ids, masks=masks, keypoints=labels.keypoints)
    columns = {
        "image_id": pa.array(annotations.image_id, pa.int64()),
        "width": pa.array(annotations.size[:, 0], pa.int32()),
        "height": pa.array(annotations.size[:, 1], pa.int32()),
        "file_name": pa.array(annotations.file_name, pa.string()),
        "objects": _objects_array(annotations),
    }
    if isinstance(images, Dataset):
        rest = _dataset(columns, features, split)
        return concatenate_datasets([images, rest], axis=1, split=NamedSplit(split))
    return _dataset({"image": images, **columns}, features, split)


def path_array(paths: Sequence[str]) -> pa.StructArray:
    """The image column of files that stay where they are."""
    return pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
    )


def _dataset(columns: dict[str, pa.Array], features: Features, split: str) -> Dataset:
    features = Features({name: features[name] for name in columns})
    table = pa.table(list(columns.values()), schema=features.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=features), split=NamedSplit(split))


def _objects_array(annotations: Annotations) -> pa.StructArray:
    order = np.argsort(annotations.boxes.row, kind="stable")
    boxes = annotations.boxes.select(order)
    if len(boxes.row) >= 2**31:
        raise DetectionDataError(f"{annotations.source}: {len(boxes.row)} boxes are more than one split can hold")
    ends = np.cumsum(np.bincount(boxes.row, minlength=len(annotations.image_id)))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    bbox = pa.FixedSizeListArray.from_arrays(pa.array(boxes.bbox.reshape(-1), pa.float64()), 4)
    values = {
        "id": pa.array(boxes.id, pa.int64()),
        "bbox": bbox,
        "category": pa.array(boxes.category, pa.int64()),
        "area": pa.array(boxes.area, pa.float64()),
        "iscrowd": pa.array(boxes.iscrowd, pa.bool_()),
    }
    if boxes.masks is not None:
        values["segmentation"] = boxes.masks
    if boxes.keypoints is not None:
        flat = pa.array(boxes.keypoints.reshape(-1), pa.float64())
        values["keypoints"] = pa.FixedSizeListArray.from_arrays(flat, boxes.keypoints.shape[1])
    lists = [pa.ListArray.from_arrays(offsets, column) for column in values.values()]
    return pa.StructArray.from_arrays(lists, names=list(values))
