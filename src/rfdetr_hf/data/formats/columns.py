"""Data sets that `datasets.load_dataset` reads: the columns that people publish, brought into the one schema.

Understood are ``objects`` as lists side by side, as a list of objects, or as JSON text, with the names in `_ALIASES`;
or columns of these names, each with one list per image (or its JSON text). Images stay in the files that `datasets`
keeps them in.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import ClassLabel, Dataset, Image

from ...tasks import BOXES_ALONE, TASKS
from ...values import as_flag, as_integer, is_number, shown
from ..annotations import Annotations, Boxes, Labels, ReadOptions, build_dataset, map_ids, name_box
from ..checks import drop_repeated_images, find_broken, settle
from ..errors import DetectionDataError, Problems
from ..keypoints import ClassKeypoints
from ..pipeline.pixels import image_size
from ..schema import ids_of_class_label, schema_of_keypoints, undecoded

logger = logging.getLogger(__name__)
# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

_ALIASES = {
    "id": ("id", "bbox_id", "annotation_id"),
    "bbox": ("bbox", "bboxes", "boxes"),
    "category": ("category", "category_id", "categories", "label", "labels"),
    "area": ("area", "areas"),
    "iscrowd": ("iscrowd", "is_crowd"),
    "segmentation": ("segmentation", "segmentations", "masks"),
    "keypoints": ("keypoints",),
}
_HEADER_BATCH = 128


@dataclass(frozen=True)
class Categories:
    """The category column of one split.

    Attributes:
        values: (n,) int64; positions in `names` where there are names.
        names: names of the values, or None for plain integers.
        ids: original ids of the names.
    """

    values: np.ndarray
    names: list[str] | None
    ids: list[int] | None


def normalise_splits(splits: Mapping[str, Dataset], source: str, options: ReadOptions) -> dict[str, Dataset]:
    """Bring all splits of a data set into the schema; the label table is that of the first one.

    Args:
        splits: split -> data set with an image column and ``objects``, or with columns ``bbox`` and ``category``.
        source: name of the data set, for messages.
        options: without `class_names`, the label table is the `ClassLabel` of the first split, or the sorted names or
            integers that occur there.

    Raises:
        DetectionDataError: columns that are missing or of another form, and faults in them that no rule repairs.
    """
    read = {}
    for name, dataset in splits.items():
        try:
            read[name] = _read_split(dataset, f"{source}, split {name}", options)
        except (pa.ArrowException, OverflowError, RecursionError) as error:
            raise DetectionDataError(
                f"{source}, split {name}: the columns of images and objects cannot be read ({type(error).__name__}: "
                f"{str(error)[:200]}); write numbers as numbers and lists as lists"
            ) from error
    first = next(iter(read.values()))
    labels = _label_space(first.categories, options.class_names, source)
    if options.task == "keypoints":
        found = _class_keypoints(first, labels, source)
        labels = options.with_keypoints(labels, found, f"{source}: field objects.keypoints")
    return {name: _finish(split, labels, name, options) for name, split in read.items()}


@dataclass(frozen=True)
class _Split:
    dataset: Dataset
    image_column: str
    annotations: Annotations
    categories: Categories
    masks: list[Any] | None


def _read_split(dataset: Dataset, source: str, options: ReadOptions) -> _Split:
    problems = Problems(source)
    counts, fields, called = _flat_objects(dataset, source)
    part = TASKS[options.task].object_field
    if part is not None and part not in fields:
        raise DetectionDataError(
            f"{source}: task={options.task!r} needs the field objects.{part}, or a column of lists; names for it: "
            f"{list(_ALIASES[part])}; or {BOXES_ALONE}"
        )
    image_column = _image_column(dataset, source)
    names = _file_names(dataset, image_column)
    image_id = _image_ids(dataset, source)
    row = np.repeat(np.arange(len(dataset)), counts)
    bbox = _bbox_array(fields["bbox"], row, image_id[row], called["bbox"], problems)
    categories = _categories(dataset, fields["category"], row, called["category"], source)
    boxes = Boxes(
        row=row,
        id=_numbers(fields.get("id"), row, np.int64, called.get("id"), source, default=None),
        bbox=bbox,
        category=categories.values,
        area=_numbers(fields.get("area"), row, np.float64, called.get("area"), source, default=np.nan),
        iscrowd=_flags(fields.get("iscrowd"), row, called.get("iscrowd"), source),
    )
    annotations = Annotations(source, image_id, _sizes(dataset, image_column, names, source), names, boxes)
    if "labelled_classes" in dataset.column_names:
        annotations = replace(annotations, labelled=_labelled_classes(dataset, categories, source))
    if part == "keypoints":
        keypoints = _keypoint_array(fields[part], annotations, problems)
        annotations = replace(annotations, boxes=replace(boxes, keypoints=keypoints))
    _refuse_missing_categories(categories, annotations, problems)
    find_broken(annotations, problems)
    problems.raise_if_any()
    masks = fields[part].to_pylist() if part == "segmentation" else None
    return _Split(dataset, image_column, annotations, categories, masks)


def _keypoint_array(values: pa.Array, annotations: Annotations, problems: Problems) -> np.ndarray:
    """(n, 3K) float64 from x, y, v in a row or in triples; objects without keypoints have zeros."""
    rows = []
    for index, value in enumerate(values.to_pylist()):
        try:
            rows.append(np.zeros(0) if value is None else np.ravel(np.array(value, np.float64)))
        except (TypeError, ValueError):
            rows.append(np.zeros(0))
            problems.add(f"{name_box(annotations, index)}: field keypoints is {shown(value)}, not x, y, v in a row")
    count = max((len(row) for row in rows), default=0) // 3
    keypoints = np.zeros((len(rows), count, 3))
    for index, row in enumerate(rows):
        if not len(row):
            continue
        if not np.isfinite(row).all():
            problems.add(f"{name_box(annotations, index)}: field keypoints is {shown(row.tolist())}, not finite")
            continue
        triples = row.reshape(-1, 3) if len(row) == 3 * count else None
        if triples is None or not np.isin(triples[:, 2], (0, 1, 2)).all():
            problems.add(
                f"{name_box(annotations, index)}: field keypoints has {len(row)} numbers, not x, y, v (0, 1 or 2) of "
                f"{count} keypoints",
                "write keypoints as x, y, v in a row, equally many for all objects, or none",
            )
            continue
        keypoints[index] = np.where(triples[:, 2:] > 0, triples, 0)
    return keypoints.reshape(len(rows), 3 * count)


def _class_keypoints(split: _Split, labels: Labels, source: str) -> list[ClassKeypoints]:
    """What the column describes, by our labels; without a description all classes have all keypoints."""
    feature: Any = objects_feature(split.dataset)
    keypoints = split.annotations.boxes.keypoints
    described = schema_of_keypoints(feature["keypoints"]) if isinstance(feature, Mapping) else None
    if described is None:
        count = 0 if keypoints is None else keypoints.shape[1] // 3
        logger.warning("%s: objects.keypoints has no names; pass keypoint_schema=… to name them", source)
        return [ClassKeypoints.of([f"keypoint_{k}" for k in range(count)])] * len(labels.names)
    category = _class_label(feature)
    names = [] if category is None else list(category.names)
    missing = [name for name in labels.names if name not in names]
    if missing:
        raise DetectionDataError(f"{source}: objects.keypoints describes {names}, and not {missing}")
    return [described.classes[names.index(name)] for name in labels.names]


def _finish(split: _Split, labels: Labels, name: str, options: ReadOptions) -> Dataset:
    annotations, categories = split.annotations, split.categories
    problems = Problems(annotations.source)
    label = _to_labels(categories, labels)
    for i in np.flatnonzero(label < 0).tolist():
        value = int(categories.values[i])
        named = categories.names[value] if categories.names and 0 <= value < len(categories.names) else value
        problems.add(
            f"{name_box(annotations, i)}: field category is {named!r}, not in the label table {labels.names}",
            "the label table is that of the training split: have the class there, correct it, or pass class_names",
        )
    if annotations.labelled is not None:
        known = max(map(max, filter(None, annotations.labelled)), default=-1) + 1
        own = _to_labels(Categories(np.arange(known), categories.names, categories.ids), labels).tolist()
        translated = [None if v is None else sorted(own[i] for i in v if own[i] >= 0) for v in annotations.labelled]
        annotations = replace(annotations, labelled=translated)
    annotations = replace(annotations, boxes=replace(annotations.boxes, category=label))
    images, masks = _images_alone(split.dataset, split.image_column), split.masks
    column = _column(images, "image")
    inline = pc.is_valid(pc.struct_field(column, "bytes")).to_pylist()
    paths = pc.struct_field(column, "path").to_pylist()
    files = ["" if here or not path else os.path.realpath(path) for path, here in zip(paths, inline, strict=True)]
    keep = drop_repeated_images(annotations, files, problems, masks)
    if not keep.all():
        annotations, inside = annotations.keep_images(keep)
        masks = masks and [masks[i] for i in inside.tolist()]
        images = images.select(np.flatnonzero(keep))
    settled = settle(annotations, labels, options, problems, masks, written=options.bbox_format or "xywh")
    built = build_dataset(settled, labels, images, name)
    if name != "train" or "sample_weight" not in split.dataset.column_names:
        return built
    weights = _sample_weights(split.dataset, annotations.source)[keep]
    return built.add_column("sample_weight", weights / weights.mean())


def _sample_weights(dataset: Dataset, source: str) -> np.ndarray:
    """The column of the schema: how often images are drawn."""
    values = _column(dataset, "sample_weight").to_pylist()
    for row, value in enumerate(values):
        if not is_number(value) or not 0 < value < np.inf:
            raise DetectionDataError(
                f"{source}: row {row}: column sample_weight is {shown(value)}, no positive number; it says how often "
                "an image is drawn: correct it, or remove or rename the column"
            )
    logger.info("%s: images are drawn as the column sample_weight says", source)
    return np.array(values, np.float64)


def _labelled_classes(dataset: Dataset, categories: Categories, source: str) -> list[list[int] | None]:
    """The column of the schema: classes as the category column of the source has them."""
    values = _column(dataset, "labelled_classes").to_pylist()
    limit = 2**31 if categories.names is None else len(categories.names)
    for row, own in enumerate(values):
        numbers = [as_integer(each) for each in own] if isinstance(own, list) else [None]
        if own is not None and not all(number is not None and 0 <= number < limit for number in numbers):
            raise DetectionDataError(
                f"{source}: row {row}: column labelled_classes is {shown(own)}, no list of labels of the class table; "
                "give the labels of the classes that are labelled completely in the image, or null for all"
            )
    return values


def _image_column(dataset: Dataset, source: str) -> str:
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if "image" in columns:
        return "image"
    if len(columns) != 1:
        raise DetectionDataError(
            f"{source}: no column 'image' of type datasets.Image among {dataset.column_names}; "
            "rename the image column or cast it with dataset.cast_column(…, datasets.Image())"
        )
    return columns[0]


def _images_alone(dataset: Dataset, column: str) -> Dataset:
    """The image column by itself, undecoded and named "image"."""
    alone = dataset.select_columns([column]).with_format(None)
    return undecoded(alone if column == "image" else alone.rename_column(column, "image"))


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def objects_feature(dataset: Dataset) -> Any:
    """The feature of column ``objects``; or the features of columns that have one list per image in its place, by name.

    Empty where there is neither.
    """
    if "objects" in dataset.column_names:
        return dataset.features["objects"]
    known = {alias for aliases in _ALIASES.values() for alias in aliases}
    types = {name: dataset.features.arrow_schema.field(name).type for name in dataset.column_names if name in known}
    lists = [name for name, kind in types.items() if _is_list(kind)]
    if not any(name in lists for name in _ALIASES["bbox"]):
        # Tables of text alone, such as CSV files, have lists as JSON.
        first = dataset.select_columns(list(types)).with_format(None)[0] if types and len(dataset) else {}
        lists = [name for name, text in first.items() if isinstance(text, str) and text.lstrip().startswith("[")]
    found = {name: dataset.features[name] for name in lists}
    return found if any(name in found for name in _ALIASES["bbox"]) else {}


def _flat_objects(dataset: Dataset, source: str) -> tuple[np.ndarray, dict[str, pa.Array], dict[str, str]]:
    """Objects per image; the fields of all objects in a row, by our names; and how messages call the fields."""
    feature = objects_feature(dataset)
    if not feature:
        raise DetectionDataError(
            f"{source}: no column 'objects' among {dataset.column_names}; it holds bbox and category of each object "
            "(columns bbox and category with one list per image do too)"
        )
    if not len(dataset):
        raise DetectionDataError(f"{source}: the split has no images")
    if "objects" not in dataset.column_names:
        columns = [pa.concat_arrays(_column(dataset, name).chunks) for name in feature]
        lists = [
            _from_json(each, name, source) if _is_text(each.type) else each
            for name, each in zip(feature, columns, strict=True)
        ]
        return _from_parallel_lists(pa.StructArray.from_arrays(lists, names=list(feature)), "column ", source)
    objects = pa.concat_arrays(_column(dataset, "objects").chunks)
    if _is_text(objects.type):
        objects = _from_json(objects, "objects", source)
    if pa.types.is_struct(objects.type):
        return _from_parallel_lists(objects, "field objects.", source)
    if _is_list(objects.type) and pa.types.is_struct(objects.type.value_type):
        _warn_of_nulls(objects, "column objects", source)
        counts = pc.fill_null(pc.list_value_length(objects), 0).to_numpy(zero_copy_only=False)
        records = pc.list_flatten(objects)
        names = _our_names(records, "field objects.", source)
        fields = {ours: pc.struct_field(records, theirs) for ours, theirs in names.items()}
        return counts, fields, {ours: f"field objects.{theirs}" for ours, theirs in names.items()}
    raise DetectionDataError(
        f"{source}: column 'objects' is {objects.type}, neither lists side by side nor a list of objects"
    )


def _from_parallel_lists(
    objects: pa.StructArray, prefix: str, source: str
) -> tuple[np.ndarray, dict[str, pa.Array], dict[str, str]]:
    names = _our_names(objects, prefix, source)
    called = {ours: prefix + theirs for ours, theirs in names.items()}
    columns = {ours: pc.struct_field(objects, theirs) for ours, theirs in names.items()}
    fields, lengths = {}, {}
    _warn_of_nulls(columns["bbox"], called["bbox"], source)
    for name, column in columns.items():
        if not _is_list(column.type):
            raise DetectionDataError(f"{source}: {called[name]} is {column.type}, not one list per image")
        lengths[name] = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        fields[name] = pc.list_flatten(column)
    if not (_is_list(fields["bbox"].type) or pa.types.is_null(fields["bbox"].type)):
        raise DetectionDataError(
            f"{source}: {called['bbox']} holds {fields['bbox'].type}, not lists of four numbers; give each image one "
            "row with the list of its boxes, [[x, y, width, height], …], also where it has one box"
        )
    for name, length in lengths.items():
        differs = np.flatnonzero(length != lengths["bbox"])
        if len(differs):
            row = differs[0]
            raise DetectionDataError(
                f"{source}: row {row} has {lengths['bbox'][row]} boxes but {length[row]} values in "
                f"{called[name].split()[-1]}; all lists of an image must be equally long"
            )
    return lengths["bbox"], fields, called


def _warn_of_nulls(lists: pa.Array, called: str, source: str) -> None:
    if lists.null_count:
        logger.warning(
            "%s: in %d of %d rows %s is null, which does not say that there is no object, and the image is taken as "
            "background; write empty lists for background, and leave out rows that nobody has labelled",
            source, lists.null_count, len(lists), called,
        )  # fmt: skip


def _from_json(texts: pa.Array, column: str, source: str) -> pa.Array:
    values: list[Any] = []
    for row, text in enumerate(texts.to_pylist()):
        try:
            values.append(json.loads(text) if text else None)
        except (ValueError, RecursionError) as error:
            raise DetectionDataError(f"{source}: row {row}: column {column!r} is no valid JSON ({error})") from error
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        row = _first_fault(len(values), lambda count: pa.array(values[:count]))
        raise DetectionDataError(
            f"{source}: row {row}: column {column!r}: {str(error)[:200]}; write the values of a field in one way in "
            "all rows, and numbers as numbers"
        ) from error


def _first_fault(count: int, make: Callable[[int], Any]) -> int:
    """The first of `count` things that `make` of a number of them, from the first on, fails with."""
    sound = 0
    while count - sound > 1:
        middle = (sound + count) // 2
        try:
            make(middle)
            sound = middle
        except (pa.ArrowException, OverflowError):
            count = middle
    return count - 1


def _our_names(fields: pa.StructArray, prefix: str, source: str) -> dict[str, str]:
    names, found = {}, {field.name: field.type for field in fields.type}
    for ours, aliases in _ALIASES.items():
        theirs, *others = [alias for alias in aliases if alias in found] or [None]
        # A name beside a number is no other value.
        for other in [o for o in others if ours in ("bbox", "category") and found[o] == found[theirs]]:
            if not pc.struct_field(fields, theirs).equals(pc.struct_field(fields, other)):
                text = (
                    "%s: %s%s is read, and %s, which has other values, is not; remove or rename the one that is wrong"
                )
                logger.warning(text, source, prefix, theirs, other)
        if theirs is not None:
            names[ours] = theirs
        elif ours in ("bbox", "category"):
            lists = " with one list per image" if prefix == "column " else ""
            raise DetectionDataError(
                f"{source}: no {prefix}{ours}{lists} among {list(found)}; names for it: {list(aliases)}"
            )
    return names


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _bbox_array(boxes: pa.Array, row: np.ndarray, image_id: np.ndarray, called: str, problems: Problems) -> np.ndarray:
    """(n, 4) float64; raises at once where boxes have another length, since nothing else can be checked then."""
    if not len(boxes):
        return np.zeros((0, 4))
    if not _is_list(boxes.type):
        raise DetectionDataError(
            f"{problems.source}: {called} holds {boxes.type}, not lists of four numbers; write each box as [x, y, "
            "width, height]"
        )
    length = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy(zero_copy_only=False)
    problems.add_all(
        (
            f"box {i} of the split (image id {image_id[i]}): field bbox has {length[i]} numbers, not four"
            for i in np.flatnonzero(length != 4)
        ),
        "write bbox as four numbers, or delete the box",
    )
    problems.raise_if_any()
    flat = pc.list_flatten(boxes)
    # Boxes that are not finite are named together, with their ids.
    numbers = _numbers(flat, row.repeat(4), np.float64, called, problems.source, np.nan, finite=False)
    return numbers.reshape(-1, 4).copy()


def _numbers(
    values: pa.Array | None,
    row: np.ndarray,
    kind: Any,
    called: str | None,
    source: str,
    default: Any,
    finite: bool = True,
) -> np.ndarray:
    """A field as numbers, one for each of `row`; `default` (or 1, 2, 3… when it is None) for all that have none."""
    total = len(row)
    fallback = np.arange(1, total + 1) if default is None else np.full(total, default)
    if values is None or pa.types.is_null(values.type):
        return fallback.astype(kind)
    if pa.types.is_boolean(values.type):
        raise DetectionDataError(f"{source}: {called} holds true and false, not numbers; write them as numbers")
    try:
        numbers = pc.cast(values, pa.from_numpy_dtype(kind))
    except pa.ArrowInvalid as error:
        at = _first_fault(total, lambda count: pc.cast(values.slice(0, count), pa.from_numpy_dtype(kind)))
        noun = "an integer" if kind is np.int64 else "a number"
        raise DetectionDataError(
            f"{source}: row {row[at]}: {called} holds {values.type}, not numbers: {shown(values[at].as_py())} is not "
            f"{noun}; correct it, or write numbers as numbers"
        ) from error
    odd = pc.fill_null(pc.invert(pc.is_finite(numbers)), False).to_numpy(zero_copy_only=False)
    if finite and odd.any():
        raise DetectionDataError(
            f"{source}: row {row[odd][0]}: {called} holds {numbers.filter(odd)[0].as_py()}, not a finite number; "
            "correct it, or write null where there is no value"
        )
    filled = pc.if_else(pc.is_null(numbers), pa.array(fallback.astype(kind)), numbers)
    return filled.to_numpy(zero_copy_only=False)


def _flags(values: pa.Array | None, row: np.ndarray, called: str | None, source: str) -> np.ndarray:
    """A field of yes and no, one for each of `row`, however it is written."""
    if values is None or pa.types.is_null(values.type):
        return np.zeros(len(row), bool)
    encoded = pc.dictionary_encode(values)
    flags = [as_flag(value) for value in encoded.dictionary.to_pylist()]
    codes = pc.fill_null(encoded.indices, len(flags)).to_numpy(zero_copy_only=False)
    if None in flags:
        at = np.flatnonzero(codes == flags.index(None))[0]
        value = shown(values[at].as_py())
        raise DetectionDataError(
            f"{source}: row {row[at]}: {called} holds {value}, neither yes nor no; write it as 0 or 1"
        )
    return np.array([*map(bool, flags), False])[codes]


def _categories(dataset: Dataset, values: pa.Array, row: np.ndarray, called: str, source: str) -> Categories:
    label = _class_label(objects_feature(dataset))
    if _is_text(values.type):
        encoded = pc.dictionary_encode(values)
        names = encoded.dictionary.to_pylist()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        # An empty text is no name; those codes are as null's.
        blank = [code for code, name in enumerate(names) if not name.strip()]
        codes[np.isin(codes, blank)] = -1
        return Categories(codes, names, None)
    numbers = _numbers(values, row, np.int64, called, source, default=-1)
    if label is None:
        return Categories(numbers, None, None)
    return Categories(numbers, list(label.names), ids_of_class_label(label))


def _refuse_missing_categories(categories: Categories, annotations: Annotations, problems: Problems) -> None:
    """Objects without a category are faults: a class for them would move the labels of all others."""
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field category is {int(categories.values[i])} (or null), no category"
            for i in np.flatnonzero(categories.values < 0).tolist()
        ),
        "give each object a category, or delete it",
    )


def _class_label(feature: Any) -> ClassLabel | None:
    """The class table of the category field, however deep lists nest it."""
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, Mapping):
        name = next((alias for alias in _ALIASES["category"] if alias in feature), None)
        feature = feature[name] if name else None
        feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, ClassLabel) else None


def _label_space(categories: Categories, class_names: Sequence[str] | None, source: str) -> Labels:
    if class_names is not None:
        names = list(class_names)
        known = categories.names
        if known is None or categories.ids is None:
            return Labels(names, list(range(len(names))))
        # Classes that the source lacks have no objects here; their ids are new ones.
        position, unknown = dict(zip(known, categories.ids, strict=True)), count(max(categories.ids, default=-1) + 1)
        return Labels(names, [position[name] if name in position else next(unknown) for name in names])
    if categories.names is None:
        ids = np.unique(categories.values).tolist()
        names = [str(i) for i in ids]
    elif categories.ids is None:
        names = sorted(name for name in categories.names if name and name.strip())
        ids = list(range(len(names)))
    else:
        names, ids = categories.names, categories.ids
    if not names:
        raise DetectionDataError(f"{source}: no object has a category; give the label table with class_names=[…]")
    return Labels(names, ids)


def _to_labels(categories: Categories, labels: Labels) -> np.ndarray:
    """Label of each value, or -1. Names are compared where there are names, and integers otherwise."""
    if categories.names is None:
        return map_ids(categories.values, labels.ids)
    position = {name: label for label, name in enumerate(labels.names)}
    # The extra row at the end is where -1, "no category", leads.
    table = np.array([*(position.get(name, -1) for name in categories.names), -1])
    known = (categories.values >= 0) & (categories.values < len(categories.names))
    return table[np.where(known, categories.values, -1)]


def _image_ids(dataset: Dataset, source: str) -> np.ndarray:
    if "image_id" in dataset.column_names:
        values = pa.concat_arrays(_column(dataset, "image_id").chunks)
        if pa.types.is_integer(values.type) and not values.null_count:
            return pc.cast(values, pa.int64()).to_numpy(zero_copy_only=False)
        logger.warning("%s: column image_id is not made of integers; images are numbered by row", source)
    return np.arange(len(dataset))


def _file_names(dataset: Dataset, column: str) -> list[str | None]:
    """The last part of each image's path; the pixels beside the paths are not touched."""
    if "file_name" in dataset.column_names:
        return _column(dataset, "file_name").to_pylist()
    # By way of the table, since a column of a data set cannot be asked for the paths alone.
    paths = pc.struct_field(dataset.data.column(column), "path")
    if dataset._indices is not None:
        paths = paths.take(dataset._indices.column(0))
    return [os.path.basename(path) if path else None for path in paths.to_pylist()]


def _sizes(dataset: Dataset, column: str, names: Sequence[str | None], source: str) -> np.ndarray:
    """(m, 2) width and height; read from the images' headers where the columns are missing."""
    if {"width", "height"} <= set(dataset.column_names):
        sides = [_column(dataset, name).to_pylist() for name in ("width", "height")]
        numbers = [[as_integer(value) for value in side] for side in sides]
        for name, side, read in zip(("width", "height"), sides, numbers, strict=True):
            odd = next((row for row, value in enumerate(side) if value is not None and read[row] is None), None)
            if odd is not None:
                raise DetectionDataError(
                    f"{source}: row {odd}: column {name} is {shown(side[odd])}, not an integer; correct it, or leave "
                    "the column out to have sizes read from the images"
                )
        if not any(None in side for side in numbers):
            return np.array(numbers, dtype=np.int64).T
    images = _images_alone(dataset, column)
    sizes = np.empty((len(dataset), 2), dtype=np.int64)
    row = 0
    for batch in images.iter(_HEADER_BATCH):
        for value in cast(dict[str, Any], batch)["image"]:
            sizes[row] = image_size(value, {"file_name": names[row], "image_id": f"of row {row}"})
            row += 1
    return sizes
