"""Whether the rows of a data set, which anybody may have made, are in the schema; without its pictures."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from ..values import shown
from .errors import DetectionDataError
from .schema import class_names, unchunked

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

logger = logging.getLogger(__name__)

_ROWS = 4096
_SHARE = 8  # of a table, from which on all of it is read
_FORMATS = (None, "numpy", "custom")  # of `datasets`, in which rows can be read
_OF_IMAGES = ("image_id", "width", "height")
_OF_OBJECTS = ("bbox", "category", "area", "iscrowd")
_PARALLEL = (*_OF_OBJECTS, "segmentation", "keypoints")  # of other fields nothing is read
_LOAD = "load the data with load_detection_dataset, which says more, or correct the column"


class _Field(NamedTuple):
    """What a column, or a list of the objects, must hold.

    Attributes:
        meaning: for messages.
        is_type: whether an Arrow type can hold it.
        holds: of numbers, which are right.
        may_be_null: whether null is right.
    """

    meaning: str
    is_type: Callable[[Any], bool]
    holds: Callable[[np.ndarray], np.ndarray]
    may_be_null: bool = False


def _is_number(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _fields(classes: int) -> dict[str, _Field]:
    whole = pa.types.is_integer

    def within(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda values: (values >= low) & (values <= high)

    def whole_within(low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda values: within(low, high)(values) & (values == np.floor(values))

    return {
        "image_id": _Field("an integer of 64 bits", whole, within(-(2**63), 2**63 - 1)),
        "width": _Field("a positive integer", _is_number, whole_within(1, 2**31)),
        "height": _Field("a positive integer", _is_number, whole_within(1, 2**31)),
        "bbox": _Field("four finite numbers x, y, width, height", _is_number, np.isfinite),
        "category": _Field(f"a label from 0 to {classes - 1}", whole, within(0, classes - 1)),
        # Null stands for the area of the box.
        "area": _Field("a finite number or null", _is_number, np.isfinite, may_be_null=True),
        "iscrowd": _Field(
            "true or false", lambda t: _is_number(t) or pa.types.is_boolean(t), lambda v: (v == 0) | (v == 1)
        ),
    }


def check_rows(name: str, dataset: Dataset) -> None:
    """Make sure that columns and values that training and scoring read are in the schema.

    Args:
        name: of the data set, for messages.
        dataset: one split with class labels.

    Raises:
        DetectionDataError: a column is missing, a value is of another kind or out of range, lists of an image differ
            in length, or two images have one id.
    """
    missing = [column for column in ("image", *_OF_IMAGES, "objects") if column not in dataset.column_names]
    if missing:
        raise DetectionDataError(f"{name}: column {missing[0]} is missing; {_LOAD}")
    given = dataset.format
    hidden = set() if given["output_all_columns"] else {"image", *_OF_IMAGES, "objects"} - set(given["columns"])
    if given["type"] not in _FORMATS or (hidden and given["type"] != "custom"):
        raise DetectionDataError(
            f"{name} has the format {given['type'] or 'python'} of the columns {', '.join(given['columns'])}, in which "
            "rows cannot be read; give it without one: dataset.with_format(None)"
        )
    if given["type"] == "custom":
        logger.warning(
            "%s has a transform of its own (with_transform): training reads what it gives; scores, audit, checksums "
            "and the comparison on resume know the rows below it; dataset.map makes rows for all of them", name,
        )  # fmt: skip
    ids = None
    if dataset._indices is not None and len(dataset) * _SHARE > len(dataset.data):
        # Rows in an order of their own are read much more slowly than the table; what is wrong there may be left out.
        with contextlib.suppress(DetectionDataError):
            _check_table(name, Dataset(dataset.data, info=dataset.info, fingerprint="rows"))
            column = dataset.select_columns(["image_id"]).with_format("arrow")[:]
            ids = cast(pa.Table, column)["image_id"].to_numpy()
    ids = _check_table(name, dataset) if ids is None else ids
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DetectionDataError(f"{name}: column image_id has {values[counts > 1][0]} more than once; {_LOAD}")


def check_row(row: Mapping[str, Any], index: int, classes: int) -> None:
    """Make sure that the objects of one row, as a transform of the data set gives it, are in the schema.

    Args:
        row: as `dataset[index]` gives it.
        index: of the row.
        classes: number of the labels.

    Raises:
        DetectionDataError: they are not.
    """
    objects = row.get("objects")
    if objects is None:
        return
    name = f"image_id {row.get('image_id')}, as the transform of the data set (with_transform) gives it"
    if not isinstance(objects, Mapping):
        raise DetectionDataError(f"{name}: objects is {shown(objects)}, not a table of parallel lists")
    lists: dict[str, Any] = {}
    for key in [key for key in _PARALLEL if objects.get(key) is not None]:
        plain = [each.tolist() if hasattr(each, "tolist") else each for each in objects[key]]
        lists[key] = plain if key in _OF_OBJECTS else [0] * len(plain)  # of masks and keypoints their number
    try:
        table = pa.array([lists])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DetectionDataError(f"{name}: objects hold values of several types ({error})") from error
    _check_objects(name, table, _fields(classes), index)
    for box in lists["bbox"]:
        if min(box[2:]) < 0:
            raise DetectionDataError(f"{name}: field objects.bbox, row {index}: {box} has a negative width or height")


def _check_table(name: str, dataset: Dataset) -> np.ndarray:
    """`check_rows` without the ids that occur twice; returns the ids."""
    classes, ids, start = len(class_names(dataset)), [], 0
    for batch in dataset.select_columns([*_OF_IMAGES, "objects"]).with_format("arrow").iter(_ROWS):
        table = cast(pa.Table, batch)
        check_table(name, table, classes, start)
        ids.append(table["image_id"].to_numpy())
        start += len(table)
    return np.concatenate(ids) if ids else np.empty(0, np.int64)


def check_table(name: str, table: pa.Table, classes: int, start: int) -> None:
    """Make sure that some rows are in the schema.

    Args:
        name: of their data set or file, for messages.
        table: at least image_id, width, height and objects of the rows.
        classes: number of the labels.
        start: number of the first row.

    Raises:
        DetectionDataError: a value is of another kind or out of range, or lists of an image differ in length.
    """
    fields = _fields(classes)
    for column in _OF_IMAGES:
        _check(
            f"{name}: column {column}", fields[column], unchunked(table[column]), np.arange(start, start + len(table))
        )
    _check_objects(name, unchunked(table["objects"]), fields, start)


def _check_objects(name: str, objects: Any, fields: dict[str, _Field], start: int) -> None:
    if not pa.types.is_struct(objects.type):
        raise DetectionDataError(f"{name}: column objects must be a table of parallel lists for each image; {_LOAD}")
    lengths: dict[str, np.ndarray] = {}
    for field in (each.name for each in objects.type if each.name in _PARALLEL):
        lists, place = pc.struct_field(objects, field), f"{name}: field objects.{field}"
        if not _is_list(lists.type):
            raise DetectionDataError(f"{place} must be a list for each image; {_LOAD}")
        if lists.null_count:
            row = start + int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
            raise DetectionDataError(f"{place}, row {row}: null, not a list; an image without objects has []; {_LOAD}")
        lengths[field] = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        if field not in fields:
            continue
        values = pc.list_flatten(lists)
        rows = start + np.repeat(np.arange(len(lists)), lengths[field])
        if field == "bbox" and len(values):
            values, rows = _numbers_of(place, values, rows)
        _check(place, fields[field], values, rows)
    for field in _OF_OBJECTS:
        if field not in lengths:
            raise DetectionDataError(f"{name}: field objects.{field} is missing; {_LOAD}")
    for field, found in lengths.items():
        if (found != lengths["bbox"]).any():
            row = int(np.flatnonzero(found != lengths["bbox"])[0])
            raise DetectionDataError(
                f"{name}, row {start + row}: field objects.{field} has {found[row]} values for "
                f"{lengths['bbox'][row]} boxes; {_LOAD}"
            )


def _numbers_of(place: str, boxes: Any, rows: np.ndarray) -> tuple[Any, np.ndarray]:
    """The numbers of boxes, and the row of each."""
    if not _is_list(boxes.type):
        raise DetectionDataError(f"{place} must be a list of lists of four numbers; {_LOAD}")
    sides = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy(zero_copy_only=False)
    if (sides != 4).any() or boxes.null_count:
        row = rows[np.flatnonzero((sides != 4) | boxes.is_null().to_numpy(zero_copy_only=False))[0]]
        raise DetectionDataError(f"{place}, row {row}: a box has not four numbers; {_LOAD}")
    return pc.list_flatten(boxes), np.repeat(rows, 4)


def _check(place: str, field: _Field, values: Any, rows: np.ndarray) -> None:
    if not len(values) or (field.may_be_null and values.null_count == len(values)):
        return
    number = "dataset.map(lambda row, i: {'image_id': i}, with_indices=True)"
    remedy = f"{_LOAD}, such as {number}" if place.endswith("image_id") else _LOAD
    if not field.is_type(values.type):
        first = shown(values[0].as_py())
        raise DetectionDataError(f"{place} holds {values.type} ({first}), not {field.meaning}; {remedy}")
    if values.null_count and not field.may_be_null:
        row = rows[np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]]
        raise DetectionDataError(f"{place}, row {row}: null, not {field.meaning}; {remedy}")
    if values.null_count:
        there = values.is_valid()
        values, rows = values.filter(there), rows[there.to_numpy(zero_copy_only=False)]
    numbers = values.to_numpy(zero_copy_only=False)
    right = field.holds(numbers)
    if not right.all():
        wrong = np.flatnonzero(~right)[0]
        value = shown(numbers[wrong].item())
        raise DetectionDataError(f"{place}, row {rows[wrong]}: {value}, not {field.meaning}; {remedy}")


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
