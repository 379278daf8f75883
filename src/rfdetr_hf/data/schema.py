"""The one schema of examples, and what can be asked of a data set that has it.

One row is one image:

========= ======================================================================================
column    content
========= ======================================================================================
image     `datasets.Image(decode=False)`: ``{"path", "bytes"}``; `decode_image(row)` gives pixels
image_id  int64, unique in its split
width     int32, of the frame that the boxes are in
height    int32
file_name string or null, as the source wrote it
labelled_classes
          only where not all classes are labelled in all images: list of int32, the labels that are labelled completely
          in the image: where no box of such a class is, there is no such object. Null stands for all classes
sample_weight
          only where training images are not drawn equally often: float64, 1 on average
as_stored   only where EXIF tags are not followed in images whose size does not tell: bool, see `decode_image`
value_range only where pictures have more than 8 bits: float64 (low, high) of all of them together
objects   parallel lists ``id`` int64, ``bbox`` float64 (x, y, w, h) in pixels, ``category``
          `ClassLabel` (contiguous, 0-based), ``area`` float64, ``iscrowd`` bool;
          where asked for ``segmentation``, see `rfdetr_hf.data.masks`, and ``keypoints``, float64
          (x, y, v) times K in a row, v = 0 not labelled (x and y are 0), 1 hidden, 2 visible
========= ======================================================================================

Images stay undecoded so that reading annotations costs no pixels, a broken file can be named, and the EXIF rule of
`decode_image` applies. ``dataset.cast_column("image", datasets.Image())`` turns them into PIL images for a look.
Boxes and areas keep the precision of the source, because COCO metrics compare them with thresholds.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from ..choices import printable
from .errors import DetectionDataError
from .keypoints import KeypointSchema
from .masks import coco_segmentation, mask_feature
from .pipeline.pixels import decode_image

__all__ = [
    "category_ids",
    "class_names",
    "coco_segmentation",
    "decode_image",
    "detection_features",
    "has_keypoints",
    "has_masks",
    "has_object_field",
    "has_unlabelled_classes",
    "keypoint_schema",
    "label_table",
    "labelled_images",
    "lvis_labels",
    "max_objects",
    "sample_weights",
    "unchunked",
    "undecoded",
    "usual_most",
    "value_range",
]

# The `id` of a feature is the one free field that every operation of `datasets` carries along: select, map, casts,
# save_to_disk, Parquet files and Hub cards. `DatasetInfo.description` is lost in Parquet files.
_IDS_PREFIX = "category_ids:"
_KEYPOINTS_PREFIX = "keypoints:"

AnyDataset: TypeAlias = Dataset | DatasetDict | Any
"""A split or splits; a `ShardedDataset`, which is above this module, has features too."""


def detection_features(
    names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    *,
    masks: bool = False,
    keypoints: KeypointSchema | None = None,
    labelled_classes: bool = False,
) -> Features:
    """The schema for these classes.

    Args:
        names: class names in the order of their labels.
        category_ids: the ids that the source gives these classes; 0, 1, 2… when left out.
        masks: whether objects have a ``segmentation``.
        keypoints: what the ``keypoints`` of objects are, if they have any.
        labelled_classes: whether images say which classes are labelled in them.

    Raises:
        ValueError: the lists differ in length, or a name occurs twice.
    """
    ids = range(len(names)) if category_ids is None else category_ids
    if len(ids) != len(names):
        raise ValueError(f"{len(names)} names but {len(ids)} category_ids: give one id for each name")
    if keypoints is not None and len(keypoints.classes) != len(names):
        raise ValueError(f"{len(names)} names but keypoints of {len(keypoints.classes)} classes: give one for each")
    category = class_label(names, ids)
    optional: dict[str, List] = {"segmentation": mask_feature()} if masks else {}
    if keypoints is not None:
        optional["keypoints"] = keypoint_feature(keypoints)
    return Features(
        {
            "image": Image(decode=False),
            "image_id": Value("int64"),
            "width": Value("int32"),
            "height": Value("int32"),
            "file_name": Value("string"),
            **({"labelled_classes": List(Value("int32"))} if labelled_classes else {}),
            "objects": {
                "id": List(Value("int64")),
                "bbox": List(List(Value("float64"), length=4)),
                "category": List(category),
                "area": List(Value("float64")),
                "iscrowd": List(Value("bool")),
                **optional,
            },
        }
    )


def class_label(names: Sequence[str], ids: Sequence[int]) -> ClassLabel:
    """The feature of labels, which carries the ids that the source gives the classes."""
    return ClassLabel(names=list(names), id=_IDS_PREFIX + ",".join(str(int(i)) for i in ids))


def keypoint_feature(keypoints: KeypointSchema) -> List:
    """The feature of ``objects.keypoints``, which carries what they are."""
    numbers = Value("float64", id=_KEYPOINTS_PREFIX + json.dumps(keypoints.to_dict()))
    return List(List(numbers, length=3 * keypoints.num_keypoints))


def class_names(dataset: AnyDataset) -> list[str]:
    """Class names in the order of the labels."""
    return list(_category_feature(dataset).names)


def category_ids(dataset: AnyDataset) -> list[int]:
    """For each label the id that the source gives this class: 0, 1, 2… where the source has no ids of its own."""
    return ids_of_class_label(_category_feature(dataset))


def ids_of_class_label(category: ClassLabel) -> list[int]:
    """The original ids that a `ClassLabel` of the schema carries."""
    if category.id is None or not category.id.startswith(_IDS_PREFIX):
        return list(range(len(category.names)))
    digits = category.id.removeprefix(_IDS_PREFIX)
    return [int(i) for i in digits.split(",")] if digits else []


def has_object_field(dataset: AnyDataset, name: str) -> bool:
    """Whether the objects have a field besides their boxes, as `Task.object_field` names it."""
    return name in _objects_feature(dataset)


def has_masks(dataset: AnyDataset) -> bool:
    """Whether the objects have a ``segmentation``."""
    return "segmentation" in _objects_feature(dataset)


def has_keypoints(dataset: AnyDataset) -> bool:
    """Whether the objects have ``keypoints``."""
    return "keypoints" in _objects_feature(dataset)


def keypoint_schema(dataset: AnyDataset) -> KeypointSchema:
    """What the keypoints of a data set are, by label.

    Raises:
        DetectionDataError: the data set has no keypoints of this schema.
    """
    feature = _objects_feature(dataset).get("keypoints")
    found = schema_of_keypoints(feature)
    if found is None:
        raise DetectionDataError(
            f"the data set (objects with {sorted(_objects_feature(dataset))}) has no keypoints that are described; "
            "load it with load_detection_dataset(…, task='keypoints')"
        )
    return found


def schema_of_keypoints(feature: Any) -> KeypointSchema | None:
    """The schema that the feature of ``objects.keypoints`` carries, if any."""
    while isinstance(feature, List):
        feature = feature.feature
    text = getattr(feature, "id", None) or ""
    if not text.startswith(_KEYPOINTS_PREFIX):
        return None
    return KeypointSchema.from_dict(json.loads(text.removeprefix(_KEYPOINTS_PREFIX)))


def value_range(dataset: AnyDataset) -> tuple[float, float] | None:
    """The range of the numbers in pictures of more than 8 bits, which becomes 0 to 255; None where there are none."""
    split = next(iter(dataset.values())) if isinstance(dataset, DatasetDict) else dataset
    if "value_range" not in split.column_names or not len(split):
        return None
    low, high = split.select_columns(["value_range"])[0]["value_range"]
    return float(low), float(high)


def has_unlabelled_classes(dataset: AnyDataset) -> bool:
    """Whether images say which classes are labelled in them, so that others are no negatives there."""
    split = next(iter(dataset.values())) if isinstance(dataset, DatasetDict) else dataset
    return "labelled_classes" in split.column_names


def labelled_images(dataset: Dataset) -> np.ndarray | None:
    """(K,) in how many images each class is labelled completely; None where all classes are in all images."""
    if not has_unlabelled_classes(dataset):
        return None
    names = class_names(dataset)
    column = dataset.select_columns(["labelled_classes"]).with_format("arrow")[:]["labelled_classes"]
    counts = np.full(len(names), column.null_count)
    for chunk in column.chunks:
        counts += np.bincount(chunk.flatten().to_numpy(zero_copy_only=False).astype(np.int64), minlength=len(names))
    return counts


def lvis_labels(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """The labels that a row says are labelled or not, by LVIS' fields of images; nothing where all classes are."""
    if row.get("labelled_classes") is None:
        return {}
    labelled, present = set(row["labelled_classes"]), set(row["objects"]["category"])
    return {
        "neg_category_ids": sorted(labelled - present),
        "not_exhaustive_category_ids": sorted(present - labelled),
    }


