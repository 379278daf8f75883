"""Data from anywhere: `load_detection_dataset`."""

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, NamedSplit
from datasets.exceptions import DatasetsError

from ..choices import SAMPLINGS, SHARD_CACHE, BoxFormat, Sampling, counted
from ..tasks import TaskName
from ..values import shown
from .annotations import MissingMasks, ReadOptions
from .errors import DetectionDataError
from .fingerprint import check_data_hash
from .formats import Found, coco, cvat, hub, label_studio, shapes, shards, voc, yolo
from .images import is_hidden
from .keypoints import KeypointSchema
from .mixing import Factors, mix, with_weights
from .pipeline.pixels import set_max_image_pixels
from .sampling import class_balanced, repeat_factors
from .sense import check_sense, check_shared, with_value_range
from .shards.dataset import ShardedDataset
from .splits import SPLIT_NAMES, canonical_split, choose_splits

logger = logging.getLogger(__name__)

_HELP = (
    "it may be a Hub id, a Roboflow export, a folder with annotations/*.json, a COCO file beside its images, "
    "a YOLO data.yaml or its folder, a Pascal VOC folder, an export of CVAT or Label Studio, an imagefolder with "
    "metadata, Parquet files, a folder of save_to_disk, shards here or in a store (s3://…, gs://…, hf://…), "
    "or 'synthetic-shapes'"
)
_LAYOUTS = {
    "COCO or Roboflow COCO": coco,
    "YOLO": yolo,
    "Pascal VOC": voc,
    "CVAT": cvat,
    "Label Studio": label_studio,
    "shards": shards,
    "what datasets loads": hub,
}
Rows: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict
_MAX_CHILDREN = 50
_LONGEST_NAME = 2000
# Asked in this order; the last one takes everything.
FORMATS = (shapes, shards, coco, yolo, voc, cvat, label_studio, hub)


