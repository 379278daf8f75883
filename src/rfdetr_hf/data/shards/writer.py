"""Writes data sets: as Parquet shards, as tar files of WebDataset, as a folder in COCO's layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image

from ...options import require_room
from ..errors import DetectionDataError
from ..fingerprint import data_hash
from ..images import IMAGE_SUFFIXES
from ..schema import undecoded, value_range
from .coco_folder import write_coco_folder
from .counts import Counts, count_rows
from .index import FORMATS, INDEX, Shard, shard_metadata, write_index
from .rows import CRC, IDENTITY, PICTURE, to_json

MAX_ROWS = 10_000
"""Rows of a shard at most; a shuffle mixes some shards at a time."""
_BATCH = 64
_GROUP_BYTES = 256 << 10  # one row costs a reader the row group that it lies in


def convert_dataset(
    splits: DatasetDict | Mapping[str, Dataset], target: str | os.PathLike[str], format: str, shard_mb: int
) -> int:
    """Write a data set; its pictures are the bytes of its files.

    The target appears complete or not at all: everything is written beside it under another name first.

    Args:
        splits: in the schema of `load_detection_dataset`. A column `labelled_classes` or `value_range` that one of them
            has is written for all: null where all classes are labelled, and the same range.
        target: the folder to make; an empty one may exist.
        format: one of `choices.DATA_FORMATS`: Parquet shards that `datasets.load_dataset` reads, tar files that it and
            WebDataset read, or a folder in Roboflow's COCO layout.
        shard_mb: a shard is closed when it has so many megabytes, or `MAX_ROWS` rows.

    Returns:
        How many shards there are; of a folder, 0.

    Raises:
        FileExistsError: the target has content.
        DetectionDataError: an image cannot be read, the splits differ in their columns or classes, or images are not
            drawn equally often (`sample_weight`), which is nothing that files keep.
    """
    path = Path(target)
    # Of a link to an empty folder, the folder is meant; "." has no name.
    path = Path(os.path.realpath(path)) if path.is_symlink() or not path.name else path
    require_new(path)
    named = _alike({str(name): split for name, split in splits.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    made.mkdir()
    try:
        if format == "folder":
            write_coco_folder(named, made, image_bytes)
            count = 0
        else:
            count = len(_write_shards(named, made, format, shard_mb << 20))
        require_new(path)
        if path.is_dir():
            path.rmdir()
        os.rename(made, path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return count


def _alike(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits with the same columns in the same order, as one set of features needs them.

    Raises:
        DetectionDataError: they differ in what cannot be filled in, or have sample weights.
    """
    wanted: dict[str, tuple[str, Any]] = {}
    for name, split in splits.items():
        if "sample_weight" in split.column_names:
            raise DetectionDataError(
                f"split {name}: its images are not drawn equally often (column sample_weight, from share or sampling), "
                "which the files would not keep; convert without share and sampling, and give them to the training"
            )
        for column, feature in Features({**split.features, "image": Image()}).items():
            other, known = wanted.setdefault(column, (name, feature))
            if known != feature:
                raise DetectionDataError(
                    f"splits {other} and {name} differ in column {column}: {_brief(known)} and {_brief(feature)}; give "
                    "splits of one load_detection_dataset, or convert them one by one"
                )
    ranges = {value_range(split) for split in splits.values() if "value_range" in split.column_names}
    if len(ranges) > 1:
        raise DetectionDataError(
            f"the splits' pictures have different ranges of values (column value_range), {sorted(ranges, key=str)}; "
            "write the pictures with as many bits, or convert the splits one by one"
        )
    filled = {"labelled_classes": None, "as_stored": False, "value_range": list(next(iter(ranges), None) or ())}
    made = {}
    for name, split in splits.items():
        for column in [each for each in wanted if each not in split.column_names]:
            if column not in filled or not isinstance(split, Dataset):
                raise DetectionDataError(
                    f"split {name}: has no column {column}, and split {wanted[column][0]} has; give it to all of them, "
                    "or to none"
                )
            split = split.add_column(column, [filled[column]] * len(split), feature=wanted[column][1])
        made[name] = split if split.column_names == list(wanted) else split.select_columns(list(wanted))
    return made


def _brief(feature: Any) -> str:
    text = str(feature)
    return text if len(text) <= 200 else f"{text[:200]}…"


def require_new(path: Path) -> None:
    """Whether a folder can be made.

    Raises:
        FileExistsError: there is something.
        OSError: its folder is none, or closed.
    """
    if os.path.ismount(path):
        raise FileExistsError(f"{path} is where a disk is mounted, which nothing can replace; give a folder in it")
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists; give another name or remove it")
    require_room(path, str(path))


