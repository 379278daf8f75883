"""Annotations as flat arrays: what every reader produces, and the way into Arrow.

No Python object per image or box outlives the reader: arrays go into Arrow columns, which worker processes share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, NamedSplit, concatenate_datasets

from ..choices import BOX_FORMATS, SHARD_CACHE, BoxFormat
from ..tasks import BOXES_ALONE, TASKS, TaskName
from ..values import shown
from .errors import DetectionDataError
from .keypoints import ClassKeypoints, KeypointSchema
from .schema import detection_features

MissingMasks = Literal["error", "box"]


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
class ReadOptions:
    """What a reader is asked for. `load_detection_dataset` describes the fields.

    Attributes:
        task: "detection" drops masks and keypoints as soon as they are read; "segmentation" keeps masks, "keypoints"
            keypoints.
        missing_masks: "error" refuses objects without a mask, "box" makes their box their mask.
        keypoints: what the keypoints are, by label, instead of what the source says.
        class_names: the label table, instead of the training split's.
        bbox_format: how the boxes are written; None for what is usual for the source.
        image_dir, label_dir: where images and rows are, instead of where they are found.
        need_test: a test split that is missing is an error, and is not left out.
        load: options of `datasets.load_dataset` or of the generator.
        shard_window: shards whose rows a training mixes at a time.
        shard_cache, shard_cache_gb: folder for the shards of a store, and the most gigabytes in it.
    """

    task: TaskName = "detection"
    missing_masks: MissingMasks = "error"
    keypoints: KeypointSchema | None = None
    class_names: Sequence[str] | None = None
    bbox_format: BoxFormat | None = None
    image_dir: str | Mapping[str, str] | None = None
    label_dir: str | None = None
    need_test: bool = False
    load: Mapping[str, Any] = field(default_factory=dict)
    shard_window: int = 8
    shard_cache: str = SHARD_CACHE
    shard_cache_gb: int = 64

    def __post_init__(self) -> None:
        known = {"task": TASKS, "missing_masks": get_args(MissingMasks), "bbox_format": (*BOX_FORMATS, None)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {list(values)}")
        if self.class_names is not None:
            names: list[Any] = [] if isinstance(self.class_names, str) else list(self.class_names)
            if not names:
                raise ValueError(f"class_names={shown(self.class_names)}: give a list of names, one for each class")
            odd = [name for name in names if not isinstance(name, str) or names.count(name) > 1]
            if odd:
                raise ValueError(f"class_names has {shown(odd[0])}: give each class a name of its own, as text")

    def refuse(self, source: str, kind: str, *names: str) -> None:
        """Raise `TypeError` when a source is given options that its kind does not have.

        Args:
            source: name of the source.
            kind: what it is, for "the source …, has no options".
            names: fields that it has no use for.
        """
        owners = {
            "image_dir": "COCO and Pascal VOC layouts and of exports of CVAT and Label Studio",
            "label_dir": "YOLO data sets",
            "bbox_format": "COCO, YOLO and Pascal VOC data sets and tables",
        }
        for name in names:
            if name == "load" and self.load:
                raise TypeError(f"{source} {kind} has no options {sorted(self.load)}")
            if name in owners and getattr(self, name) is not None:
                raise TypeError(f"{name} is an option of {owners[name]}, and {source} is none")

    def with_keypoints(self, labels: Labels, found: Sequence[ClassKeypoints], source: str) -> Labels:
        """The class table with its keypoints, when the task has them.

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
            raise DetectionDataError(f"{source}: there are no keypoints; {BOXES_ALONE}")
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
        place: (n,) texts that say where the source writes each box, for messages; None where ids lead there.
    """

    row: np.ndarray
    id: np.ndarray
    bbox: np.ndarray
    category: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    masks: pa.StructArray | None = None
    keypoints: np.ndarray | None = None
    place: np.ndarray | None = None

    def select(self, keep: np.ndarray) -> "Boxes":
        """The boxes at a boolean mask or at indices."""
        indices = np.flatnonzero(keep) if keep.dtype == bool else keep
        taken = {name: values for name in self.__dataclass_fields__ if (values := getattr(self, name)) is not None}
        for name, values in taken.items():
            taken[name] = values.take(pa.array(indices)) if isinstance(values, pa.Array) else values[indices]
        return Boxes(**taken)


@dataclass(frozen=True)
class Annotations:
    """One split without its pixels.

    Attributes:
        source: the file or split, for messages.
        image_id: (m,) int64.
        size: (m, 2) int64 width and height.
        file_name: one name or None per image.
        boxes: see `Boxes`.
        background: why images have no objects -> how many, where the source says why.
        labelled: per image the classes that are labelled completely in it, None for all; None where that is so in all
            images.
    """

    source: str
    image_id: np.ndarray
    size: np.ndarray
    file_name: Sequence[str | None]
    boxes: Boxes
    background: Mapping[str, int] = field(default_factory=dict)
    labelled: Sequence[Sequence[int] | None] | None = None

    def keep_images(self, keep: np.ndarray) -> tuple["Annotations", np.ndarray]:
        """The images of a boolean mask, and the indices of the boxes that are in them."""
        rows = np.flatnonzero(keep)
        inside = np.flatnonzero(keep[self.boxes.row])
        boxes = self.boxes.select(inside)
        boxes = replace(boxes, row=np.searchsorted(rows, boxes.row))
        names = [self.file_name[row] for row in rows.tolist()]
        labelled = None if self.labelled is None else [self.labelled[row] for row in rows.tolist()]
        kept = replace(self, image_id=self.image_id[rows], size=self.size[rows], file_name=names, labelled=labelled)
        return replace(kept, boxes=boxes), inside


def class_table(names: Mapping[int, str], class_names: Sequence[str] | None, source: str) -> Labels:
    """The labels of a source that numbers its classes: by ascending id, or as `class_names` orders them.

    Raises:
        DetectionDataError: no class, a name that two of them share, or an id below 0.

    Classes of `class_names` that the source lacks have no objects here; their ids are new ones.
    """
    ids = sorted(names)
    ordered = [names[i] for i in ids]
    shared = sorted({name for name in ordered if ordered.count(name) > 1})
    if shared or not names:
        fault = f"the name {shared[0]!r} belongs to several categories" if shared else "there are no categories"
        raise DetectionDataError(f"{source}: {fault}; give each class one name")
    if ids[0] < 0:
        raise DetectionDataError(
            f"{source}: the id of {names[ids[0]]!r} is {ids[0]}, which stands for no category; leave it out"
        )
    if class_names is None:
        return Labels(ordered, ids)
    position = {name: ids[index] for index, name in enumerate(ordered)}
    unknown = count(ids[-1] + 1)
    return Labels(list(class_names), [position[n] if n in position else next(unknown) for n in class_names])


def map_ids(values: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
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


def label_sets(
    values: Sequence[Sequence[int] | None] | None, ids: Sequence[int] | np.ndarray
) -> list[list[int] | None] | None:
    """The labels of classes that are labelled in each image, sorted; those that are not in the table are left out.

    Args:
        values: per image ids of classes, or None for all.
        ids: of the classes in the order of the labels.
    """
    if values is None:
        return None
    position = {int(i): label for label, i in enumerate(ids)}
    return [None if own is None else sorted({position[i] for i in own if i in position}) for own in values]


def name_box(annotations: Annotations, index: int) -> str:
    """How messages call one box."""
    boxes = annotations.boxes
    if boxes.place is not None:
        return str(boxes.place[index])
    return f"annotation id {boxes.id[index]} (image id {annotations.image_id[boxes.row[index]]})"


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
    federated = annotations.labelled is not None
    features = detection_features(
        labels.names, labels.ids, masks=masks, keypoints=labels.keypoints, labelled_classes=federated
    )
    columns = {
        "image_id": pa.array(annotations.image_id, pa.int64()),
        "width": pa.array(annotations.size[:, 0], pa.int32()),
        "height": pa.array(annotations.size[:, 1], pa.int32()),
        "file_name": pa.array(annotations.file_name, pa.string()),
        "objects": _objects_array(annotations),
    }
    if federated:
        columns["labelled_classes"] = pa.array(annotations.labelled, pa.list_(pa.int32()))
    if isinstance(images, Dataset):
        rest = _dataset(columns, features, split)
        return concatenate_datasets([images, rest], axis=1, split=NamedSplit(split))
    return _dataset({"image": images, **columns}, features, split)


def path_array(paths: Sequence[str]) -> pa.StructArray:
    """The image column of files that stay where they are.

    Raises:
        DetectionDataError: the name of one is not UTF-8, which a table cannot hold.
    """
    try:
        texts = pa.array(paths, pa.string())
    except UnicodeEncodeError as error:
        raise DetectionDataError(f"{error.object!a}: the name is not UTF-8; rename the file or its folder") from error
    return pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), texts], ["bytes", "path"])


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
