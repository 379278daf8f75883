"""Data sets of shards, here or in a store: with the index of `data convert`, or by the footers of Parquet files."""

import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from ...choices import counted
from ...tasks import BOXES_ALONE, TASKS
from ..annotations import ReadOptions
from ..errors import DetectionDataError
from ..shards.cache import ShardCache, open_filesystem, with_retries
from ..shards.counts import Counts
from ..shards.dataset import ShardedDataset
from ..shards.index import FORMATS, INDEX, KEY, ShardList, read_index
from ..shards.labels import relabelled_counts, relabelled_features
from ..splits import canonical_split
from . import Found

logger = logging.getLogger(__name__)

_TAIL = 1 << 16  # bytes of a file's end that hold most footers
_THREADS = 16
_NUMBERED = re.compile(r"(.*?)-(\d+)-of-(\d+)\.parquet")
_NEEDED = ("image", "image_id", "width", "height", "objects")
_WRITE = "rfdetr-hf data convert SRC DST writes such shards"


class _Source(NamedTuple):
    """One folder or address of shards, or several.

    Attributes:
        format: one of `FORMATS`.
        features: of the rows.
        splits: with complete paths.
        remote: whether it is not on this machine.
        count: data sets in it, each with image ids of its own.
    """

    format: str
    features: Features
    splits: Mapping[str, ShardList]
    remote: bool
    count: int = 1


def find(root: Any, options: ReadOptions) -> Found | None:
    """A folder with an index, an address, or a list of both; no shard is opened.

    Raises:
        DetectionDataError: nothing is there, or what is there are no shards of one data set.
        TypeError: an option that shards do not have.
    """
    if isinstance(root, str) and "://" not in root and not os.path.isfile(os.path.join(root, INDEX)):
        return None
    if not isinstance(root, str) and not isinstance(root, list):
        return None
    names = [root] if isinstance(root, str) else root
    title = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    options.refuse(title, "is a data set of shards, which", "load", "image_dir", "label_dir", "bbox_format")
    if not names:
        raise DetectionDataError("the list of data sets is empty: give folders or addresses of shards")
    sources = [_open(name) for name in names]
    first = sources[0]
    for name, each in zip(names, sources, strict=True):
        if (each.format, each.remote) != (first.format, first.remote) or each.features != first.features:
            raise DetectionDataError(
                f"{name} and {names[0]} differ in format, place, columns or classes; convert them to one data set, "
                "or give those of one kind"
            )
    splits = {split: _joined([each.splits[split] for each in sources if split in each.splits])
              for each in sources for split in each.splits}  # fmt: skip
    files = [os.path.realpath(file) if os.path.exists(file) else file
             for each in splits.values() for file in each.files.to_pylist()] if len(names) > 1 else []  # fmt: skip
    if twice := next((file for file, count in Counter(files).items() if count > 1), None):
        raise DetectionDataError(f"the list of data sets has {twice} twice; name each folder, address and file once")
    kind = "shards" if all(each.counts is not None for each in splits.values()) else "shards without an index"
    apart = all(each.has_own_ids for each in splits.values())
    return Found(title, kind, splits, first._replace(count=1 if apart else sum(each.count for each in sources)))


def near(folder: Path) -> str:
    """How near a folder comes to a data set of shards."""
    return f"no {INDEX}, which rfdetr-hf data convert writes"


