"""COCO annotation files, in the layout of a Roboflow export and in the layout of COCO itself."""

import logging
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ...choices import counted
from ..annotations import (
    Annotations,
    Labels,
    ReadOptions,
    build_dataset,
    class_table,
    label_sets,
    map_ids,
    name_box,
    path_array,
)
from ..checks import settle, without_repeated_files
from ..errors import DetectionDataError, Problems
from ..images import ImageFolder, Resolved, choose_folder, is_hidden
from ..keypoints import ClassKeypoints
from ..pipeline.pixels import image_size
from ..splits import SPLIT_NAMES, canonical_split, check_one_split
from . import Found, read_splits, warn_of_others
from .coco_file import CocoFile, read_coco_file
from .hub import is_saved
from .label_studio import looks_like_tasks

logger = logging.getLogger(__name__)

ROBOFLOW_FILE = "_annotations.coco.json"
# Files that COCO ships beside the instances, without boxes or with the same ones again.
_OTHER_KINDS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
# What tools call the folder of all images.
_IMAGE_FOLDERS = ("images", "data", "imgs", "JPEGImages")


@dataclass(frozen=True)
class CocoLocation:
    """Where one split lies: its annotation file, and the folders that may hold its images, likeliest first."""

    annotation_file: Path
    image_folders: tuple[Path, ...]


def find(root: Any, options: ReadOptions) -> Found | None:
    """A COCO file, the annotation files that ``data_files`` names, a Roboflow export, or COCO's own layout."""
    if not isinstance(root, str):
        return None
    path, files, load = Path(root), options.load.get("data_files"), dict(options.load)
    kind = "COCO"
    if path.is_file() and path.suffix == ".json" and not looks_like_tasks(path):
        base, locations = path.parent, {path.stem: locate(path.parent, path, path.stem)}
    elif path.is_dir() and isinstance(files, Mapping) and all(str(file).endswith(".json") for file in files.values()):
        base, locations = path, {split: locate(path, path / file, split) for split, file in files.items()}
        del load["data_files"]
    elif path.is_dir() and not files and not is_saved(path):
        base, locations = path, find_roboflow(path)
        kind = "Roboflow COCO" if locations else kind
        locations = locations or find_coco(path, keypoints=options.task == "keypoints")
    else:
        return None
    if not locations:
        return None
    replace(options, load=load).refuse(root, "is a COCO data set, which", "load", "label_dir")
    given = options.image_dir
    if given is not None:
        folder = {split: given if isinstance(given, str) else given.get(split) for split in locations}
        locations = {split: locate(base, at.annotation_file, split, folder[split]) for split, at in locations.items()}
    return Found(root, kind, locations)


def near(folder: Path) -> str:
    """How near a folder comes to the layouts of COCO."""
    jsons = [file for part in (folder, folder / "annotations") for file in _json_files(part)]
    if not jsons:
        return f"no */{ROBOFLOW_FILE}, no annotations/*.json and no *.json"
    listed = ", ".join(str(file.relative_to(folder)) for file in jsons[:3])
    return f"{listed}: no COCO file, which holds the lists images, annotations and categories"


def find_roboflow(root: Path) -> dict[str, CocoLocation]:
    """The splits of a Roboflow COCO export: folder name -> location. Empty when `root` is none."""
    files = sorted(file for file in root.glob(f"*/{ROBOFLOW_FILE}") if not is_hidden(file.parent.name))
    with_file = {file.parent for file in files}
    for folder in sorted(root.iterdir()) if files else ():
        if folder.is_dir() and folder not in with_file and canonical_split(folder.name) is not None:
            logger.warning("%s: has no %s, so there is no such split", folder, ROBOFLOW_FILE)
    return {file.parent.name: CocoLocation(file, (file.parent, file.parent / "images")) for file in files}


