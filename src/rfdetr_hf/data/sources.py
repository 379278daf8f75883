"""The one door to data: `load_detection_dataset`."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict, NamedSplit, load_dataset, load_from_disk

from .annotations import MissingMasks, Wanted
from .formats.coco import find_coco, find_roboflow, load_coco, locate
from .formats.columns import BoxFormat, normalise_splits
from .errors import DetectionDataError
from .keypoints import KeypointSchema
from .schema import Task
from .splits import SPLIT_NAMES, choose_splits
from .synthetic import SYNTHETIC_NAME, make_shapes_splits
from .formats.yolo import find_yolo, load_yolo

logger = logging.getLogger(__name__)

_SOURCE_HELP = (
    "it may be a Hub id, a Roboflow export, a folder with annotations/*.json, a COCO file beside its images, "
    "a YOLO data.yaml or its folder, an imagefolder with metadata, Parquet files, a folder of save_to_disk, "
    "or 'synthetic-shapes'"
)


def load_detection_dataset(
    name_or_path: str | os.PathLike[str] | Dataset | DatasetDict,
    *,
    task: Task = "detection",
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
    bbox_format: BoxFormat = "xywh",
    missing_masks: MissingMasks = "error",
    keypoint_schema: KeypointSchema | Mapping[str, Any] | None = None,
    **load_options: Any,
) -> DatasetDict:
    """Load a detection data set from anywhere, in the schema of `rfdetr_hf.data.schema`.

    Labels are contiguous, 0-based, and the same on all splits: the categories of the training split, by ascending id.
    Boxes that reach out of their image are clamped, and those of which nothing is left are dropped; both are counted in
    the log. Crowds and images without objects stay. Images are referenced, not copied.

    Args:
        name_or_path: one of

            * a Hub id, a builder of `datasets` such as "imagefolder", or a local folder that `datasets.load_dataset`
              or `datasets.load_from_disk` reads, with ``objects`` as in CPPE-5; or such a data set in memory;
            * a Roboflow COCO export: folders train, valid, test, each with ``_annotations.coco.json``;
            * a folder in COCO's own layout, ``annotations/*.json`` and image folders, or one COCO file;
            * a YOLO data set, as a data.yaml or a folder with one: rows of boxes, polygons or boxes with keypoints, in
              the layouts of Ultralytics and of Roboflow's exports;
            * "synthetic-shapes", which is generated (options: see `make_shapes_splits`).
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
        bbox_format: how the boxes of a `datasets` source are written, "xywh" or "xyxy", in pixels.
        missing_masks: with task "segmentation", what an object without a mask is: an "error", or its "box" is its mask.
        keypoint_schema: with task "keypoints", their names, skeletons, mirror pairs and sigmas for each label, where
            the source does not tell them or others are wanted; or such a schema as a dict.
        load_options: further options of `datasets.load_dataset` or `make_shapes_splits`.

    Returns:
        The splits train, validation and test, as far as there are any.

    Raises:
        DetectionDataError: the source is not found or not understood, a split is missing, or annotations are broken;
            up to ten faults with file, annotation id, field and remedy.
        TypeError: an option that this kind of source does not have.
    """
    if bbox_format not in ("xywh", "xyxy"):
        raise ValueError(f"bbox_format={bbox_format!r}: use 'xywh' or 'xyxy'")
    if isinstance(keypoint_schema, Mapping):
        keypoint_schema = KeypointSchema.from_dict(keypoint_schema)
    wanted = Wanted(task, missing_masks, keypoint_schema)
    options = {"name": name, "revision": revision, "data_files": data_files, **load_options}
    options = {key: value for key, value in options.items() if value is not None}
    in_memory = isinstance(name_or_path, (Dataset, DatasetDict))
    source = name_or_path if in_memory else os.path.expanduser(os.fspath(name_or_path))
    coco = None if in_memory else _coco_source(source, options, image_dir, class_names, wanted)
    yolo = None if in_memory or coco else _yolo_source(source, options, label_dir, class_names, wanted)
    for option, value, owner in (("image_dir", image_dir, coco), ("label_dir", label_dir, yolo)):
        if value is not None and owner is None:
            kind = "COCO layouts" if option == "image_dir" else "YOLO data sets"
            raise TypeError(f"{option} is an option of {kind}, and {_describe(source)} is none")
    found = coco or yolo or _datasets_source(source, options, class_names, bbox_format, wanted)
    share = None if isinstance(validation_split, str) else validation_split
    named = (train_split, validation_split if isinstance(validation_split, str) else None, test_split)
    chosen = choose_splits(list(found.splits), _describe(source), *named, need_train=class_names is None)
    if share is not None:
        chosen.pop("validation", None)
    if not chosen:
        raise DetectionDataError(
            f"{_describe(source)}: no split for training, validation or test among {list(found.splits)}"
        )
    splits = found.load({ours: found.splits[theirs] for ours, theirs in chosen.items()})
    return _ordered(splits if share is None else hold_out(splits, share, split_seed))


def hold_out(splits: Mapping[str, Dataset], share: float, seed: int) -> dict[str, Dataset]:
    """Move a share of the training images to a validation split; the same images for a seed, order kept.

    Raises:
        ValueError: the share is not between 0 and 1, or leaves one of the two without images.
        DetectionDataError: there is no training split.
    """
    if "train" not in splits:
        raise DetectionDataError(f"validation_split={share} holds out training images, but there is no training split")
    total = len(splits["train"])
    count = round(total * share)
    if not 0 < share < 1 or not 0 < count < total:
        raise ValueError(
            f"validation_split={share} of {total} training images: give a share between 0 and 1 that leaves both"
        )
    order = np.random.default_rng(seed).permutation(total)
    parts = {"train": np.sort(order[count:]), "validation": np.sort(order[:count])}
    held = {name: splits["train"].select(rows) for name, rows in parts.items()}
    for name, part in held.items():
        part.info.splits, part._split = None, NamedSplit(name)
    return {**splits, **held}


def _ordered(splits: Mapping[str, Dataset]) -> DatasetDict:
    return DatasetDict({name: splits[name] for name in SPLIT_NAMES if name in splits})


def _describe(source: str | Dataset | DatasetDict) -> str:
    return source if isinstance(source, str) else "the given data set"


class _Source(NamedTuple):
    """A data set that was found: its splits by their own names, and what reads those that are chosen."""

    splits: Mapping[str, Any]
    load: Callable[[Mapping[str, Any]], dict[str, Dataset]]


def _coco_source(
    source: str,
    options: dict[str, Any],
    image_dir: str | Mapping[str, str] | None,
    class_names: Sequence[str] | None,
    wanted: Wanted,
) -> _Source | None:
    root = Path(source)
    files = options.get("data_files")
    if root.is_file() and root.suffix == ".json":
        locations = {root.stem: locate(root.parent, root, root.stem)}
    elif root.is_dir() and isinstance(files, Mapping) and all(str(file).endswith(".json") for file in files.values()):
        locations = {split: locate(root, root / file, split) for split, file in files.items()}
        options = {key: value for key, value in options.items() if key != "data_files"}
    elif root.is_dir() and not files and not _is_saved(root):
        locations = find_roboflow(root) or find_coco(root, keypoints=wanted.task == "keypoints")
    else:
        return None
    if not locations:
        return None
    if options:
        raise TypeError(f"{source} is a COCO data set, which has no options {sorted(options)}")
    if image_dir is not None:
        folder = {split: image_dir if isinstance(image_dir, str) else image_dir.get(split) for split in locations}
        base = root.parent if root.is_file() else root
        locations = {split: locate(base, at.annotation_file, split, folder[split]) for split, at in locations.items()}
    return _Source(locations, lambda parts: load_coco(parts, class_names, wanted))


def _yolo_source(
    source: str,
    options: dict[str, Any],
    label_dir: str | None,
    class_names: Sequence[str] | None,
    wanted: Wanted,
) -> _Source | None:
    root = Path(source)
    config = None if options.get("data_files") or _is_saved(root) else find_yolo(root)
    if config is None:
        return None
    if options:
        raise TypeError(f"{source} is a YOLO data set, which has no options {sorted(options)}")
    splits = {name: name for name in config.splits}
    return _Source(
        splits, lambda parts: load_yolo(config, parts, class_names, wanted=wanted, label_dir=label_dir or "labels")
    )


def _datasets_source(
    source: str | Dataset | DatasetDict,
    options: dict[str, Any],
    class_names: Sequence[str] | None,
    bbox_format: BoxFormat,
    wanted: Wanted,
) -> _Source:
    splits = _open(source, options, wanted.task)
    return _Source(splits, lambda parts: normalise_splits(parts, _describe(source), class_names, bbox_format, wanted))


def _is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _open(source: str | Dataset | DatasetDict, options: dict[str, Any], task: Task) -> Mapping[str, Dataset]:
    """The splits of a source that `datasets` reads or that is generated."""
    if isinstance(source, str) and source == SYNTHETIC_NAME:
        return make_shapes_splits(task=task, **options)
    if not isinstance(source, str) or _is_saved(Path(source)):
        if options:
            raise TypeError(f"{_describe(source)} is loaded already, and has no options {sorted(options)}")
        loaded = load_from_disk(source) if isinstance(source, str) else source
    else:
        loaded = _load(source, options)
    if isinstance(loaded, Dataset):
        return {str(loaded.split or "train"): loaded}
    if not isinstance(loaded, DatasetDict):
        raise DetectionDataError(
            f"{_describe(source)}: {type(loaded).__name__} is no datasets.DatasetDict; load it without streaming"
        )
    return loaded


def _load(source: str, options: dict[str, Any]) -> Any:
    for option, remedy in (("split", "use train_split, validation_split, test_split"), ("streaming", "leave it out")):
        if option in options:
            raise TypeError(f"load_detection_dataset has no option {option!r}: {remedy}")
    looks_local = source.startswith((".", os.sep)) or source.count("/") > 1
    if looks_local and not os.path.exists(source):
        raise DetectionDataError(f"{source}: no such folder; {_SOURCE_HELP}")
    try:
        return load_dataset(source, **options)
    except (FileNotFoundError, ConnectionError) as error:
        raise DetectionDataError(f"{source}: cannot be loaded ({error}); {_SOURCE_HELP}") from error