def load_detection_dataset(
    name_or_path: str | os.PathLike[str] | Sequence[str] | Rows | None = None,
    *,
    sources: Sequence[Any] | Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
    repeat_threshold: float = 0.001,
    task: TaskName = "detection",
    name: str | None = None,
    revision: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    image_dir: str | Mapping[str, str] | None = None,
    label_dir: str | None = None,
    train_split: str | None = None,
    validation_split: str | float | None = None,
    test_split: str | None = None,
    split_seed: int = 0,
    class_names: Sequence[str] | None = None,
    bbox_format: BoxFormat | None = None,
    missing_masks: MissingMasks = "error",
    max_image_pixels: int | None = None,
    keypoint_schema: KeypointSchema | Mapping[str, Any] | None = None,
    data_hash: Mapping[str, str] | None = None,
    shard_window: int = 8,
    shard_cache: str = SHARD_CACHE,
    shard_cache_gb: int = 64,
    **load_options: Any,
) -> DatasetDict:
    """Load a detection data set from anywhere: rows of an image and its `objects`, named as on the Hub.

    Labels are contiguous, 0-based, and the same on all splits: the categories of the training split, by ascending id.
    Boxes that reach out of their image are clamped, and those of which nothing is left are dropped; both are counted in
    the log. Crowds and images without objects stay. Images are referenced, not copied.

    Args:
        name_or_path: one of

            * a Hub id, a builder of `datasets` such as "imagefolder", or a local folder that `datasets.load_dataset`
              or `datasets.load_from_disk` reads, with ``objects`` as in CPPE-5, or with its fields as columns of
              lists; or such a data set in memory; of an `IterableDataset` all rows are read into the cache first;
            * a Roboflow COCO export: folders train, valid, test, each with ``_annotations.coco.json``;
            * a folder in COCO's own layout, ``annotations/*.json`` and image folders, or one COCO file;
            * a YOLO data set, as a data.yaml or a folder with one: rows of boxes, polygons or boxes with keypoints, in
              the layouts of Ultralytics and of Roboflow's exports;
            * a Pascal VOC folder: ``Annotations/*.xml`` with ``ImageSets/`` or without, folders of splits with XML
              files, or XML files beside their pictures; ``difficult`` objects are ignored as crowds are;
            * an export "CVAT for images 1.1", an XML file or its folder: boxes, polygons, ellipses, masks, skeletons;
            * an export "JSON" of Label Studio, the file or its folder: rectangles, polygons, ellipses, brush strokes,
              and keypoints with a parent region;
            * shards that `convert_dataset` has written, in a folder or under an address such as ``s3://bucket/data``,
              or a list of such places (also as one text, with commas between); Parquet files of the same columns by
              their address, without an index. Such splits are `ShardedDataset`s: a row is read when it is asked for;
            * "synthetic-shapes", which is generated (options: see `make_shapes_splits`).
        sources: several data sets instead of one: names, or mappings with `name_or_path`, `share` (of the training
            samples; of all sources or of none), `classes` (such as ``{"person": ["pedestrian", "rider"]}``), `prefix`
            (before the names of other classes), `splits` (which are used) and other arguments of this function; or
            a mapping of names to such mappings, the name being `name_or_path` where there is none. The label table is
            their classes in this order. Classes that a source does not have are no negatives in its images. Images get
            new numbers.
        sampling: how often training images are drawn: "repeat_factor" (LVIS', rare classes more often) or
            "class_balanced" (all classes equally often); None draws each image once. With shares within the source.
        repeat_threshold: the share of images below which "repeat_factor" draws a class more often.
        task: "segmentation" brings masks (``objects.segmentation``), "keypoints" keypoints (``objects.keypoints`` and
            `keypoint_schema`); "detection" leaves both out.
        name: configuration of a Hub data set.
        revision: git revision of a Hub data set.
        data_files: as for `datasets.load_dataset`; for a COCO layout {split: annotation file}.
        image_dir: the image folder of a COCO layout where it is not found by itself, for all splits or {split: folder}.
        label_dir: what the folders of YOLO rows are called, "labels" by default: it stands in the place of the last
            folder "images" of an image's path.
        train_split: what the source calls its training split, if not something like "train" or "train2017".
        validation_split: likewise; or a share between 0 and 1 of the training images to hold out, always the same ones
            for a `split_seed`. None takes the one that the source has, if any.
        test_split: like `train_split`.
        split_seed: seed of the held-out share.
        class_names: the label table to use instead of the training split's, for instance a model's; with it the
            training split may be missing. Gives names to categories that are plain integers 0, 1, 2….
        bbox_format: how the boxes are written: "xywh" (left, top, width, height), "xyxy" or "cxcywh" in pixels; "yxhw",
            "yxyx" and "cycxhw" have y before x; an "n" at the end means shares of width and height. By default
            "cxcywhn" in YOLO rows and "xywh" elsewhere.
            Boxes that make sense only in another format are an error that names it.
        missing_masks: with task "segmentation", what an object without a mask is: an "error", or its "box" is its mask.
        max_image_pixels: the largest image that is decoded, in this process and those that it starts; larger ones are
            errors. By default Pillow's limit, 179 million.
        keypoint_schema: with task "keypoints", their names, skeletons, mirror pairs and sigmas for each label, where
            the source does not name them or others are better; or such a schema as a dict.
        data_hash: the checksums that the splits must have, as `args.yaml` of a run holds them; empty for any.
        shard_window: shards whose rows a training mixes at a time.
        shard_cache: folder on a local disk for the shards of a store.
        shard_cache_gb: gigabytes that the folder may hold; those that were not used for longest are removed.
        load_options: further options of `datasets.load_dataset` or `make_shapes_splits`.

    Returns:
        The splits train, validation and test, as far as there are any.

    Raises:
        DetectionDataError: the source is not found or not understood, a split is missing, or annotations are broken;
            up to ten faults with file, annotation id, field and remedy.
        TypeError: an option that this kind of source does not have, or neither or both of `name_or_path` and `sources`.
    """
    if isinstance(keypoint_schema, Mapping):
        keypoint_schema = KeypointSchema.from_dict(keypoint_schema)
    if max_image_pixels is not None:
        set_max_image_pixels(max_image_pixels)
    named_options = {"name": name, "revision": revision, "data_files": data_files, **load_options}
    load = {key: value for key, value in named_options.items() if value is not None}
    options = ReadOptions(
        task=task, missing_masks=missing_masks, keypoints=keypoint_schema, class_names=class_names,
        bbox_format=bbox_format, image_dir=image_dir, label_dir=label_dir, need_test=test_split is not None, load=load,
        shard_window=shard_window, shard_cache=shard_cache, shard_cache_gb=shard_cache_gb,
    )  # fmt: skip
    share = None if isinstance(validation_split, str) else validation_split
    named = (train_split, validation_split if isinstance(validation_split, str) else None, test_split)
    factors = _factors(sampling, repeat_threshold)
    if sources is not None:
        source, splits = "sources", _read_sources(sources, name_or_path, options, named, factors, share, split_seed)
    else:
        source, splits = _read_one(name_or_path, options, named, share)
    check_sense(splits, source)
    if share is not None:
        splits = hold_out(splits, share, split_seed)
        check_shared(splits, source, compare=False)
    if factors is not None and sources is None and "train" in splits:
        if not isinstance(splits["train"], Dataset):
            raise DetectionDataError(f"{source}: sampling={sampling!r} needs rows at hand, and these are shards")
        splits = {**splits, "train": with_weights(splits["train"], factors(splits["train"]), source)}
    check_data_hash(splits, data_hash or {}, source)
    return DatasetDict([(name, splits[name]) for name in SPLIT_NAMES if name in splits])