def find_coco(root: Path, *, keypoints: bool = False) -> dict[str, CocoLocation]:
    """The splits of a COCO layout: split name as in the file name ("train2017") -> location. Empty when `root` is none.

    Annotation files lie in ``annotations/`` or in `root` itself. Where COCO's own kinds of files lie side by side, the
    instances are taken; keypoint files have boxes too and are taken where there are no instances, or with `keypoints`.
    """
    folders = [folder for folder in (root / "annotations", root) if folder.is_dir()]
    found = [[file for file in _json_files(folder) if _looks_like_coco(file)] for folder in folders]
    files = next((each for each in found if each), [])
    instances = [file for file in files if file.stem.startswith("instances_")]
    of_keypoints = [file for file in files if file.stem.startswith("person_keypoints")]
    plain = [file for file in files if not file.stem.startswith(("instances_", *_OTHER_KINDS))]
    chosen = (keypoints and of_keypoints) or instances or plain or of_keypoints
    names = {file: re.sub(r"^(instances|person_keypoints)_(?=.)", "", file.stem) for file in chosen}
    return {name: locate(root, file, name) for file, name in names.items()}


def _json_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.json")) if not is_hidden(file.name) and file.is_file()]


def _looks_like_coco(file: Path) -> bool:
    # Searched, not parsed: the lists may come in any order, and files may be large.
    try:
        if not file.stat().st_size:
            return False
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            parts = [re.search(rb'"%s"\s*:\s*\[' % part, text) for part in (b"images", b"annotations", b"categories")]
    except OSError as error:
        raise DetectionDataError(f"{file}: cannot be read ({error.strerror or error}); make it readable") from error
    return bool(parts[0] and (parts[1] or parts[2]))


def locate(
    root: Path, annotation_file: Path, split: str, image_dir: str | os.PathLike[str] | None = None
) -> CocoLocation:
    """Where the images of an annotation file may lie.

    Args:
        root: the data set's folder.
        annotation_file: the file.
        split: its split's name, which is often the name of the image folder.
        image_dir: the folder if it is known, absolute or relative to `root`.
    """
    if image_dir is not None:
        return CocoLocation(annotation_file, (root / image_dir,))
    names = [split, *SPLIT_NAMES.get(canonical_split(split) or "", ())]
    folders = [folder for name in names for folder in (root / name, root / "images" / name, root / name / "images")]
    folders += [*(root / name for name in _IMAGE_FOLDERS), annotation_file.parent, root]
    return CocoLocation(annotation_file, tuple(dict.fromkeys(folders)))


def read(found: Found, splits: Mapping[str, CocoLocation], options: ReadOptions) -> dict[str, Dataset]:
    """Read splits; the label table is that of the first one's categories, or `class_names`.

    Raises:
        DetectionDataError: a file that is no COCO file, or faults in it that no rule repairs.
    """
    files = read_splits(splits, options, lambda _, location: read_coco_file(location.annotation_file, options))
    labels = label_space(files, options.class_names)
    first = next(iter(files.values()))
    keypoints = [first.keypoints.get(i, ClassKeypoints()) for i in labels.ids]
    labels = options.with_keypoints(labels, keypoints, f"{first.annotations.source}: field categories")
    folders: dict[Path, ImageFolder] = {}
    used: set[str] = set()

    def read_split(split: str, file: CocoFile) -> Dataset:
        names = [str(name) for name in file.annotations.file_name]
        folder, resolved = choose_folder(file.annotations.source, names, splits[split].image_folders, folders)
        problems = Problems(file.annotations.source)
        called = next(name for name, location in found.splits.items() if location == splits[split])
        check_one_split(file.annotations.source, called, names, problems)
        _note_missing(file.annotations, folder, resolved, problems)
        for reason, count in resolved.repairs.items():
            logger.warning("%s: found %s %s", file.annotations.source, counted(count, "image"), reason)
        paths = [path or "" for path in resolved.paths]
        used.update(paths)
        annotations, paths = _finish(file, labels, paths, problems, options)
        return build_dataset(annotations, labels, path_array(paths), split)

    datasets = read_splits(files, options, read_split)
    if not options.load.get("data_files"):
        # Other kinds of files about the same pictures.
        other = (*_OTHER_KINDS, *(["instances_"] if options.task == "keypoints" else []))
        known = [at.annotation_file for at in found.splits.values()]
        warn_of_others(
            found, splits, known, ".json", lambda file: not file.name.startswith(other) and _looks_like_coco(file)
        )
    roots = [root for root, folder in folders.items() if folder.listed]
    for root in roots:
        unlisted = [] if set(roots).intersection(root.parents) else folders[root].unlisted(used)
        if unlisted:
            logger.warning(
                "%s: %s in no annotation file and left out, such as %s; to train on such as background, list them "
                "among the images", root, counted(len(unlisted), "image file", "is"), ", ".join(unlisted[:3]),
            )  # fmt: skip
    return datasets


