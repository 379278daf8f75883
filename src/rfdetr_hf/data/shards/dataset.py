"""A split in shards, as a data set with rows by number."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Image, NamedSplit

from ..annotations import Annotations
from ..checks import check_as_they_are
from ..errors import DetectionDataError
from ..pipeline.order import Shards
from .cache import ReadAhead, ShardCache
from .counts import Counts
from .index import ShardList
from .labels import relabel
from .readers import READERS
from .rows import check_foreign, together, without_empty_boxes

AnySplit: TypeAlias = "Dataset | ShardedDataset"
_OF_ANNOTATIONS = ("image_id", "width", "height", "objects")
# Boxes that stand for a split, and the shards that they are of.
_SAMPLE, _OF_SHARDS = 2000, 8


class ShardedDataset:
    """Rows of shards, with the methods of `datasets.Dataset` that reading needs; what nobody asks for is not read.

    Args:
        source: name of the data set, for messages.
        format: one of `index.FORMATS`.
        features: of the rows; the shards may have more.
        shards: with complete paths or addresses.
        split: name.
        window: shards whose rows a training mixes at a time.
        cache: where shards of a store are kept; None for shards on this machine.
        relabelling: the stored class names, and the label of each in `features` and `shards.counts`, -1 for none; None
            where they are those of `features`.
        renumbered: the number of a row is its `image_id`: several data sets, each with ids of its own, are one.

    Attributes:
        counts: what is in the rows; None where nobody has counted.
    """

    def __init__(
        self, source: str, format: str, features: Features, shards: ShardList, split: str, window: int,
        cache: ShardCache | None = None, relabelling: tuple[Sequence[str], np.ndarray] | None = None,
        renumbered: bool = False,
    ) -> None:  # fmt: skip
        self.source, self.format, self.window, self.cache = source, format, window, cache
        self.features = Features({**features, "image": Image(decode=False)} if "image" in features else features)
        self.shards, self._relabelling, self._renumbered = shards, relabelling, renumbered
        self.split = NamedSplit(split)
        self.info = DatasetInfo(features=self.features)
        self._annotations = Features({name: each for name, each in features.items() if name in _OF_ANNOTATIONS})
        self._sound: set[tuple[int, int]] = set()  # shards of others, and which of their rows were looked at
        self._told: set[int] = set()  # shards whose odd boxes were warned of
        self._starts = np.concatenate([[0], np.cumsum(shards.rows)])
        self._rows: np.ndarray | None = None  # of a selection
        self._as_arrow = False
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._owner, self._lock = os.getpid(), threading.Lock()
        self._ahead: ReadAhead | None = None

    # ------------------------------------------------------------------------------------------------ as a data set

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.features)

    @property
    def counts(self) -> Counts | None:
        """What is in the rows; None where nobody has counted, and for a selection of rows."""
        return self.shards.counts if self._rows is None else None

    def __repr__(self) -> str:
        return f"ShardedDataset({self.source}, {self.split}: {len(self)} rows in {len(self.shards)} shards)"

    def __getitem__(self, key: int | str | slice | Sequence[int] | np.ndarray) -> Any:
        """A row, a column, or columns of some rows, as of a `datasets.Dataset`.

        Raises:
            IndexError: there is no such row.
            DetectionDataError: a shard cannot be read.
        """
        if isinstance(key, str):
            column = self.select_columns([key]).with_format("arrow")[:][key]
            return column if self._as_arrow else column.to_pylist()
        if isinstance(key, (int, np.integer)):
            table = self._row(int(key))
            return table if self._as_arrow else table.to_pylist()[0]
        whole = isinstance(key, slice) and self._rows is None and key == slice(None)
        numbers = range(len(self))[key] if isinstance(key, slice) else [int(each) for each in key]
        tables = self._tables() if whole else map(self._row, numbers)
        table = pa.concat_tables([self.features.arrow_schema.empty_table(), *tables])
        return table if self._as_arrow else table.to_pydict()

    def __iter__(self) -> Iterator[Any]:
        for table in self._tables():
            if self._as_arrow:
                yield from (table.slice(row, 1) for row in range(len(table)))
            else:
                yield from table.to_pylist()

    def iter(self, batch_size: int) -> Iterator[Any]:
        """Batches of rows, in their order."""
        for table in self._tables():
            for start in range(0, len(table), batch_size):
                part = table.slice(start, batch_size)
                yield part if self._as_arrow else part.to_pydict()

    def with_format(self, type: str | None = None) -> ShardedDataset:
        """The same rows as Python values (None) or as Arrow tables ("arrow").

        Raises:
            ValueError: the format is another one.
        """
        if type not in (None, "arrow"):
            raise ValueError(f"format {type!r} is not known; choose None or 'arrow'")
        view = copy.copy(self)
        view._as_arrow = type == "arrow"
        return view

    def select_columns(self, column_names: Sequence[str]) -> ShardedDataset:
        """The same rows with some columns; the others are not read.

        Raises:
            ValueError: there is no such column.
        """
        missing = [name for name in column_names if name not in self.features]
        if missing:
            raise ValueError(f"columns {missing} are not among {self.column_names}")
        return self.with_features(Features({name: self.features[name] for name in column_names}))

    def with_features(self, features: Features) -> ShardedDataset:
        """The same rows with these features, of which the shards may have more."""
        view = copy.copy(self)
        view.features, view.info, view._open = features, DatasetInfo(features=features), OrderedDict()
        return view

    def select(self, indices: Sequence[int] | np.ndarray) -> ShardedDataset:
        """Some rows, in the order of their numbers; a training takes complete shards, see `select_shards`."""
        view = copy.copy(self)
        rows = np.asarray(indices, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not all among {len(self)}")
        view._rows = rows if self._rows is None else self._rows[rows]
        return view

    def select_shards(self, indices: Sequence[int] | np.ndarray, split: str) -> ShardedDataset:
        """The rows of some shards as a split of its own; nobody has counted them."""
        chosen = np.asarray(indices, np.int64)
        identities = None if self.shards.identities is None else self.shards.identities[chosen]
        parts = self.shards.files.take(pa.array(chosen)), self.shards.rows[chosen], self.shards.sizes[chosen]
        shards = ShardList(*parts, identities=identities)
        mine = self.source, self.format, self.features, shards, split, self.window, self.cache, self._relabelling
        return ShardedDataset(*mine, renumbered=self._renumbered)

    # ------------------------------------------------------------------------------------------------ for a training

    @property
    def layout(self) -> Shards:
        """How a training shuffles the rows.

        Raises:
            DetectionDataError: this is a selection of rows.
        """
        if self._rows is not None:
            raise DetectionDataError(
                f"{self.source}: rows were selected from shards; train on the data set itself, or write the rows as a "
                "data set with rfdetr_hf.convert_dataset"
            )
        return Shards(self.shards.rows, self.window, self.fetch_ahead if self.cache is not None else None)

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Fetch shards that will be read, in threads of this process; nothing is done for shards on this machine."""
        if self.cache is None:
            return
        if self._ahead is None or self._owner != os.getpid():
            self._ahead = ReadAhead(self.cache)
        self._ahead.fetch([self._place(shard) for shard in shards])

    def _place(self, shard: int) -> tuple[str, int, str | None]:
        """Address, size and identity of a shard, by which a copy of it is found."""
        identity = None if self.shards.identities is None else self.shards.identities[shard]
        return str(self.shards.files[shard]), int(self.shards.sizes[shard]), identity

    @cached_property
    def checksum(self) -> str:
        """Of what the rows and their order depend on: names, rows, sizes, identities of shards, counts, the window."""
        digest = hashlib.sha256(f"{self.window} {self.format} {self.shards.counts} {self._renumbered}".encode())
        if self.shards.identities is not None:
            digest.update("\0".join(map(str, self.shards.identities)).encode())
        for file in self.shards.files:  # one after the other: Python's texts of all would take 20 MB
            digest.update(os.path.basename(str(file)).encode() + b"\0")
        digest.update(self.shards.rows.astype(np.int64).tobytes() + self.shards.sizes.astype(np.int64).tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------------------------------------ reading

    def __getstate__(self) -> Mapping[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_lock"}
        return {**kept, "_open": OrderedDict(), "_ahead": None, "_owner": -1}

    def _row(self, index: int) -> pa.Table:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} is not among {len(self)}")
        index = index % len(self) if self._rows is None else int(self._rows[index])
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        reader = self._reader(shard)
        first = index - int(self._starts[shard])
        self._look(reader, shard, first)
        return self._checked(reader.row(first), shard, index)

    def _tables(self) -> Iterator[pa.Table]:
        if self._rows is not None:
            yield from map(self._row, range(len(self)))
            return
        for shard in range(len(self.shards)):
            reader, start = self._reader(shard), int(self._starts[shard])
            for table in reader.tables():
                self._look(reader, shard, start - int(self._starts[shard]))
                yield self._checked(table, shard, start)
                start += len(table)

    def _look(self, reader: Any, shard: int, row: int) -> None:
        """Refuse unsound rows around one that is read, once in a process; what this package wrote has checksums.

        Before the first of them a sample of the split is looked at: it alone says what most boxes are.

        Raises:
            DetectionDataError: see `check_foreign` and `check_as_they_are`.
        """
        start = reader.start_of(row)
        if reader.identity is not None or (shard, start) in self._sound or "objects" not in self._annotations:
            return
        if not self._sound:
            # Where shards are fetched from a store, the first alone: the answer is that of any order of reading.
            filled, count = np.flatnonzero(self.shards.rows), 1 if self.cache is not None else _OF_SHARDS
            chosen = set(filled[np.linspace(0, len(filled) - 1, count, dtype=int)].tolist())
            seen: dict[tuple[int, int], Annotations] = {}
            for each in sorted(chosen):
                seen.update(self._sound_rows(self._reader(each), each, 0, _SAMPLE // len(chosen)))
            parts = list(seen.values())
            if check_as_they_are(together(parts, parts[0].source if len(chosen) == 1 else self.source), sample=True):
                self._told.add(shard)
            self._sound.update(seen)
        if (shard, start) not in self._sound:
            ((place, part),) = self._sound_rows(reader, shard, start, 0).items()
            if check_as_they_are(part, sample=False, tell=not self._told):
                self._told.add(shard)
            self._sound.add(place)

    def _sound_rows(self, reader: Any, shard: int, start: int, enough: int) -> dict[tuple[int, int], Annotations]:
        """What rows from one on say, up to so many boxes, by the places in `_sound`; each value is usable."""
        category: Any = self._annotations["objects"]["category"]
        classes = len(self._relabelling[0]) if self._relabelling else category.feature.num_classes
        found, boxes = {}, 0
        for table in reader.like(self._annotations).tables(start):
            part = check_foreign(table, classes, str(self.shards.files[shard]), start)
            found[shard, start] = part
            start += len(table)
            boxes += len(part.boxes.row)
            if boxes >= enough:
                break
        return found

    def _checked(self, table: pa.Table, shard: int, first: int) -> pa.Table:
        """Rows of a shard from row `first` on, with the labels of the features; empty boxes of others are left out."""
        if self._reader(shard).identity is None:
            table = without_empty_boxes(table)
        if self._renumbered and "image_id" in table.column_names:
            numbers = pa.array(range(first, first + len(table)), pa.int64())
            table = table.set_column(table.column_names.index("image_id"), "image_id", numbers)
        return (
            table
            if self._relabelling is None
            else relabel(table, self._relabelling[1], self._relabelling[0], str(self.shards.files[shard]))
        )

    def _reader(self, shard: int) -> Any:
        if self._owner != os.getpid():  # open files are not shared with a process that was forked
            self._open, self._owner, self._lock = OrderedDict(), os.getpid(), threading.Lock()
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            reader = self._open[shard] = self._new_reader(shard)
            while len(self._open) > self.window + 1:
                self._open.popitem(last=False)
            return reader

    def _new_reader(self, shard: int) -> Any:
        """A shard that is opened, and that is the one of the index.

        Raises:
            DetectionDataError: it is missing, damaged, or another one.
        """
        address, rows = str(self.shards.files[shard]), int(self.shards.rows[shard])
        fault: Exception | None = None
        for _ in range(3):
            path = address if self.cache is None else self.cache.fetch(*self._place(shard))
            try:
                if self.cache is None and (found := os.path.getsize(path)) != (size := int(self.shards.sizes[shard])):
                    raise DetectionDataError(
                        f"{address}: has {found} bytes, and the index says {size}: it was cut or changed; restore it, "
                        "or write the shards again"
                    )
                reader = READERS[self.format](path, self.features, address)
                break
            except FileNotFoundError as error:  # removed for another one since
                fault = error
        else:
            raise DetectionDataError(
                f"{address}: the shard is missing; restore it, or write the index again"
            ) from fault
        identity = None if self.shards.identities is None else self.shards.identities[shard]
        if identity is not None and reader.identity not in (None, identity):
            raise DetectionDataError(
                f"{address}: is of another data set than the index; restore it, or write both again"
            )
        name = os.path.basename(address)
        if identity is not None and reader.stem and "-of-" in name and not name.startswith(f"{reader.stem}-of-"):
            raise DetectionDataError(f"{address}: holds the rows of {reader.stem}; give each shard its own name again")
        if len(reader) != rows:
            raise DetectionDataError(f"{address}: has {len(reader)} rows, and the index says {rows}; write it again")
        return reader
