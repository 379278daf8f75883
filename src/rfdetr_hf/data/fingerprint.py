"""A checksum of data sets, by which a run that is repeated recognises its data."""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from ..choices import counted
from .errors import DetectionDataError
from .scan import known_digest
from .schema import class_names, unchunked
from .shards.dataset import ShardedDataset

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

_ROWS = 256
_TAUGHT = ("bbox", "category", "iscrowd", "keypoints")
_CHUNK = 1 << 20  # bytes
KINDS = ("contents", "sizes")
"""What of the images is in a checksum: every byte, or the lengths of the files, which takes no reading."""


def data_hash(splits: Mapping[str, Dataset], kind: str = "contents") -> dict[str, str]:
    """The checksum of each split: its class names, annotations and images, in their order, wherever they lie.

    Of shards it is that of their names, rows, sizes and identities, and says nothing of pictures of the same length.

    Args:
        splits: in the schema of `load_detection_dataset`.
        kind: one of `KINDS`.

    Returns:
        `kind`, and SHA-256 in hexadecimal by the name of the split.
    """
    return {"kind": kind} | {name: _hash_split(dataset, kind) for name, dataset in splits.items()}


def check_data_hash(splits: Mapping[str, Dataset], expected: Mapping[str, Any], source: Any) -> None:
    """Compare splits with the checksums that `data_hash` gave; one of a split that is not there is no match.

    Args:
        splits: that were loaded.
        expected: as `data_hash` returns; a mapping without splits expects nothing.
        source: the name of the data set.

    Raises:
        DetectionDataError: splits have other checksums.
        ValueError: `expected` is no such mapping.
    """
    kind = expected.get("kind", KINDS[0])
    if kind not in KINDS:
        raise ValueError(f"data_hash: kind={kind!r} is not known; choose one of {', '.join(KINDS)}")
    named = {name: str(value) for name, value in expected.items() if name != "kind"}
    found = data_hash({name: split for name, split in splits.items() if name in named}, kind)
    changed = [f"{name} ({counted(len(splits[name]), 'image')})" if name in splits else f"{name} (missing)"
               for name, value in named.items() if found.get(name) != value]  # fmt: skip
    if changed:
        raise DetectionDataError(
            f"{source}: the data is not that of data_hash; images, annotations or classes differ in "
            f"{', '.join(changed)}. Restore the data to repeat the run, or take the data as it is with "
            "--data_hash '{}' (data_hash={} in Python)"
        )


def annotation_hash(dataset: Dataset | ShardedDataset) -> str:
    """The checksum of what a data set teaches, without looking at a picture.

    Ids and sizes of the images, boxes, labels, crowds and keypoints of the objects are in it, in their order; masks are
    not, they take long to read. Of shards it is their own checksum.

    Args:
        dataset: in the schema of `load_detection_dataset`.

    Returns:
        SHA-256 in hexadecimal.
    """
    if isinstance(dataset, ShardedDataset):
        return dataset.checksum
    digest = hashlib.sha256()
    wanted = ("image_id", "width", "height", "as_stored", "labelled_classes", "sample_weight")
    columns = [name for name in wanted if name in dataset.column_names]
    for batch in dataset.select_columns([*columns, "objects"]).with_format("arrow").iter(_ROWS):
        table = cast(pa.Table, batch)
        for name in columns:
            _hash_column(table[name].combine_chunks(), digest.update)
        objects = table["objects"].combine_chunks()
        for name in _TAUGHT:
            if objects.type.get_field_index(name) >= 0:
                digest.update(name.encode())
                _hash_column(pc.struct_field(objects, name), digest.update)
    return digest.hexdigest()


def _hash_split(dataset: Dataset, kind: str) -> str:
    digest = hashlib.sha256("\0".join(class_names(dataset)).encode())
    if isinstance(dataset, ShardedDataset):
        digest.update(dataset.checksum.encode())
        return digest.hexdigest()
    wanted = ("image_id", "width", "height", "as_stored", "objects", "labelled_classes", "sample_weight")
    columns = [name for name in wanted if name in dataset.column_names]
    images = dataset.select_columns(["image", *columns]).with_format("arrow")
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # reading and SHA-256 let other threads run
        for batch in images.iter(_ROWS):
            table = cast(pa.Table, batch)
            for name in columns:
                _hash_column(table[name], digest.update)
            for each in pool.map(_hash_image if kind == KINDS[0] else _length, table["image"].to_pylist()):
                digest.update(each)
    return digest.hexdigest()


def _hash_column(column: Any, update: Callable[[bytes], None]) -> None:
    """The values of an Arrow array, nested or not, however they lie in memory."""
    column = unchunked(column)
    kind = column.type
    update(f"{len(column)} {column.null_count} ".encode())
    if column.null_count:
        update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_struct(kind):
        for field in kind:
            update(field.name.encode())
            _hash_column(pc.struct_field(column, field.name), update)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        update(lengths.astype(np.int64).tobytes())
        _hash_column(pc.list_flatten(column), update)
    elif column.null_count == len(column) or not pa.types.is_primitive(kind):
        for value in column.to_pylist():  # texts and bytes
            text = value if isinstance(value, bytes) else str(value).encode()
            update(f"{len(text)} ".encode() + text)
    else:
        update(pc.fill_null(column, False if pa.types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False).tobytes())


def _hash_image(image: Mapping[str, Any] | None) -> bytes:
    if image is None:
        return b"none "
    if image["bytes"] is not None:
        return hashlib.sha256(image["bytes"]).digest()
    if (known := known_digest(image["path"])) is not None:
        return known
    digest = hashlib.sha256()
    try:
        with open(image["path"], "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DetectionDataError(f"{image['path']}: the image cannot be read ({error.strerror})") from error
    return digest.digest()


def _length(image: Mapping[str, Any] | None) -> bytes:
    if image is None:
        return b"none "
    if image["bytes"] is not None:
        return f"{len(image['bytes'])} ".encode()
    try:
        return f"{os.stat(image['path']).st_size} ".encode()
    except OSError as error:
        raise DetectionDataError(f"{image['path']}: the image cannot be read ({error.strerror})") from error