def sample_weights(dataset: Any) -> np.ndarray | None:
    """(n,) float64, how often each image is drawn in training, 1 on average; None where all are drawn once."""
    if not isinstance(dataset, Dataset) or "sample_weight" not in dataset.column_names:
        return None
    return dataset.select_columns(["sample_weight"]).with_format("numpy")[:]["sample_weight"]


def max_objects(dataset: Any) -> int | None:
    """The most objects of an image, crowds left out; None of shards whose objects nobody has counted."""
    if not isinstance(dataset, Dataset):
        return None if dataset.counts is None else dataset.counts.max_objects
    return max(_objects_per_image(dataset), default=0)


def usual_most(dataset: Any, share: float) -> int | None:
    """The objects that a share of the drawn images do not exceed; crowds are left out, images without objects count.

    An image counts as often as its sample weight says. None of shards whose objects nobody has counted.
    """
    if isinstance(dataset, Dataset):
        numbers, weights = np.asarray(_objects_per_image(dataset), np.int64), sample_weights(dataset)
        weights = np.ones(len(numbers)) if weights is None else weights
    elif dataset.counts is None:
        return None
    else:
        per_image = dataset.counts.objects_per_image
        numbers, weights = np.asarray([*per_image], np.int64), np.asarray([*per_image.values()], np.float64)
    if not weights.sum():
        return 0
    order = np.argsort(numbers)
    reached = np.cumsum(weights[order]) >= share * weights.sum() * (1 - 1e-12)  # sums of floats are not exact
    return int(numbers[order][np.argmax(reached)])


