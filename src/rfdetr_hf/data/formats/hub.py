"""What `datasets` loads: Hub ids, its builders and files, folders of `save_to_disk`, and data sets in memory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from ..annotations import ReadOptions
from ..errors import DetectionDataError
from . import Found
from .columns import normalise_splits

_HELP = (
    "it may be a Hub id, a Roboflow export, a folder with annotations/*.json, a COCO file beside its images, "
    "a YOLO data.yaml or its folder, an imagefolder with metadata, Parquet files, a folder of save_to_disk, "
    "or 'synthetic-shapes'"
)


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def find(root: Any, options: ReadOptions) -> Found:
    """Open the data set; everything that no other format recognises is taken for one.

    Raises:
        DetectionDataError: it cannot be loaded, or not without streaming.
        TypeError: options that do not fit.
    """
    source = root if isinstance(root, str) else "the given data set"
    options.refuse(source, "is read by datasets, and", "image_dir", "label_dir")
    if not isinstance(root, str) or is_saved(Path(root)):
        options.refuse(source, "is loaded already, and", "load")
        loaded = load_from_disk(root) if isinstance(root, str) else root
    else:
        loaded = _load(root, options.load)
    if isinstance(loaded, Dataset):
        return Found(source, {str(loaded.split or "train"): loaded})
    if not isinstance(loaded, DatasetDict):
        raise DetectionDataError(
            f"{source}: {type(loaded).__name__} is no datasets.DatasetDict; load it without streaming"
        )
    return Found(source, {str(name): split for name, split in loaded.items()})


def read(found: Found, splits: Mapping[str, Any], options: ReadOptions) -> dict[str, Dataset]:
    """Bring the columns into the schema."""
    return normalise_splits(splits, found.source, options)


def _load(source: str, options: Mapping[str, Any]) -> Any:
    for option, remedy in (("split", "use train_split, validation_split, test_split"), ("streaming", "leave it out")):
        if option in options:
            raise TypeError(f"load_detection_dataset has no option {option!r}: {remedy}")
    looks_local = source.startswith((".", os.sep)) or source.count("/") > 1
    if looks_local and not os.path.exists(source):
        raise DetectionDataError(f"{source}: no such folder; {_HELP}")
    try:
        return load_dataset(source, **options)
    except (FileNotFoundError, ConnectionError) as error:
        raise DetectionDataError(f"{source}: cannot be loaded ({error}); {_HELP}") from error
