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
objects   parallel lists ``id`` int64, ``bbox`` float64 (x, y, w, h) in pixels, ``category``
          `ClassLabel` (contiguous, 0-based), ``area`` float64, ``iscrowd`` bool
========= ======================================================================================

Images stay undecoded so that reading annotations costs no pixels, a broken file can be named, and the EXIF rule of
`decode_image` applies. ``dataset.cast_column("image", datasets.Image())`` turns them into PIL images for a look.
Boxes and areas keep the precision of the source, because COCO metrics compare them with thresholds.
"""

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from .errors import DetectionDataError
from .images import decode_image

__all__ = ["category_ids", "class_names", "decode_image", "detection_features", "label_table", "undecoded"]

# `ClassLabel.id` is the one free field that every operation of `datasets` carries along: select, map, casts,
# save_to_disk, Parquet files and Hub cards. `DatasetInfo.description` is lost in Parquet files.
_IDS_PREFIX = "category_ids:"

AnyDataset = Dataset | DatasetDict


def detection_features(names: Sequence[str], category_ids: Sequence[int] | None = None) -> Features:
    """The schema for these classes.

    Args:
        names: class names in the order of their labels.
        category_ids: the ids that the source gives these classes; 0, 1, 2… when left out.

    Raises:
        ValueError: the two lists differ in length, or a name occurs twice.
    """
    ids = range(len(names)) if category_ids is None else category_ids
    if len(ids) != len(names):
        raise ValueError(f"{len(names)} names but {len(ids)} category_ids: give one id for each name")
    category = ClassLabel(names=list(names), id=_IDS_PREFIX + ",".join(str(int(i)) for i in ids))
    return Features(
        {
            "image": Image(decode=False),
            "image_id": Value("int64"),
            "width": Value("int32"),
            "height": Value("int32"),
            "file_name": Value("string"),
            "objects": {
                "id": List(Value("int64")),
                "bbox": List(List(Value("float64"), length=4)),
                "category": List(category),
                "area": List(Value("float64")),
                "iscrowd": List(Value("bool")),
            },
        }
    )


def class_names(dataset: AnyDataset) -> list[str]:
    """Class names in the order of the labels."""
    return list(_category_feature(dataset).names)


def category_ids(dataset: AnyDataset) -> list[int]:
    """For each label the id that the source gives this class: 0, 1, 2… where the source has no ids of its own."""
    category = _category_feature(dataset)
    return ids_of_class_label(category)


def ids_of_class_label(category: ClassLabel) -> list[int]:
    """The original ids that a `ClassLabel` of the schema carries."""
    if category.id is None or not category.id.startswith(_IDS_PREFIX):
        return list(range(len(category.names)))
    digits = category.id.removeprefix(_IDS_PREFIX)
    return [int(i) for i in digits.split(",")] if digits else []


def label_table(dataset: AnyDataset) -> str:
    """A printable table: label, original category id, name."""
    rows = zip(category_ids(dataset), class_names(dataset), strict=True)
    lines = [f"{label:>5}  {original:>11}  {name}" for label, (original, name) in enumerate(rows)]
    return "\n".join([f"{'label':>5}  {'category id':>11}  name", *lines])


def undecoded(dataset: Dataset) -> Dataset:
    """The same data set with its images as ``{"path", "bytes"}``, which is what `decode_image` wants."""
    feature = dataset.features["image"]
    if isinstance(feature, Image) and not feature.decode:
        return dataset
    return dataset.cast_column("image", Image(decode=False))


def _category_feature(dataset: AnyDataset) -> ClassLabel:
    if isinstance(dataset, DatasetDict):
        dataset = next(iter(dataset.values()))
    objects = dataset.features.get("objects") if dataset.features else None
    category = objects.get("category") if isinstance(objects, dict) else None
    label = getattr(category, "feature", None)
    if not isinstance(label, ClassLabel):
        raise DetectionDataError(
            f"the data set (columns {dataset.column_names}) has no class labels in objects/category; "
            "pass it through load_detection_dataset first"
        )
    return label
