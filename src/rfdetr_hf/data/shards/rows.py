"""Rows of shards: as JSON in tar files, and whether they are sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..annotations import Annotations, Boxes
from ..checks import AS_THEY_ARE, find_broken
from ..errors import DetectionDataError, Problems
from ..rows import check_table
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


def check_foreign(table: pa.Table, classes: int, place: str, start: int) -> Annotations:
    """Refuse rows that another program has written and that are not as `load_detection_dataset` makes them.

    Args:
        table: image_id, width, height and objects of rows that lie together.
        classes: number of classes that are stored.
        place: of the rows, for messages.
        start: number of the first row there.

    Returns:
        What they say, whose boxes may still be odd together.

    Raises:
        DetectionDataError: values of another kind, labels beyond the classes, lists of different lengths, ids of
            several images.
    """
    try:
        check_table(place, table, classes, start)
    except DetectionDataError as error:
        raise DetectionDataError(f"{error}; {AS_THEY_ARE}") from error
    objects = unchunked(table["objects"])
    lists = {each.name: pc.struct_field(objects, each.name) for each in objects.type}
    row = np.repeat(np.arange(len(table)), pc.list_value_length(lists["bbox"]).to_numpy(zero_copy_only=False))
    fields = ("id" if "id" in lists else "category", "category", "area", "iscrowd")
    ids, labels, area, crowd = (pc.list_flatten(lists[field]).to_numpy(zero_copy_only=False) for field in fields)
    bbox = pc.list_flatten(pc.list_flatten(lists["bbox"])).to_numpy(zero_copy_only=False).reshape(-1, 4)
    boxes = Boxes(row, ids, bbox.astype(np.float64), labels, area.astype(np.float64), crowd.astype(bool))
    size = np.stack([table[side].to_numpy() for side in ("width", "height")], axis=1)
    images = table["image_id"].to_numpy()
    annotations, problems = Annotations(place, images, size, images, boxes), Problems(place)
    find_broken(annotations, problems)
    problems.suggest(AS_THEY_ARE)
    problems.raise_if_any()
    return annotations


def together(parts: Sequence[Annotations], place: str) -> Annotations:
    """What rows of several places say, as of one place."""
    starts = np.cumsum([0, *(len(part.size) for part in parts)])
    row = np.concatenate([part.boxes.row + start for part, start in zip(parts, starts, strict=False)])
    fields = ("id", "bbox", "category", "area", "iscrowd")
    boxes = Boxes(row, *(np.concatenate([getattr(part.boxes, name) for part in parts]) for name in fields))
    images = np.concatenate([part.image_id for part in parts])
    return Annotations(place, images, np.concatenate([part.size for part in parts]), images.tolist(), boxes)


def without_empty_boxes(table: pa.Table) -> pa.Table:
    """Rows without the objects that have no width or no height, which `settle` drops too."""
    at = table.column_names.index("objects") if "objects" in table.column_names else -1
    objects = unchunked(table["objects"]) if at >= 0 else None
    if objects is None or objects.type.get_field_index("bbox") < 0:
        return table
    lists = {each.name: pc.struct_field(objects, each.name) for each in objects.type}
    bbox = pc.list_flatten(pc.list_flatten(lists["bbox"])).to_numpy(zero_copy_only=False).reshape(-1, 4)
    keep = (bbox[:, 2:] != 0).all(axis=1)
    if keep.all():
        return table
    counts = pc.list_value_length(lists["bbox"]).to_numpy(zero_copy_only=False)
    left = np.bincount(np.repeat(np.arange(len(table)), counts)[keep], minlength=len(table))
    offsets = pa.array(np.concatenate([[0], np.cumsum(left)]), pa.int32())
    kept = [
        pa.ListArray.from_arrays(offsets, pc.list_flatten(each).filter(pa.array(keep))).cast(each.type)
        for each in lists.values()
    ]
    return table.set_column(at, table.schema.field(at), pa.StructArray.from_arrays(kept, fields=list(objects.type)))
