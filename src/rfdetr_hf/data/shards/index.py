"""What is known of shards before one is opened: the index of a data set, or the footers of Parquet files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from datasets import Features

from ..errors import DetectionDataError
from .counts import Counts

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

INDEX = "_index.parquet"
"""Name of the index in the folder of a data set; readers of many Parquet files leave out names with an underscore."""
KEY = b"rfdetr_hf"
"""Of what this package writes into the metadata of Parquet files, as JSON."""
VERSION = 1
FORMATS = {"parquet": ".parquet", "webdataset": ".tar"}
"""The suffix of shards of each format."""
_ROWS_AT_A_TIME = 4096


class Shard(NamedTuple):
    """One file of a data set.

    Attributes:
        split: that its rows belong to.
        file: its path from the folder of the data set.
        rows: how many.
        size: bytes of the file.
        counts: of its rows.
    """

    split: str
    file: str
    rows: int
    size: int
    counts: Counts


@dataclass(frozen=True)
class ShardList:
    """The shards of a split, in their order.

    Attributes:
        files: (S,) paths from the folder of the data set, or addresses.
        rows: (S,) int64.
        sizes: (S,) int64, bytes of the files.
        counts: of all rows together; None where nobody has counted.
        identities: (S,) what the data set of each is called in its file, see `shard_metadata`; None where nobody says.
        ids: least and largest image id of each file, None where its footer does not say; () where no footer was read.
    """

    files: pa.StringArray
    rows: np.ndarray
    sizes: np.ndarray
    counts: Counts | None = None
    identities: np.ndarray | None = None
    ids: Sequence[tuple[int, int] | None] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def has_own_ids(self) -> bool:
        """Whether no image id can be in two of the files, by `ids`."""
        known = sorted(each for each in self.ids if each is not None)
        return len(known) == len(self) and all(one[1] < other[0] for one, other in itertools.pairwise(known))

    def below(self, folder: str) -> ShardList:
        """The same with the folder in front of each file."""
        return replace(self, files=pc.binary_join_element_wise(folder, self.files, "/"))


class Index(NamedTuple):
    """A data set of shards.

    Attributes:
        format: one of `FORMATS`.
        features: of its rows.
        splits: the shards of each split.
    """

    format: str
    features: Features
    splits: Mapping[str, ShardList]


def shard_metadata(rows: int, counts: Counts, identity: str, stem: str) -> dict[bytes, bytes]:
    """What the footer of a Parquet shard says besides its schema.

    Args:
        rows: of the shard.
        counts: of its rows.
        identity: a checksum of the data set that the shard is of.
        stem: split and number of the shard, with which its name begins.
    """
    about = {"version": VERSION, "rows": rows, "counts": counts.to_dict(), "identity": identity, "stem": stem}
    return {KEY: json.dumps(about).encode()}


def write_index(
    path: str, format: str, features: Features, shards: Sequence[Shard], identity: str | None = None
) -> None:
    """Write the index of a data set.

    One row is one shard: split, file, rows, size, and its counts as JSON. The features and the counts of the splits are
    in the metadata, so that a reader needs no more of the table than names and numbers.

    Args:
        path: of the file.
        format: one of `FORMATS`.
        features: of the rows.
        shards: all of them, those of a split together and in their order.
        identity: that the shards have in their files.
    """
    totals: dict[str, Counts] = {}
    for shard in shards:
        totals[shard.split] = totals.get(shard.split, Counts()) + shard.counts
    about = {
        "version": VERSION,
        "format": format,
        "features": features.to_dict(),
        "counts": {split: counts.to_dict() for split, counts in totals.items()},
        "identity": identity,
    }
    table = pa.table(
        {
            "split": pa.array([shard.split for shard in shards], pa.string()).dictionary_encode(),
            "file": pa.array([shard.file for shard in shards], pa.string()),
            "rows": pa.array([shard.rows for shard in shards], pa.int64()),
            "size": pa.array([shard.size for shard in shards], pa.int64()),
            "counts": pa.array([json.dumps(shard.counts.to_dict()) for shard in shards], pa.string()),
        }
    )
    about["checksum"] = _checksum(about, table)
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(about).encode()}), path, compression="zstd")


def _checksum(about: Mapping[str, Any], table: pa.Table) -> str:
    """Of all that a reader takes from an index."""
    values = {name: value for name, value in about.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in ("split", "file"):
        for start in range(0, len(table), _ROWS_AT_A_TIME):  # Python's texts of all shards would take 20 MB
            texts = table[name].slice(start, _ROWS_AT_A_TIME).to_pylist()
            digest.update(b"\0" * bool(start) + "\0".join(map(str, texts)).encode())
    for name in ("rows", "size"):
        digest.update(table[name].to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()


def read_index(content: Any, name: str) -> Index:
    """The index of a data set; the counts of single shards stay unread.

    Args:
        content: the file, open or as an Arrow buffer.
        name: of the file in messages.

    Raises:
        DetectionDataError: it is no index, or one of a later version.
    """
    remedy = "write the shards again with rfdetr-hf data convert, or remove the file: Parquet shards do without it"
    try:
        file = pq.ParquetFile(content)
        about = json.loads(file.schema_arrow.metadata[KEY])
        version = about["version"]
        if version > VERSION:
            raise DetectionDataError(f"{name}: has version {version}, and this package reads {VERSION}; update it")
        features = Features.from_dict(about["features"])
        table = file.read(columns=["split", "file", "rows", "size"])
        if about.get("checksum", "") not in ("", _checksum(about, table)):
            raise ValueError("its checksum is another one: the file was changed or is damaged")
        counts = {split: Counts.from_dict(values) for split, values in about["counts"].items()}
        format = about["format"]
        splits = {}
        for split, total in counts.items():
            part = table.filter(pc.equal(table["split"], split))
            rows, sizes = (part[column].to_numpy() for column in ("rows", "size"))
            files, identity = part["file"].combine_chunks(), about.get("identity")
            identities = None if identity is None else np.full(len(files), identity, object)
            splits[split] = ShardList(files, rows, sizes, total, identities)
            ordered = files.take(pc.sort_indices(files))  # a count of distinct texts would take 34 MB
            if files.null_count or pc.any(pc.equal(ordered[1:], ordered[:-1])).as_py():
                raise ValueError(f"a file of split {split!r} stands there twice or has no name")
            if (rows < 1).any() or rows.sum() != total.images:
                raise ValueError(f"rows of split {split!r}: {rows.sum()} in its shards, {total.images} counted")
    except DetectionDataError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DetectionDataError(
            f"{name}: is no index of shards ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if format not in FORMATS:
        raise DetectionDataError(f"{name}: field format is {format!r}, none of {', '.join(FORMATS)}; {remedy}")
    return Index(format, features, splits)