def _read_one(
    name_or_path: Any, options: ReadOptions, named: tuple[str | None, str | None, str | None], share: float | None
) -> tuple[str, dict[str, Dataset]]:
    """The splits of one data set, and its name; without its validation split where a share is held out instead."""
    found, reader = _recognise(source_of(name_or_path), options)
    chosen = choose_splits(list(found.splits), found.source, *named, need_train=options.class_names is None)
    if share is not None and "validation" in chosen:
        logger.warning(
            "%s: its split %r is not used: validation_split=%s holds out training images instead",
            found.source, chosen.pop("validation"), share,
        )  # fmt: skip
    if not chosen:
        raise DetectionDataError(f"{found.source}: no split for training, validation or test: {list(found.splits)}")
    splits = reader.read(found, {ours: found.splits[theirs] for ours, theirs in chosen.items()}, options)
    counts = ", ".join(f"{ours} ({chosen[ours]}) {counted(len(split), 'image')}" for ours, split in splits.items())
    logger.info("%s: %s, %s: %s", found.source, found.kind, counted(len(splits), "split"), counts)
    return found.source, with_value_range(splits, found.source)


def _read_sources(
    sources: Sequence[Any] | Mapping[str, Any],
    name_or_path: Any,
    options: ReadOptions,
    named: tuple[Any, ...],
    factors: Factors | None,
    share: float | None,
    split_seed: int,
) -> dict[str, Dataset]:
    """The splits of a mixture; what belongs to one source is refused beside them.

    Without its validation split where a share is held out instead.
    """
    alone = {"name_or_path": name_or_path, "train_split, validation_split or test_split": any(named) or None}
    alone |= {name: getattr(options, name) for name in ("image_dir", "label_dir", "bbox_format")}
    alone |= {"keypoint_schema": options.keypoints, **options.load}
    usual, of_shards = ReadOptions(), ("shard_window", "shard_cache", "shard_cache_gb")
    alone |= {name: value for name in of_shards if (value := getattr(options, name)) != getattr(usual, name)}
    given = [name for name, value in alone.items() if value is not None]
    if given:
        raise TypeError(f"{', '.join(given)}: belongs to one data set; with sources give it in one of them")
    common = {"task": options.task, "missing_masks": options.missing_masks, "split_seed": split_seed}

    def load(name_or_path: Any, **own: Any) -> DatasetDict:
        return load_detection_dataset(name_or_path, **{**common, **own})

    splits = mix(sources, load, options.class_names, factors)
    if share is not None and "validation" in splits:
        logger.warning(
            "sources: their validation splits, %s, are not used: validation_split=%s holds out training images "
            "instead", counted(len(splits.pop("validation")), "image"), share,
        )  # fmt: skip
    return splits


