"""What `datasets` loads: Hub ids, its builders and files, folders of `save_to_disk`, and data sets in memory."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Image, config, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import get_session

from ...choices import counted
from ..annotations import ReadOptions
from ..errors import DetectionDataError, Problems
from ..images import IMAGE_SUFFIXES, walk_files
from . import Found
from .columns import normalise_splits, objects_feature

logger = logging.getLogger(__name__)

# Files that may hold a column of objects. Folders of images or texts alone would load too, but as something else.
_TABLES = re.compile(r"\.((parquet|arrow|jsonl?|csv|tsv|tar)(\.(gz|zst|bz2|xz))?|tgz|zip)$", re.IGNORECASE)
# Where an imagefolder has its columns, beside the pictures or in a folder above them.
_METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
_MAX_FILES = 100_000
_SECONDS = 10.0  # for an answer of the Hub
_MAX_BARREN_FOLDERS = 2_000
# What the loaders of `datasets` raise on damaged files, as seen in them.
_FAULTS = (OSError, ValueError, LookupError, TypeError, NotImplementedError, StopIteration, pa.ArrowException,
           DatasetsError)  # fmt: skip


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def find(root: Any, options: ReadOptions) -> Found | None:
    """Open the data set; a local folder is one when there are tables in it.

    Raises:
        DetectionDataError: it cannot be loaded, or not without streaming.
        TypeError: options that do not fit.
    """
    source = root if isinstance(root, str) else "the given data set"
    local = isinstance(root, str) and os.path.exists(root)
    if local and os.path.isdir(root) and not is_saved(Path(root)) and not options.load and not has_tables(root):
        return None
    options.refuse(source, "is read by datasets, and", "image_dir", "label_dir")
    if not isinstance(root, str) or is_saved(Path(root)):
        options.refuse(source, "is loaded already, and", "load")
        loaded = _load(source, load_from_disk, root) if isinstance(root, str) else root
    else:
        remedies = {"split": "use train_split, validation_split, test_split", "streaming": "leave it out"}
        for option, remedy in remedies.items():
            if option in options.load:
                raise TypeError(f"load_detection_dataset has no option {option!r}: {remedy}")
        loaded = _load(source, load_dataset, root, **options.load)
    if isinstance(loaded, Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    if not isinstance(loaded, Mapping) or not all(isinstance(split, Dataset) for split in loaded.values()):
        raise DetectionDataError(
            f"{source}: {type(loaded).__name__} is no datasets.DatasetDict; load it without streaming"
        )
    if local and not any(map(objects_feature, loaded.values())):
        return None
    folder = options.load.get("data_dir", root if local else None)
    if isinstance(folder, str) and os.path.isdir(folder) and not is_saved(Path(folder)):
        _compare_with_folder(source, folder, loaded.values(), all_read="data_files" not in options.load)
    kind = "a data set of datasets" if isinstance(loaded, DatasetDict) else "a data set in memory"
    return Found(source, kind, {str(name): split for name, split in loaded.items()})


def open_tables(source: str, split: str) -> Dataset:
    """One split of a Hub id, of a folder of tables or of a folder of `save_to_disk`, with the columns that it has.

    Raises:
        DetectionDataError: it cannot be loaded, or has no such split.
    """
    if not is_saved(Path(source)):
        return _load(source, load_dataset, source, split=split)
    loaded = _load(source, load_from_disk, source)
    splits: Any = loaded if isinstance(loaded, DatasetDict) else {str(loaded.split or "train"): loaded}
    if split not in splits:
        raise DetectionDataError(f"{source}: there is no split {split!r}; the splits are {list(splits)}")
    return splits[split]


def near(folder: Path) -> str:
    """How near a folder comes to what `datasets` reads."""
    if not has_tables(str(folder)):
        return "no Parquet, JSON or CSV file, and no metadata.jsonl beside images"
    return "it has tables, but no column 'objects', and no columns bbox and category"


def read(found: Found, splits: Mapping[str, Any], options: ReadOptions) -> dict[str, Dataset]:
    """Bring the columns into the schema."""
    return normalise_splits(splits, found.source, options)


def has_tables(root: str) -> bool:
    """Whether files that `datasets` may read are below a folder.

    Raises:
        DetectionDataError: the tree is a system's or a home, and no data set; `datasets` would search it for minutes.
    """
    folders: dict[str, bool] = {}
    tables = False
    for relative, _, _ in islice(walk_files(root), _MAX_FILES):
        folder, name = os.path.split(relative)
        is_table = _TABLES.search(name) is not None
        tables |= is_table
        is_data = is_table or os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        folders[folder] = folders.get(folder, False) or is_data
    barren = sum(not is_data for is_data in folders.values())
    if tables and barren > _MAX_BARREN_FOLDERS:
        raise DetectionDataError(
            f"{root}: {barren} folders hold neither images nor tables; give the folder of the data set itself"
        )
    return tables


def _compare_with_folder(source: str, folder: str, splits: Iterable[Dataset], all_read: bool) -> None:
    """Look whether the metadata of an imagefolder and its pictures belong together, which `datasets` does not.

    Raises:
        DetectionDataError: a row whose picture is missing.
    """
    root = os.path.realpath(folder)
    files = {path: relative for relative, path, _ in walk_files(root)}
    tables = {os.path.dirname(path): path for path in files if os.path.basename(path) in _METADATA}
    if not tables:
        return
    for folder, table in tables.items():
        if above := next((tables[str(each)] for each in Path(folder).parents if str(each) in tables), None):
            logger.warning("%s: %s is not read for the pictures of %s, which counts there", source, above, table)
    used: set[str] = set()
    for split in splits:
        for name in (name for name, feature in split.features.items() if isinstance(feature, Image)):
            for chunk in split.data.column(name).chunks:
                paths = filter(None, chunk.field("path").to_pylist())
                used |= {path if path in files else os.path.realpath(path) for path in paths}
    problems = Problems(source)
    for path in sorted(used - files.keys()):
        above = [str(parent) for parent in Path(path).parents if str(parent) in tables]
        if above and not os.path.exists(path):
            fault = f"{tables[above[0]]}: field file_name names {os.path.relpath(path, above[0])}, which is missing"
            problems.add(fault, "restore the pictures, or take their rows out of the metadata")
    problems.raise_if_any()
    unlisted = sorted(
        relative for path, relative in files.items()
        if path not in used and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
    )  # fmt: skip
    if unlisted and all_read and used & files.keys():
        logger.warning(
            "%s: %s left out, without a row in %s, such as %s; to train on such as background, write rows with empty "
            "lists", source, counted(len(unlisted), "picture", "is"),
            ", ".join(sorted(files[path] for path in tables.values())), ", ".join(unlisted[:3]),
        )  # fmt: skip


def _silence() -> str:
    """Why the Hub does not answer; empty where it does."""
    try:
        get_session().head(config.HF_ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # noqa: BLE001 - of the HTTP client, whichever it is; the caller reports it
        return f"{config.HF_ENDPOINT} does not answer: {str(error) or type(error).__name__}"
    return ""


def _load(source: str, load: Any, root: Any, **options: Any) -> Any:
    # A builder of datasets has no data without these.
    is_id = load is load_dataset and not options.keys() & {"data_dir", "data_files"} and not os.path.exists(root)
    offline = config.HF_HUB_OFFLINE
    silence = _silence() if is_id and not offline else ""
    try:
        # Offline, datasets looks into its cache alone; else it asks six times in half a minute.
        config.HF_HUB_OFFLINE = offline or bool(silence)
        return load(root, **options)
    except _FAULTS as error:
        if isinstance(error, DetectionDataError):
            raise
        cause = error.__cause__ or error
        files = walk_files(root) if isinstance(root, str) and os.path.isdir(root) else ()
        empty = next((path for name, path, _ in files if _TABLES.search(name) and not os.path.getsize(path)), None)
        if empty is not None:
            raise DetectionDataError(f"{empty}: is empty; restore it, or take it away") from error
        fault = silence or f"{type(cause).__name__}: {str(cause)[:300]}"
        full = isinstance(cause, OSError) and not isinstance(cause, (ConnectionError, FileNotFoundError))
        raise DetectionDataError(
            f"{source}: {'there is no such folder here, and it ' if is_id else ''}cannot be loaded"
            f"{' from the Hub' if is_id else ''} ({fault}); it may be a Hub id, a folder or a file that exists, or "
            f"'synthetic-shapes'{'; with a full or read-only disk set another HF_DATASETS_CACHE' if full else ''}"
        ) from error
    finally:
        config.HF_HUB_OFFLINE = offline
