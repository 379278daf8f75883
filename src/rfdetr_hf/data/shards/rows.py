"""Rows of shards: as JSON in tar files, and whether they are sound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ..annotations import Annotations, Boxes
from ..checks import AS_THEY_ARE, check_as_they_are
from ..errors import DetectionDataError
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


def check_foreign(table: pa.Table, classes: int, place: str, start: int, tell: bool) -> int:
    """Refuse rows that another program has written and that are not as `load_detection_dataset` makes them.

    Args:
        table: image_id, width, height and objects of rows that lie together.
        classes: number of classes that are stored.
        place: of the rows, for messages.
        start: number of the first row there.
        tell: warn of what is odd and no error.

    Returns:
        How many boxes there are.

    Raises:
        DetectionDataError: values of another kind, labels beyond the classes, lists of different lengths, boxes in
            another format, or many of which nothing is left.
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
    check_as_they_are(Annotations(place, images, size, images, boxes), tell)
    return len(row)
