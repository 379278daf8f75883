"""YOLO data sets: a data.yaml, image folders, and one text file of rows per image.

A row is a class id and, all relative to the image's width and height, a box (cx, cy, w, h), a polygon (x, y, x, y, …)
or, where the data.yaml has `kpt_shape`, a box and keypoints.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ....choices import counted
from ...annotations import ReadOptions, build_dataset, class_table, path_array
from ...checks import settle, without_repeated_files
from ...errors import DetectionDataError, Problems
from ...keypoints import ClassKeypoints
from ...pipeline.pixels import image_size
from .. import Found, read_splits
from ..hub import is_saved
from .pictures import Pictures, find_pictures
from .rows import RowReader, Rows
from .yaml_file import YAML_NAMES, YoloConfig, find_yaml, read_yaml, warn_of_other_names

logger = logging.getLogger(__name__)

_THREADS = 8
_CHUNK = 64
_MAX_LABEL_BYTES = 50_000_000


def find(root: Any, options: ReadOptions) -> Found | None:
    """The YOLO data set of a yaml file or of a folder with one.

    Raises:
        DetectionDataError: the file is no data.yaml, or its fields do not fit each other.
    """
    if not isinstance(root, str) or options.load.get("data_files") or is_saved(Path(root)):
        return None
    file = find_yaml(Path(root))
    if file is None:
        return None
    config = read_yaml(file)
    options.refuse(root, "is a YOLO data set, which", "load", "image_dir")
    kind = "Roboflow YOLO" if config.from_roboflow else "YOLO"
    return Found(root, kind, {name: name for name in config.splits}, config)


def has_rows(folder: Path) -> bool:
    """Whether a folder has label files where YOLO data sets have them, whatever its data.yaml is worth."""
    return any(
        next(labels.rglob("*.txt"), None) for pattern in ("labels", "*/labels") for labels in folder.glob(pattern)
    )


def near(folder: Path) -> str:
    """How near a folder comes to a YOLO data set."""
    parts = [name for name in ("images", "labels", "classes.txt", "obj.names", "obj.data") if (folder / name).exists()]
    there = f"{', '.join(parts)} are there, but " if parts else ""
    return f"{there}no {' or '.join(YAML_NAMES[:2])} with the fields names and train"


def read(found: Found, splits: Mapping[str, str], options: ReadOptions) -> dict[str, Dataset]:
    """Read splits; the label table is all names of the yaml file by ascending id, or `class_names`.

    The rows of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, the last folder called images being replaced; where no
    folder is called images, beside the image. Boxes of polygon rows are those of the polygons, and areas too. Box rows
    are objects without a mask.

    Raises:
        DetectionDataError: missing images, or rows that are malformed; up to ten, with file and line.
    """
    config: YoloConfig = found.details
    warn_of_other_names(config)
    labels = class_table(config.names, options.class_names, f"{config.file}: field names")
    keypoints = [config.keypoints.get(i, ClassKeypoints()) for i in labels.ids]
    labels = options.with_keypoints(labels, keypoints, f"{config.file}: field kpt_shape")
    reader = RowReader(config, labels, options)
    return read_splits(splits, options, lambda name, theirs: _read_split(reader, theirs, name))


def _read_split(reader: RowReader, theirs: str, split: str) -> Dataset:
    config, options = reader.config, reader.options
    source = f"{config.file}, {theirs}"
    problems = Problems(source)
    pictures = find_pictures(config, theirs, options.label_dir or "labels", problems)
    problems.raise_if_any()
    texts = _in_threads(_read_text, pictures.label_paths)
    pictures, texts = _labelled(config, pictures, texts, source)

    def size(path: str) -> tuple[int, int]:
        try:
            return image_size(path, {})
        except DetectionDataError as error:
            problems.add(str(error))
            return 0, 0

    sizes = _in_threads(size, pictures.paths)
    rows = Rows()
    for image, (path, text) in enumerate(zip(pictures.label_paths, texts, strict=True)):
        reader.read(rows, image, path or "", text or "", problems)
    if problems.count:
        used = options.label_dir or "labels"
        others = [place.name for place in Path(config.root).glob("*label*") if place.is_dir() and place.name != used]
        if others:
            problems.suggest(f"or read other labels than those of {used}/: --label_dir {min(others)}")
    problems.raise_if_any()
    names = [os.path.relpath(path, config.root).replace(os.sep, "/") for path in pictures.paths]
    annotations, polygons = reader.annotations(rows, source, names, np.array(sizes, np.int64).reshape(-1, 2), problems)
    unlabelled = sum(text is None for text in texts)
    empty = sum(text is not None and not text.strip() for text in texts)
    background = {"without a label file": unlabelled, "with an empty one": empty}
    masks = polygons if options.task == "segmentation" else None
    annotations = replace(annotations, background=background)
    annotations, paths, masks = without_repeated_files(annotations, pictures.paths, masks, problems)
    settled = settle(annotations, reader.labels, options, problems, masks, written=None)
    return build_dataset(settled, reader.labels, path_array(paths), split)


def _labelled(
    config: YoloConfig, pictures: Pictures, texts: list[str | None], source: str
) -> tuple[Pictures, list[str | None]]:
    missing = [text is None for text in texts]
    empty = sum(text is not None and not text.strip() for text in texts)
    keep = [i for i in range(len(texts)) if not (config.skip_unlabelled and missing[i])]
    fate = "left out, as the yaml file says" if config.skip_unlabelled else "taken as images without objects"
    logger.info(
        "%s: %s, %d without a label file (%s), %d with an empty one",
        source, counted(len(texts), "image"), sum(missing), fate, empty,
    )  # fmt: skip
    kept = Pictures([pictures.paths[i] for i in keep], [pictures.label_paths[i] for i in keep])
    return kept, [texts[i] for i in keep]


def _read_text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        if os.path.getsize(path) > _MAX_LABEL_BYTES:
            raise OSError(f"{os.path.getsize(path)} bytes are no label file")
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DetectionDataError(f"{path}: cannot be read ({error}); restore the label file") from error


def _in_threads(function: Callable[[Any], Any], paths: Sequence[Any]) -> list[Any]:
    """One result per path. Threads wait for slow disks side by side; handing them single files would cost more."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result for part in pool.map(lambda chunk: [function(path) for path in chunk], chunks) for result in part
        ]
