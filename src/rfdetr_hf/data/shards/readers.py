"""Single shards on a local disk, read row by row."""

from __future__ import annotations

import copy
import json
import os
import tarfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from ..errors import DetectionDataError
from .index import KEY, VERSION
from .rows import CRC, IDENTITY, PICTURE, from_json

_TOGETHER = 64  # rows of a tar file


class ParquetReader:
    """The rows of a Parquet file; one row costs the row group that it is in.

    Args:
        path: of the file.
        features: what to read; the file may have more.
        name: of the file in messages.
    """

    def __init__(self, path: str, features: Features, name: str) -> None:
        self.name, self.identity, self.stem = name, None, None
        self._take(features)
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except pa.ArrowException as error:
            raise self._damaged(error) from error
        if (text := (self._file.metadata.metadata or {}).get(KEY)) is not None:
            about: Any = json.loads(text)
            if about.get("version", VERSION) > VERSION:
                raise DetectionDataError(
                    f"{name}: has version {about['version']}, and this package reads {VERSION}; update it"
                )
            self.identity, self.stem = about.get("identity"), about.get("stem")
        groups = self._file.metadata.num_row_groups
        self._ends = np.cumsum([self._file.metadata.row_group(i).num_rows for i in range(groups)])
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _take(self, features: Features) -> None:
        self.features, self._schema = features, features.arrow_schema
        # Of objects each list by itself: a reader may leave some out.
        lists: Any = features.get("objects") or {}
        self._columns = [name for name in features if name != "objects"] + [f"objects.{name}" for name in lists]
        self._kept: tuple[int, pa.Table] | None = None

    def like(self, features: Features) -> ParquetReader:
        """A reader of other columns of the same file."""
        view = copy.copy(self)
        view._take(features)
        return view

    def start_of(self, index: int) -> int:
        """The first of the rows that are read together with a row."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        return int(self._ends[group - 1]) if group else 0

    def row(self, index: int) -> pa.Table:
        """One row."""
        return self._group(int(np.searchsorted(self._ends, index, side="right"))).slice(index - self.start_of(index), 1)

    def tables(self, start: int = 0) -> Iterator[pa.Table]:
        """All rows, a row group at a time; from row `start` on, with which a group begins."""
        for group in range(int(np.searchsorted(self._ends, start, side="right")), len(self._ends)):
            yield self._group(group)

    def _group(self, group: int) -> pa.Table:
        kept = self._kept  # another thread may put its own there
        if kept is None or kept[0] != group:
            try:
                with self._lock:
                    table = self._file.read_row_group(group, columns=self._columns, use_threads=False)
                kept = self._kept = group, table.select(self._schema.names).cast(self._schema)
            except (pa.ArrowException, OSError, KeyError) as error:
                raise self._damaged(error) from error
        return kept[1]

    def _damaged(self, error: Exception) -> DetectionDataError:
        return DetectionDataError(
            f"{self.name}: the shard cannot be read ({type(error).__name__}: {str(error)[:200]}); write it again, and "
            "remove its copy from the cache where it came from a store"
        )


class TarReader:
    """The rows of a tar file as `TarShard` writes it; its headers are read at once.

    Args:
        path: of the file.
        features: what to read; the file may have more.
        name: of the file in messages.

    Attributes:
        identity, stem: of which data set and which of its shards the file says that it is; None where it does not.
    """

    def __init__(self, path: str, features: Features, name: str) -> None:
        self.name = name
        self._take(features)
        try:
            # Kept open, since a cache may remove its name.
            self._file, self._lock = open(path, "rb"), threading.Lock()
            with tarfile.open(fileobj=self._file, mode="r:") as file:
                members = [(member.name, member.offset_data, member.size) for member in file]
                self.identity = file.pax_headers.get(IDENTITY)
        except FileNotFoundError:
            raise
        except (tarfile.TarError, OSError, EOFError) as error:
            raise self._damaged(str(error)) from error
        self.stem = members[0][0].rpartition("-")[0] if members and self.identity else None
        pictures, texts = members[::2], members[1::2]
        # (n, 4): where picture and JSON begin, and their sizes
        self._places = np.array([[*a[1:], *b[1:]] for a, b in zip(pictures, texts, strict=False)], np.int64)
        pairs = zip(pictures, texts, strict=False)
        odd = next((a[0] for a, b in pairs if b[0] != f"{os.path.splitext(a[0])[0]}.json"), None)
        if odd is not None or len(members) % 2:
            raise self._damaged(f"{odd or members[-1][0]} is not followed by its JSON")

    def _take(self, features: Features) -> None:
        self.features, self._schema = features, features.arrow_schema
        self._fields: Any = features.get("objects") or {}

    def __len__(self) -> int:
        return len(self._places)

    def row(self, index: int) -> pa.Table:
        """One row."""
        return self._rows([index])

    def like(self, features: Features) -> TarReader:
        """A reader of other fields of the same file."""
        view = copy.copy(self)
        view._take(features)
        return view

    def start_of(self, index: int) -> int:
        """The first of the rows that are read together with a row."""
        return index - index % _TOGETHER

    def tables(self, start: int = 0) -> Iterator[pa.Table]:
        """All rows, some at a time; from row `start` on."""
        for first in range(start, len(self), _TOGETHER):
            yield self._rows(range(first, min(first + _TOGETHER, len(self))))

    def _rows(self, indices: Sequence[int]) -> pa.Table:
        rows = []
        try:
            for start, size, text_start, text_size in self._places[list(indices)].tolist():
                with self._lock:
                    self._file.seek(text_start)
                    text, content = self._file.read(text_size), None
                    if "image" in self.features:
                        self._file.seek(start)
                        content = self._file.read(size)
                rows.append(self._row(text, content))
            return pa.Table.from_pylist(rows, schema=self._schema)
        except KeyError as error:
            raise self._damaged(f"row {indices[len(rows)]}: field {error} is missing") from error
        except (ValueError, TypeError, pa.ArrowException, OSError) as error:
            # The JSONs of some rows become a table together.
            place = f"row {indices[len(rows)]}" if len(rows) < len(indices) else f"a row from {indices[0]} on"
            raise self._damaged(f"{place}: {type(error).__name__}: {error}") from error

    def _row(self, text: bytes, content: bytes | None) -> dict[str, Any]:
        """A row from its JSON and its picture, whose checksums are compared where the JSON has them."""
        row = from_json(json.loads(text))
        if CRC in row:
            before = text[: text.rindex(b', "' + CRC.encode())] + b"}"
            found = [row[CRC][0] if content is None else zlib.crc32(content), zlib.crc32(before)]
            if found != row[CRC]:
                which = "the JSON" if found[1] != row[CRC][1] else "the picture"
                raise ValueError(f"{which} has another checksum than field {CRC} says")
        if content is not None:
            row["image"] = {"bytes": content, "path": row[PICTURE]}
        if self._fields:
            row["objects"] = {name: row["objects"][name] for name in self._fields}
        return {name: row[name] for name in self._schema.names}

    def _damaged(self, fault: str) -> DetectionDataError:
        return DetectionDataError(f"{self.name}: the shard cannot be read ({fault[:200]}); write it again")


READERS = {"parquet": ParquetReader, "webdataset": TarReader}