def read(found: Found, splits: Mapping[str, ShardList], options: ReadOptions) -> dict[str, Any]:
    """The splits, with what the task needs; no shard is opened.

    Raises:
        DetectionDataError: the rows lack what the task needs, or have other classes than those that were asked for.
    """
    source: _Source = found.details
    fields: Any = source.features["objects"]
    if options.keypoints is not None:
        raise DetectionDataError(f"{found.source}: keypoint_schema is part of shards; leave it out, or convert with it")
    part = TASKS[options.task].object_field
    if part is not None and part not in fields:
        raise DetectionDataError(
            f"{found.source}: task={options.task!r} needs the field objects.{part}, and the shards have "
            f"{sorted(fields)}; write them again with --task {options.task}, or {BOXES_ALONE}"
        )
    others = {task.object_field for task in TASKS.values()} - {part, None}
    kept = {name: feature for name, feature in fields.items() if name not in others}
    features, labels = Features({**source.features, "objects": kept}), None
    if features.pop("sample_weight", None) is not None:
        logger.warning(
            "%s: its column sample_weight is not used: images of shards are drawn equally often; for weights load the "
            "rows with datasets.load_dataset and hand them over", found.source,
        )  # fmt: skip
    stored = fields["category"].feature.names
    if options.class_names is not None and list(options.class_names) != stored:
        features, labels = relabelled_features(features, list(options.class_names), found.source)
        for split, shards in splits.items():
            counted = zip(stored, labels, shards.counts.objects if shards.counts else (), strict=False)
            if lost := [name for name, label, objects in counted if label < 0 and objects]:
                raise DetectionDataError(
                    f"{found.source}: split {split} has objects of {lost}, which are not in class_names "
                    f"{list(options.class_names)}; give these names too, or write the shards again without them"
                )
    cache = None
    if source.remote:
        cache = ShardCache(options.shard_cache, options.shard_cache_gb << 30)
    if source.count > 1:
        logger.warning(
            "%s: %d data sets as one, whose image ids may be the same: the image_id of an image is the number of its "
            "row, also in files of detections; its file_name stays", found.source, source.count,
        )  # fmt: skip
    made = {}
    for split, shards in splits.items():
        largest = int(np.sort(shards.sizes)[-options.shard_window :].sum())
        if cache is not None and largest > cache.limit:
            raise DetectionDataError(
                f"{found.source}: {options.shard_window} shards of split {split} have up to {largest / 2**30:.1f} GB, "
                f"and shard_cache_gb={options.shard_cache_gb}: raise it, or lower shard_window"
            )
        if labels is not None:
            shards = replace(shards, counts=relabelled_counts(shards.counts, labels, len(options.class_names or ())))
        made[split] = ShardedDataset(
            found.source, source.format, features, shards, split, options.shard_window, cache,
            None if labels is None else (stored, labels), renumbered=source.count > 1,
        )  # fmt: skip
    return made


def _open(name: str) -> _Source:
    files, path = open_filesystem(name)
    remote = "file" not in (files.protocol if isinstance(files.protocol, (tuple, list)) else (files.protocol,))
    index = f"{path.rstrip('/')}/{INDEX}"
    if not path.endswith(".parquet") and with_retries(f"{name}/{INDEX}", lambda: files.exists(index)):
        content = with_retries(f"{name}/{INDEX}", lambda: files.cat_file(index))
        found = read_index(pa.BufferReader(content), f"{name}/{INDEX}")
        base = name.rstrip("/") if remote else path.rstrip("/")
        splits = {split: each.below(base) for split, each in found.splits.items()}
        pa.default_memory_pool().release_unused()  # else it keeps most of what reading took, 70 MB of 134,000 shards
        if not remote:
            _report_unknown(path, FORMATS[found.format], found.splits)
        return _Source(found.format, found.features, splits, remote)
    return _from_footers(name, files, path, remote)


def _report_unknown(folder: str, suffix: str, splits: Mapping[str, ShardList]) -> None:
    """Warn of shards that lie beside those of the index."""
    folders = {os.path.dirname(str(file)) for each in splits.values() for file in each.files}
    names = [os.path.join(each, name) for each in sorted(folders) if os.path.isdir(os.path.join(folder, each))
             for name in sorted(os.listdir(os.path.join(folder, each))) if name.endswith(suffix)]  # fmt: skip
    known: set[str] = set()
    for each in splits.values() if names else ():
        known.update(each.files.to_pylist())
    unknown = [n for n in names if n not in known and os.path.basename(n)[0] not in "._"]
    if unknown:
        logger.warning(
            "%s: %s not in %s and left out, such as %s; write the index again to have all",
            folder, counted(len(unknown), "shard", "is"), INDEX, unknown[0],
        )  # fmt: skip