def _factors(sampling: Sampling | None, threshold: float) -> Factors | None:
    if sampling not in (None, *SAMPLINGS):
        raise ValueError(f"sampling={sampling!r}: use one of {list(SAMPLINGS)}, or None")
    if not 0 < threshold <= 1:
        raise ValueError(f"repeat_threshold={threshold}: give a share of images above 0 and up to 1")
    if sampling is None:
        return None
    return class_balanced if sampling == "class_balanced" else partial(repeat_factors, threshold=threshold)


def _stored(stream: IterableDataset) -> Dataset:
    """The rows of a stream, read once into the cache of `datasets`: an order of epochs needs rows to go back to."""
    features = stream.features
    for name, feature in (features or {}).items():
        if isinstance(feature, Image):
            stream = stream.cast_column(name, Image(decode=False))  # keeps the bytes of the files
    split = stream.split or NamedSplit("train")
    # The cache knows a stream by its object, and not by what it yields this time.
    given = {"stream": stream, "reading": uuid.uuid4().hex}
    try:
        rows = Dataset.from_generator(_rows, features=features, gen_kwargs=given, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        kind = "" if isinstance(cause, DetectionDataError) else f"{type(cause).__name__}: "
        raise DetectionDataError(f"{split} split: the stream cannot be read into the cache: {kind}{cause}") from error
    size = (rows.dataset_size or 0) / 1e6
    logger.info("%s: %s of the stream, %.0f MB, in the cache of datasets", split, counted(len(rows), "row"), size)
    return cast(Dataset, rows)


def _rows(stream: IterableDataset, reading: str) -> Iterator[dict[str, Any]]:
    number, column, features = 0, "", stream.features or Features()
    kinds = {each.name: each.type for each in features.arrow_schema if not isinstance(features[each.name], Image)}
    try:
        for row in stream:
            encoded: Any = features.encode_example(row) if kinds else row
            for column, kind in kinds.items():
                pa.array([encoded[column]], kind)  # as the cache does, which does not name row and column
            column = ""
            yield row
            number += 1
    except Exception as error:  # whatever the user's own code raises
        raise DetectionDataError(
            f"row {number}{column and f', column {column}'}: {type(error).__name__}: {str(error)[:300]}; each row has "
            "what the features of the stream say: correct it, or leave it out"
        ) from error
    if not number:
        raise DetectionDataError("there is no row; give a stream of an image and its objects in each row")


def source_of(name_or_path: Any) -> Any:
    """A data set in memory, a name or path as text; the rows of a stream are read into the cache of `datasets`.

    Raises:
        TypeError: it is neither.
        DetectionDataError: it is no name, or looks like a path and does not exist.
    """
    if isinstance(name_or_path, (Dataset, DatasetDict)):
        return name_or_path
    if isinstance(name_or_path, IterableDataset):
        return _stored(name_or_path)
    if isinstance(name_or_path, IterableDatasetDict):
        return DatasetDict({name: _stored(stream) for name, stream in name_or_path.items()})
    if isinstance(name_or_path, (list, tuple)):
        odd = [each for each in name_or_path if not isinstance(each, (str, os.PathLike))]
        if odd or not name_or_path:
            found = type(odd[0]).__name__ if odd else "empty"
            raise TypeError(f"a list is one of names and paths of shards, not {found}; mix data sets with sources=[…]")
        return [source_of(each) for each in name_or_path]
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"a data set is a name, a path, a data set of datasets, not {type(name_or_path).__name__}")
    root = os.path.expanduser(os.fspath(name_or_path))
    parts = root.split(",")
    if len(parts) > 1 and all("://" in part or os.path.isdir(part) for part in parts):
        return parts
    if "://" in root:
        return root
    if not root.strip() or "\0" in root or len(root) > _LONGEST_NAME:
        raise DetectionDataError(f"the name of the data set is {shown(root)}; give a Hub id or a path ({_HELP})")
    looks_local = root.startswith((".", os.sep)) or root.count("/") > 1
    if looks_local and not os.path.exists(root):
        there = next((str(place) for place in Path(root).parents if place.exists()), None)
        nearest = f"; the part of the path that exists is {there}" if there not in (None, os.sep, ".") else ""
        raise DetectionDataError(f"{root}: no such folder{nearest}; {_HELP}")
    return root