def image_bytes(image: Mapping[str, Any], name: str) -> bytes:
    """The encoded picture of a row, as its file has it.

    Raises:
        DetectionDataError: there is none.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        with open(image["path"], "rb") as file:
            return file.read()
    except (OSError, TypeError) as error:
        raise DetectionDataError(f"{image['path'] or name}: the image cannot be read ({error})") from error


def _write_shards(splits: Mapping[str, Dataset], folder: Path, format: str, limit: int) -> list[Shard]:
    """Write all shards and the index; returns them."""
    (folder / "data").mkdir()
    about = f"{format} {data_hash(splits, 'sizes')} {[split.features for split in splits.values()]}"
    identity = hashlib.sha256(about.encode()).hexdigest()[:16]
    shards: list[Shard] = []
    features, suffix = Features({}), None
    for split, dataset in splits.items():
        features = Features({**dataset.features, "image": Image()})
        unnamed: list[Shard] = []
        groups = _groups(dataset, features, min(_GROUP_BYTES, limit // 4))
        group = next(groups, None)
        while group is not None:
            suffix = suffix or suffix_of(group["image"][0].as_py())
            path, counts = folder / "data" / f"{split}-{len(unnamed):05d}", Counts()
            made = ParquetShard(path, features) if format == "parquet" else TarShard(path, suffix, identity)
            with made as shard:
                while group is not None and shard.size < limit and counts.images + len(group) <= MAX_ROWS:
                    shard.write(group)
                    counts += count_rows(group, features)
                    group = next(groups, None)
                shard.finish(counts, identity)
            unnamed.append(Shard(split, path.name, counts.images, path.stat().st_size, counts))
        if not unnamed:
            raise DetectionDataError(f"split {split}: has no images; leave it out")
        for index, shard in enumerate(unnamed):
            file = f"data/{split}-{index:05d}-of-{len(unnamed):05d}{FORMATS[format]}"
            os.rename(folder / "data" / shard.file, folder / file)
            shards.append(shard._replace(file=file))
    write_index(str(folder / INDEX), format, features, shards, identity)
    return shards


def _groups(dataset: Dataset, features: Features, limit: int) -> Iterator[pa.Table]:
    """The rows in tables of so many bytes at most, pictures inside; one picture may have more."""
    plain = undecoded(dataset).with_format("arrow")
    schema = features.arrow_schema
    waiting: list[pa.Table] = []
    size = rows = 0
    for batch in plain.iter(_BATCH):
        table = cast(pa.Table, batch)
        names = table["file_name"].to_pylist() if "file_name" in table.column_names else [None] * len(table)
        ids = table["image_id"].to_pylist()
        for row, image in enumerate(table["image"].to_pylist()):
            content = image_bytes(image, f"image with image_id {ids[row]}")
            if waiting and (size + len(content) > limit or rows == MAX_ROWS):
                yield pa.concat_tables(waiting)
                waiting, size, rows = [], 0, 0
            path = os.path.basename(names[row] or image["path"] or "") or None
            picture = pa.array([{"bytes": content, "path": path}], features["image"].pa_type)
            one = table.slice(row, 1).set_column(table.column_names.index("image"), "image", picture)
            waiting.append(one.cast(schema))
            size, rows = size + len(content), rows + 1
    if waiting:
        yield pa.concat_tables(waiting)


class ParquetShard(AbstractContextManager):
    """A Parquet file in the making; pictures are stored as they are, in pages with checksums.

    Attributes:
        size: bytes of the rows so far.
    """

    def __init__(self, path: Path, features: Features) -> None:
        self.size, self._stem = 0, path.name
        schema = features.arrow_schema
        empty = io.BytesIO()
        pq.write_table(schema.empty_table(), empty)
        columns = pq.ParquetFile(empty).schema
        paths = {columns.column(i).path for i in range(len(columns.names))} - {"image.bytes"}
        kept: Any = {"compression": {"image.bytes": "none"} | dict.fromkeys(paths, "zstd")}
        kept |= {"use_dictionary": sorted(paths)}
        self._writer = pq.ParquetWriter(path, schema, write_statistics=False, write_page_checksum=True, **kept)

    def write(self, rows: pa.Table) -> None:
        """Add rows, as a row group."""
        self._writer.write_table(rows, row_group_size=len(rows))
        self.size += rows.nbytes

    def finish(self, counts: Counts, identity: str) -> None:
        """Write the footer."""
        self._writer.add_key_value_metadata(shard_metadata(counts.images, counts, identity, self._stem))

    def __exit__(self, *failure: object) -> None:
        self._writer.close()


class TarShard(AbstractContextManager):
    """A tar file of WebDataset in the making: of each row the picture, and the rest as JSON.

    All pictures have one suffix, as `datasets` and WebDataset want it; field `picture` of the JSON has their names, and
    field `crc32`, its last one, the checksums of the picture and of the JSON before that field.

    Attributes:
        size: bytes of the rows so far.
    """

    def __init__(self, path: Path, suffix: str, identity: str) -> None:
        self.size = self._rows = 0
        self._suffix, self._stem = suffix, path.name
        self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={IDENTITY: identity})

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        for row in rows.to_pylist():
            image = row.pop("image")
            text = json.dumps(to_json(row) | {PICTURE: image["path"]}).encode()
            sums = json.dumps([zlib.crc32(image["bytes"]), zlib.crc32(text)])
            text = text[:-1] + f', "{CRC}": {sums}}}'.encode()
            for suffix, content in ((self._suffix, image["bytes"]), (".json", text)):
                member = tarfile.TarInfo(f"{self._stem}-{self._rows:05d}{suffix}")
                member.size = len(content)
                self._file.addfile(member, io.BytesIO(content))
                self.size += 512 + -(-len(content) // 512) * 512
            self._rows += 1

    def finish(self, counts: Counts, identity: str) -> None:
        """Nothing: the index has the counts, and the file begins with the identity."""

    def __exit__(self, *failure: object) -> None:
        self._file.close()


def suffix_of(image: Mapping[str, Any]) -> str:
    """The suffix of a picture's name, in lower case; what is none of a picture's gets that of a JPEG."""
    suffix = os.path.splitext(image["path"] or "")[1].lower()
    return suffix if suffix in IMAGE_SUFFIXES else ".jpg"
