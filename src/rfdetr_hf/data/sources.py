"""The one door to data: `load_detection_dataset`."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, NamedSplit, load_dataset, load_from_disk

from .coco import CocoLocation, find_coco, find_roboflow, load_coco, locate
from .columns import BoxFormat, normalise_splits
from .errors import DetectionDataError
from .splits import SPLIT_NAMES, choose_splits
from .synthetic import SYNTHETIC_NAME, make_shapes_splits

logger = logging.getLogger(__name__)

_SOURCE_HELP = (
    "it may be a Hub id, a Roboflow COCO export, a folder with annotations/*.json, a COCO file beside its images, "
    "an imagefolder with metadata, Parquet files, a folder of save_to_disk, or 'synthetic-shapes'"
)


def load_detection_dataset(
    name_or_path: str | os.PathLike[str] | Dataset | DatasetDict,
    *,
    name: str | None = None,
    revision: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    image_dir: str | Mapping[str, str] | None = None,
    train_split: str | None = None,
    validation_split: str | float | None = None,
    test_split: str | None = None,
    split_seed: int = 0,
    class_names: Sequence[str] | None = None,
    bbox_format: BoxFormat = "xywh",
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
            * "synthetic-shapes", which is generated (options: see `make_shapes_splits`).
        name: configuration of a Hub data set.
        revision: git revision of a Hub data set.
        data_files: as for `datasets.load_dataset`; for a COCO layout {split: annotation file}.
        image_dir: the image folder of a COCO layout where it is not found by itself, for all splits or {split: folder}.
        train_split: what the source calls its training split, if not something like "train" or "train2017".
        validation_split: likewise; or a share between 0 and 1 of the training images to hold out, always the same ones
            for a `split_seed`. None takes the one that the source has, if any.
        test_split: like `train_split`.
        split_seed: seed of the held-out share.
        class_names: the label table to use instead of the training split's, for instance a model's; with it the
            training split may be missing. Gives names to categories that are plain integers 0, 1, 2….
        bbox_format: how the boxes of a `datasets` source are written, "xywh" or "xyxy", in pixels.
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
    share = None if isinstance(validation_split, str) else validation_split
    wanted = (train_split, validation_split if isinstance(validation_split, str) else None, test_split)
    options = {"name": name, "revision": revision, "data_files": data_files, **load_options}
    options = {key: value for key, value in options.items() if value is not None}
    source = name_or_path if isinstance(name_or_path, (Dataset, DatasetDict)) else os.fspath(name_or_path)
    locations = {} if isinstance(source, (Dataset, DatasetDict)) else _coco_locations(source, options, image_dir)
    if image_dir is not None and not locations:
        raise TypeError(f"image_dir is an option of COCO layouts, and {_describe(source)} is none")
    found: Mapping[str, Any] = locations or _open(source, options)
    chosen = choose_splits(list(found), _describe(source), *wanted, need_train=class_names is None)
    if share is not None:
        chosen.pop("validation", None)
    parts = {ours: found[theirs] for ours, theirs in chosen.items()}
    if not parts:
        raise DetectionDataError(f"{_describe(source)}: no split for training, validation or test among {list(found)}")
    if locations:
        splits = load_coco(parts, class_names)
    else:
        splits = normalise_splits(parts, _describe(source), class_names, bbox_format)
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


def _coco_locations(
    source: str, options: dict[str, Any], image_dir: str | Mapping[str, str] | None
) -> dict[str, CocoLocation]:
    """The splits of a COCO source; empty when the source is none."""
    root = Path(source).expanduser()
    files = options.get("data_files")
    if root.is_file() and root.suffix == ".json":
        locations = {root.stem: locate(root.parent, root, root.stem)}
    elif root.is_dir() and isinstance(files, Mapping) and all(str(file).endswith(".json") for file in files.values()):
        locations = {split: locate(root, root / file, split) for split, file in files.items()}
        options = {key: value for key, value in options.items() if key != "data_files"}
    elif root.is_dir() and not files and not _is_saved(root):
        locations = find_roboflow(root) or find_coco(root)
    else:
        return {}
    if locations and options:
        raise TypeError(f"{source} is a COCO data set, which has no options {sorted(options)}")
    if image_dir is not None:
        folder = {split: image_dir if isinstance(image_dir, str) else image_dir.get(split) for split in locations}
        base = root.parent if root.is_file() else root
        locations = {split: locate(base, at.annotation_file, split, folder[split]) for split, at in locations.items()}
    return locations


def _is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _open(source: str | Dataset | DatasetDict, options: dict[str, Any]) -> Mapping[str, Dataset]:
    """The splits of a source that `datasets` reads or that is generated."""
    if isinstance(source, str) and source == SYNTHETIC_NAME:
        return make_shapes_splits(**options)
    if not isinstance(source, str) or _is_saved(Path(source).expanduser()):
        if options:
            raise TypeError(f"{_describe(source)} is loaded already, and has no options {sorted(options)}")
        loaded = load_from_disk(os.path.expanduser(source)) if isinstance(source, str) else source
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
    path = os.path.expanduser(source)
    looks_local = path.startswith((".", os.sep)) or path.count("/") > 1
    if looks_local and not os.path.exists(path):
        raise DetectionDataError(f"{source}: no such folder; {_SOURCE_HELP}")
    try:
        return load_dataset(path, **options)
    except (FileNotFoundError, ConnectionError) as error:
        raise DetectionDataError(f"{source}: cannot be loaded ({error}); {_SOURCE_HELP}") from error