def _from_footers(name: str, files: Any, path: str, remote: bool) -> _Source:
    """What the footers of Parquet files say; one request lists the files, one or two read each footer."""
    started = time.perf_counter()
    listed = with_retries(name, lambda: files.find(path, detail=True))
    sizes = {file: int(about["size"]) for file, about in sorted(listed.items()) if file.endswith(".parquet")}
    sizes = {file: size for file, size in sizes.items() if not os.path.basename(file).startswith(("_", "."))}
    if not sizes:
        tars = sum(file.endswith(FORMATS["webdataset"]) for file in listed)
        what = f"{tars} tar files without {INDEX}, which says how many rows they have" if tars else "no Parquet file"
        raise DetectionDataError(f"{name}: {what} (of {len(listed)} files there); {_WRITE}")
    placed = _splits_of(list(sizes), path, name)
    _refuse_gaps([file for file in placed if file != path], name)
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = list(pool.map(lambda file: _footer(files, name, file, sizes[file]), placed))
    schema, first = None, next(iter(placed))
    parts: dict[str, list[tuple[str, int, int, Counts | None, str, tuple[int, int] | None]]] = {}
    generations: dict[tuple[str, str], str] = {}
    for (file, split), (metadata, _, digest) in zip(placed.items(), footers, strict=True):
        found = metadata.schema.to_arrow_schema()
        if schema is not None and not found.equals(schema):
            raise DetectionDataError(f"{name}: {file} has other columns than {first}; {_WRITE}")
        schema = found
        about = json.loads((metadata.metadata or {}).get(KEY) or "{}")
        counts = Counts.from_dict(about["counts"]) if about else None
        identity = about.get("identity") or ""
        if identity and generations.setdefault((os.path.dirname(file), split), identity) != identity:
            raise DetectionDataError(
                f"{name}: {file} and others of its split beside it are of different data sets, written one over the "
                f"other; remove those of one. {_WRITE}"
            )
        address = files.unstrip_protocol(file) if remote else file
        if metadata.num_rows:
            row = address, metadata.num_rows, sizes[file], counts, identity or digest, _ids_of(metadata)
            parts.setdefault(split, []).append(row)
    features = _features_of(schema, f"{name}: {first}")
    logger.info(
        "%s: no %s: the footers of %d files were read with %d requests in %.1f s", name, INDEX, len(placed),
        1 + sum(requests for _, requests, _ in footers), time.perf_counter() - started,
    )  # fmt: skip
    splits = {}
    for split, rows in parts.items():
        addresses, numbers, of_files, counted, identities, ids = zip(*rows, strict=True)
        total = None if None in counted else sum(counted, Counts())
        known = np.array(identities, object)
        splits[split] = ShardList(pa.array(addresses), np.array(numbers), np.array(of_files), total, known, ids)
    return _Source("parquet", features, splits, remote, max(1, len(set(generations.values()))))


def _ids_of(metadata: Any) -> tuple[int, int] | None:
    """The least and the largest image id of a Parquet file, where its footer says."""
    columns = range(metadata.num_columns)
    place = next((each for each in columns if metadata.schema.column(each).path == "image_id"), None)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups if place is not None else 0)]
    found = [group.column(place).statistics for group in groups]
    if not found or not all(each is not None and each.has_min_max and isinstance(each.min, int) for each in found):
        return None
    return min(each.min for each in found), max(each.max for each in found)


