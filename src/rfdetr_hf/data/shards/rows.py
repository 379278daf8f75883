"""Rows of shards: as JSON in tar files, and whether they are sound."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute

from ..errors import DetectionDataError
from ..schema import unchunked

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

PICTURE = "picture"
"""The field of a tar file's JSON that holds the name of the picture."""
CRC = "crc32"
"""The last field of a tar file's JSON: checksums of picture and JSON."""
IDENTITY = "RFDETR_HF.identity"
"""The header of a tar file that says which data set it is of."""


def to_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its picture for JSON, whose readers guess types from a few rows: a mask has no nulls."""
    for mask in row["objects"].get("segmentation") or ():
        mask["polygons"], mask["rle"] = mask["polygons"] or [], mask["rle"] or ""
    return row


def from_json(row: dict[str, Any]) -> dict[str, Any]:
    """What `to_json` was given."""
    for mask in row["objects"].get("segmentation") or ():
        mask["polygons"], mask["rle"] = mask["polygons"] or None, mask["rle"] or None
    return row


def check_rows(table: pa.Table, classes: int, place: str) -> None:
    """Refuse rows whose objects are none, whoever has written them.

    Args:
        table: rows, maybe without `objects`.
        classes: number of classes that are stored.
        place: of the rows, for messages.

    Raises:
        DetectionDataError: lists of different lengths, labels beyond the classes, or boxes that are no numbers.
    """
    if "objects" not in table.column_names:
        return
    objects = unchunked(table["objects"])
    fields = {each.name: pc.struct_field(objects, each.name) for each in objects.type}
    lengths = {name: pc.fill_null(pc.list_value_length(values), 0) for name, values in fields.items()}
    first = next(iter(lengths), "")
    fault = next((f"lists {first} and {name} of a row differ in length" for name, length in lengths.items()
                  if not length.equals(lengths[first])), None)  # fmt: skip
    labels = pc.list_flatten(fields["category"]) if "category" in fields else pa.array([], pa.int64())
    low, high = pc.min_max(labels).values()
    if low.is_valid and not 0 <= low.as_py() <= high.as_py() < classes or labels.null_count:
        fault = f"field objects.category has {low} to {high}, and there are {classes} classes"
    if "bbox" in fields:
        numbers = pc.list_flatten(pc.list_flatten(fields["bbox"]))
        finite = pc.all(pc.is_finite(numbers)).as_py() is not False and not numbers.null_count
        if not finite or len(numbers) != 4 * pc.sum(lengths["bbox"]).as_py():
            fault = "field objects.bbox holds a box that is no four finite numbers"
    if fault is not None:
        raise DetectionDataError(f"{place}: {fault}; write the shard again from a sound data set")
