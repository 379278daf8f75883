"""Rows of a data set as the loader needs them: numbers of objects as arrays, straight from the Arrow table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..rows import check_row
from ..schema import class_names
from ..shards.dataset import AnySplit, ShardedDataset

__all__ = ["RowReader"]

_COLUMNS = ("image", "image_id", "width", "height", "file_name", "labelled_classes", "as_stored", "objects")
_OF_OBJECTS = ("bbox", "category", "area", "iscrowd", "segmentation", "keypoints")


class RowReader:
    """Reads one row at a time, a tenth of the time that `datasets` takes to make Python numbers of it.

    Of the columns only those that training and scoring need are read. A data set with a format of its own (`numpy`,
    `set_transform`) gives its rows itself.

    Args:
        dataset: rows in the schema of `rfdetr_hf.data.schema`, images as ``{"path", "bytes"}``.
    """

    def __init__(self, dataset: AnySplit) -> None:
        self.dataset = dataset
        self._direct = isinstance(dataset, Dataset) and dataset.format["type"] is None
        self._tables: Any = dataset.with_format("arrow") if isinstance(dataset, ShardedDataset) else None
        self._pieces: list[_Piece] | None = None  # of this process; the table stays mapped
        self._starts = np.empty(0, np.int64)
        is_custom = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
        self._classes = len(class_names(dataset)) if is_custom else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pieces": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row of an index: lists of numbers as flat arrays (null is NaN), masks as Python lists.

        Raises:
            IndexError: there is no such row.
            DetectionDataError: its shard cannot be read, or a transform of the data set (`with_transform`) has made
                objects that are none.
        """
        if self._tables is not None:
            return _Piece(self._tables[index].combine_chunks().to_batches()[0]).row(0)
        if not self._direct:
            row: Any = self.dataset[index]
            if self._classes is not None:
                check_row(row, index, self._classes)
            return row
        if not 0 <= index < len(self.dataset):
            raise IndexError(f"row {index} is not among {len(self.dataset)}")
        dataset: Any = self.dataset
        if self._pieces is None:
            table = dataset.data.table
            present = [name for name in _COLUMNS if name in table.column_names]
            batches = [batch for batch in table.select(present).to_batches() if len(batch)]
            self._pieces, self._starts = list(map(_Piece, batches)), np.cumsum([0, *map(len, batches)])
        if dataset._indices is not None:
            index = dataset._indices.column(0)[index].as_py()
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._pieces[number].row(index - int(self._starts[number]))


class _Piece:
    """A piece of a table, with the arrays of its columns at hand."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._columns: list[tuple[str, Any]] = []
        self._objects: list[tuple[str, Any]] | None = None
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name == "objects" and isinstance(column, pa.StructArray):
                fields = [name for name in _OF_OBJECTS if column.type.get_field_index(name) >= 0]
                self._objects = [(each, _reader(column.field(each))) for each in fields]
            elif name in _COLUMNS:
                self._columns.append((name, _reader(column)))

    def row(self, index: int) -> dict[str, Any]:
        row = {name: read(index) for name, read in self._columns}
        if self._objects is not None:
            row["objects"] = {name: read(index) for name, read in self._objects}
        return row


def _reader(column: Any) -> Callable[[int], Any]:
    """What gives the value of a row: of numbers, and of lists of numbers, without a value of Arrow in between."""
    kind = column.type
    if pa.types.is_struct(kind) and not column.null_count:
        inner = [(kind.field(i).name, _reader(column.field(i))) for i in range(kind.num_fields)]
        return lambda index: {name: read(index) for name, read in inner}
    if column.null_count == len(column):
        return lambda index: None
    if pa.types.is_integer(kind) and not column.null_count:
        numbers = column.to_numpy()
        return lambda index: int(numbers[index])
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or column.null_count:
        return lambda index: column[index].as_py()
    ends, items, width = column.offsets.to_numpy(), column.values, 1
    while pa.types.is_fixed_size_list(items.type) and not items.null_count:
        width, items = width * items.type.list_size, items.flatten()
    if not pa.types.is_primitive(items.type):
        return lambda index: column[index].as_py()
    if items.null_count or pa.types.is_boolean(items.type):  # which numpy holds in another way: a part at a time

        def part(index: int) -> np.ndarray:
            first, last = int(ends[index]) * width, int(ends[index + 1]) * width
            return items.slice(first, last - first).to_numpy(zero_copy_only=False)

        return part
    values = items.to_numpy()
    return lambda index: values[ends[index] * width : ends[index + 1] * width]