def _splits_of(files: Sequence[str], root: str, name: str) -> dict[str, str]:
    """The split of each file, by its name or that of the nearest folder that names one; train where none does.

    Where none does, the folder that was given may; where some name a split, others are left out with a warning.
    """
    inside = root.rstrip("/")
    found: dict[str, str | None] = {}
    for file in files:
        parts = (os.path.basename(file) if file == inside else file.removeprefix(inside).strip("/")).split("/")
        found[file] = next(filter(None, map(canonical_split, reversed(parts))), None)
    unnamed = [file for file, split in found.items() if split is None]
    if unnamed and len(unnamed) < len(found):
        logger.warning(
            "%s: %d of %d Parquet files name no split, and the others do: they are left out, such as %s; have train, "
            "validation or test in the name of the file or of its folder", name, len(unnamed), len(found), unnamed[0],
        )  # fmt: skip
        return {file: split for file, split in found.items() if split is not None}
    above = os.path.dirname(inside) if inside in found else inside
    # A word in the name of a folder far above, such as a project's, says less than "validation".
    near = os.path.basename(above).isalpha() or all(os.path.dirname(file) == above for file in files)
    common = (near and canonical_split(os.path.basename(above))) or "train"
    return {file: split or common for file, split in found.items()}


def _refuse_gaps(files: Sequence[str], name: str) -> None:
    """Files that are numbered "of" a total are all there, and of one total.

    Raises:
        DetectionDataError: some are missing, or files of two generations lie side by side.
    """
    series: dict[str, dict[int, set[int]]] = {}
    for file in files:
        if match := _NUMBERED.fullmatch(file):
            series.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(int(match[2]))
    for stem, totals in series.items():
        if len(totals) > 1:
            raise DetectionDataError(
                f"{name}: {stem} is there in {' files and in '.join(map(str, sorted(totals)))} files: written twice; "
                "remove those of one"
            )
        total, numbers = next(iter(totals.items()))
        first = 0 if 0 in numbers or total not in numbers else 1
        missing = sorted(set(range(first, first + total)) - numbers)
        if missing:
            raise DetectionDataError(
                f"{name}: {stem} has {len(numbers)} of {total} files: number {missing[0]} is missing"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; restore them, or name the files that "
                "are to be used one by one, with commas between"
            )


def _footer(files: Any, name: str, file: str, size: int) -> tuple[Any, int, str]:
    """The metadata of a Parquet file, how many requests it took, and a checksum of the footer."""
    start = max(0, size - _TAIL)
    tail = with_retries(file, lambda: files.cat_file(file, start=start, end=size))
    requests, length = 1, int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise DetectionDataError(f"{name}: {file} is no Parquet file, or is cut; write it again")
    if length > len(tail):
        tail, requests = with_retries(file, lambda: files.cat_file(file, start=size - length, end=size)), 2
    try:
        digest = hashlib.sha256(tail[-length:]).hexdigest()[:16]
        return pq.read_metadata(pa.BufferReader(tail)), requests, digest
    except pa.ArrowException as error:
        raise DetectionDataError(f"{name}: {file} is no Parquet file ({error}); write it again") from error


def _features_of(schema: Any, name: str) -> Features:
    """The features that `datasets` has written into a schema.

    Raises:
        DetectionDataError: they are not those of `rfdetr_hf.data.schema`.
    """
    features = Features.from_arrow_schema(schema)
    missing = [column for column in _NEEDED if column not in features]
    objects: Any = features.get("objects")
    if missing or not isinstance(objects, Mapping):
        raise DetectionDataError(f"{name}: columns {missing or ['objects']} are missing or of another form; {_WRITE}")
    lacking = [field for field in ("id", "bbox", "category", "area", "iscrowd") if field not in objects]
    label = None if lacking else getattr(objects["category"], "feature", None)
    if not isinstance(label, ClassLabel):
        raise DetectionDataError(f"{name}: fields {lacking or ['category']} of objects are not as needed; {_WRITE}")
    return features


def _joined(parts: Sequence[ShardList]) -> ShardList:
    if len(parts) == 1:
        return parts[0]
    counted = [each.counts for each in parts]
    total = None if None in counted else sum(filter(None, counted), Counts())
    files = pa.concat_arrays([each.files for each in parts])
    rows, sizes = (np.concatenate([getattr(each, name) for each in parts]) for name in ("rows", "sizes"))
    known = [np.full(len(each), None, object) if each.identities is None else each.identities for each in parts]
    identities = np.concatenate(known)
    return ShardList(files, rows, sizes, total, identities, tuple(ids for each in parts for ids in each.ids))