def _objects_per_image(dataset: Dataset) -> list[int]:
    column: Any = dataset.select_columns(["objects"]).with_format("arrow")[:]["objects"]
    return [flags.count(False) for chunk in column.chunks for flags in chunk.field("iscrowd").to_pylist()]


def label_table(dataset: AnyDataset) -> str:
    """A printable table: label, original category id, name."""
    rows = zip(category_ids(dataset), class_names(dataset), strict=True)
    lines = [f"{label:>5}  {original:>11}  {printable(name)}" for label, (original, name) in enumerate(rows)]
    return "\n".join([f"{'label':>5}  {'category id':>11}  name", *lines])


def undecoded(dataset: Any) -> Any:
    """The same data set with its images as ``{"path", "bytes"}``, which is what `decode_image` wants."""
    feature = dataset.features["image"]
    if isinstance(feature, Image) and not feature.decode:
        return dataset
    return dataset.cast_column("image", Image(decode=False))


def unchunked(column: Any) -> Any:
    """A column of an Arrow table as one array; `combine_chunks` may leave nested ones in several."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _objects_feature(dataset: AnyDataset) -> dict:
    if isinstance(dataset, DatasetDict):
        dataset = next(iter(dataset.values()))
    objects = dataset.features.get("objects") if dataset.features else None
    return objects if isinstance(objects, dict) else {}


def _category_feature(dataset: AnyDataset) -> ClassLabel:
    label = getattr(_objects_feature(dataset).get("category"), "feature", None)
    if not isinstance(label, ClassLabel):
        raise DetectionDataError(
            f"the data set (columns {dataset.column_names}) has no class labels in objects/category; "
            "pass it through load_detection_dataset first"
        )
    return label