def label_space(files: Mapping[str, CocoFile], class_names: Sequence[str] | None) -> Labels:
    """The class table: the categories of the first split by ascending id, without those that only group others.

    A category groups when it is the supercategory of another one and no annotation of any split has it, as the
    category 0 of Roboflow's exports.

    Raises:
        DetectionDataError: no category left, a name that two of them share, or a name of `class_names` that none has.
    """
    file = next(iter(files.values()))
    annotated = set().union(*(np.unique(f.annotations.boxes.category).tolist() for f in files.values()))
    grouping = [
        i
        for i, name in file.names.items()
        if i not in annotated and any(parent == name for child, parent in file.parents.items() if child != i)
    ]
    if grouping:
        names = ", ".join(f"{file.names[i]!r} (id {i})" for i in grouping)
        logger.info("%s: categories that only group others are no classes: %s", file.annotations.source, names)
    kept = {i: name for i, name in file.names.items() if i not in grouping}
    return class_table(kept, class_names, f"{file.annotations.source}: field categories")


def _note_missing(annotations: Annotations, folder: ImageFolder, resolved: Resolved, problems: Problems) -> None:
    for i, path in enumerate(resolved.paths):
        if path is None:
            name = str(annotations.file_name[i])
            # Costs a search through the folder: only for the faults that are shown.
            other = folder.of_same_name(name) if problems.count < Problems.LIMIT else None
            hint = f" (another file of this name is {other})" if other else ""
            problems.add(
                f"image id {annotations.image_id[i]}: file_name {name!r} is missing in {folder.root}{hint}",
                "restore the missing files or take them out of the annotations; only the listed path counts",
            )


def _finish(
    file: CocoFile, labels: Labels, paths: Sequence[str], problems: Problems, options: ReadOptions
) -> tuple[Annotations, list[str]]:
    """Check what needs the other splits or the image files, and turn category ids into labels."""
    size, boxes = file.annotations.size.copy(), file.annotations.boxes
    for row in np.flatnonzero((size == -1).any(axis=1)).tolist():
        # A missing file is reported as such; its size must not be a second fault.
        size[row] = image_size(paths[row], {}) if paths[row] else 1
    annotations = replace(file.annotations, size=size)
    label = map_ids(boxes.category, labels.ids)
    if not file.names and len(boxes.category):
        logger.warning("%s: lists no categories; its ids are read as %s", annotations.source, labels.names)

    table = dict(zip(labels.ids, labels.names, strict=True))

    def named(i: int) -> str:
        return f" ({file.names[i]!r})" if i in file.names else ""

    problems.add_all(
        (
            f"{name_box(annotations, i)}: field category_id is {boxes.category[i]}"
            f"{named(int(boxes.category[i]))}, not in the label table {table}"
            for i in np.flatnonzero(label < 0).tolist()
        ),
        "the label table is that of the training split: list the category there, or correct the annotation",
    )
    for position, (i, name) in enumerate(zip(labels.ids, labels.names, strict=True)):
        if i in file.names and file.names[i] != name:
            problems.add(
                f"category id {i}: is named {file.names[i]!r} here but {name!r} in the label table",
                "use the same categories in all splits",
            )
        theirs = file.keypoints.get(i, ClassKeypoints()).names
        if labels.keypoints and theirs != labels.keypoints.classes[position].names and not options.keypoints:
            problems.add(
                f"category id {i}: has the keypoints {list(theirs)} here, but other ones in the training split",
                "use the same keypoints in all splits",
            )
    labelled = label_sets(annotations.labelled, labels.ids)
    annotations = replace(annotations, boxes=replace(boxes, category=label), labelled=labelled)
    masks = file.masks
    annotations, paths, masks = without_repeated_files(annotations, paths, masks, problems)
    settled = settle(annotations, labels, options, problems, masks, written=options.bbox_format or "xywh")
    boxes = settled.boxes
    if len(np.unique(boxes.id)) == len(boxes.id):
        return settled, list(paths)
    logger.warning("%s: annotation ids are not distinct; numbered from 1", annotations.source)
    return replace(settled, boxes=replace(boxes, id=np.arange(1, len(boxes.id) + 1))), list(paths)