def _recognise(root: Any, options: ReadOptions) -> tuple[Found, Any]:
    """The format of a source, by evidence: the one that finds most of the splits train, validation and test."""
    candidates: list[tuple[Found, Any]] = []
    faults: list[tuple[Any, Exception]] = []
    for each in FORMATS:
        if each is hub and (candidates or faults):
            break
        try:
            found = each.find(root, options)
        except (DetectionDataError, TypeError) as error:
            faults.append((each, error))
            continue
        if found is not None:
            candidates.append((found, each))
    if candidates:
        best = max(candidates, key=lambda pair: len({canonical_split(name) for name in pair[0].splits} - {None}))
        for found, _ in candidates:
            if found is not best[0]:
                logger.warning(
                    "%s: is read as %s; there is also %s with the splits %s, to be read by the path of its file",
                    found.source, best[0].kind, found.kind, list(found.splits),
                )  # fmt: skip
        # An option that a format does not have shows that another one is meant.
        for each, error in faults:
            if isinstance(error, DetectionDataError) and each is yolo and yolo.has_rows(Path(root)):
                raise DetectionDataError(
                    f"{error}\nThere are YOLO rows below {root}, and also {best[0].kind} with the splits "
                    f"{list(best[0].splits)}, which is read instead by the path of its file"
                ) from error
            if isinstance(error, DetectionDataError):
                logger.warning("%s: is read as %s; also there, and not read: %s", root, best[0].kind, error)
        return best
    if faults:
        raise faults[0][1]
    folder = Path(root)
    lines = [f"  - {kind}: {each.near(folder)}" for kind, each in _LAYOUTS.items()]
    for child in sorted(folder.iterdir())[:_MAX_CHILDREN] if folder.is_dir() else ():
        if child.is_dir() and not is_hidden(child.name):
            for each in (coco, yolo, voc, cvat, label_studio):
                with contextlib.suppress(DetectionDataError, TypeError):
                    inner = each.find(str(child), options)
                    lines += [f"  - its folder {child.name} is {inner.kind}: give {child}"] if inner else []
    head = f"{root}: no data set is recognised there; give the folder or the file of one of these. Looked for:"
    raise DetectionDataError("\n".join([head, *lines]))


def hold_out(splits: Mapping[str, Any], share: float, seed: int) -> dict[str, Any]:
    """Move a share of the training images to a validation split; the same images for a seed, order kept.

    Of shards complete ones are moved.

    Raises:
        ValueError: the share is not between 0 and 1, or leaves one of the two without images.
        DetectionDataError: there is no training split.
    """
    if "train" not in splits:
        raise DetectionDataError(f"validation_split={share} holds out training images, but there is no training split")
    train = splits["train"]
    total = len(train.shards) if isinstance(train, ShardedDataset) else len(train)
    noun = "shards" if isinstance(train, ShardedDataset) else "images"
    count = round(total * share)
    if not 0 < share < 1 or not 0 < count < total:
        raise ValueError(
            f"validation_split={share} of {total} training {noun}: give a share between 0 and 1 that leaves both"
        )
    order = np.random.default_rng(seed).permutation(total)
    parts = {"train": np.sort(order[count:]), "validation": np.sort(order[:count])}
    if isinstance(train, ShardedDataset):
        return {**splits, **{name: train.select_shards(rows, name) for name, rows in parts.items()}}
    held = {name: splits["train"].select(rows) for name, rows in parts.items()}
    for name, part in held.items():
        part.info.splits, part._split = None, NamedSplit(name)
    if "sample_weight" in held["validation"].column_names:
        held["validation"] = held["validation"].remove_columns("sample_weight")
    return {**splits, **held}
