"""COCO annotation files, in the layout of a Roboflow export and in the layout of COCO itself."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..annotations import (
    Annotations,
    Boxes,
    Labels,
    Wanted,
    build_dataset,
    class_table,
    find_broken,
    map_ids,
    name_box,
    path_array,
    read_masks,
    repair_boxes,
    settle_missing_masks,
)
from .coco_keypoints import class_keypoints, fit_keypoints, keypoint_array
from ..errors import DetectionDataError, Problems
from ..images import ImageFolder, image_size
from ..keypoints import ClassKeypoints
from ..masks import packed_mask
from ..schema import Task
from ..splits import SPLIT_NAMES, canonical_split

logger = logging.getLogger(__name__)

ROBOFLOW_FILE = "_annotations.coco.json"
# Files that COCO ships beside the instances, without boxes or with the same ones again.
_OTHER_KINDS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
_PROBES = 20


@dataclass(frozen=True)
class CocoLocation:
    """Where one split lies: its annotation file, and the folders that may hold its images, likeliest first."""

    annotation_file: Path
    image_folders: tuple[Path, ...]


@dataclass(frozen=True)
class CocoFile:
    """One annotation file that has been read.

    Attributes:
        annotations: categories are the file's ids; sizes are -1 where the file has none.
        names: category id -> name, in the order of the file.
        parents: category id -> supercategory, where there is one.
        keypoints: category id -> its keypoints, where they are asked for.
        masks: what the annotations say, if masks are asked for; parsed once the sizes of the images are known.
    """

    annotations: Annotations
    names: dict[int, str]
    parents: dict[int, str]
    keypoints: dict[int, ClassKeypoints]
    masks: list[Any] | None = None


def find_roboflow(root: Path) -> dict[str, CocoLocation]:
    """The splits of a Roboflow COCO export: folder name -> location. Empty when `root` is none."""
    files = sorted(root.glob(f"*/{ROBOFLOW_FILE}"))
    return {file.parent.name: CocoLocation(file, (file.parent,)) for file in files}


def find_coco(root: Path, *, keypoints: bool = False) -> dict[str, CocoLocation]:
    """The splits of a COCO layout: split name as in the file name ("train2017") -> location. Empty when `root` is none.

    Annotation files lie in ``annotations/`` or in `root` itself. Where COCO's own kinds of files lie side by side, the
    instances are taken; keypoint files have boxes too and are taken where there are no instances, or with `keypoints`.
    """
    folder = root / "annotations" if (root / "annotations").is_dir() else root
    files = [file for file in sorted(folder.glob("*.json")) if _looks_like_coco(file)]
    instances = [file for file in files if file.stem.startswith("instances_")]
    of_keypoints = [file for file in files if file.stem.startswith("person_keypoints")]
    plain = [file for file in files if not file.stem.startswith(("instances_", *_OTHER_KINDS))]
    chosen = (keypoints and of_keypoints) or instances or plain or of_keypoints
    return {name: locate(root, file, name) for file in chosen for name in [_split_of(file)]}


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
    folders += [root / "images", annotation_file.parent, root]
    return CocoLocation(annotation_file, tuple(dict.fromkeys(folders)))


def load_coco(
    locations: Mapping[str, CocoLocation], class_names: Sequence[str] | None, wanted: Wanted
) -> dict[str, Dataset]:
    """Read the splits of one data set.

    Args:
        locations: split -> where it lies.
        class_names: the label table to use; by default that of the first split's categories.
        wanted: which of masks and keypoints are kept.

    Raises:
        DetectionDataError: a file that is no COCO file, or faults in it that no rule repairs.
    """
    files = {split: read_coco_file(location.annotation_file, wanted) for split, location in locations.items()}
    labels = label_space(files, class_names)
    first = next(iter(files.values()))
    keypoints = [first.keypoints.get(i, ClassKeypoints()) for i in labels.ids]
    labels = wanted.labels(labels, keypoints, f"{first.annotations.source}: field categories")
    folders: dict[Path, ImageFolder] = {}
    used: dict[Path, set[str]] = {}
    datasets = {}
    for split, file in files.items():
        folder = _image_folder(file.annotations, locations[split].image_folders, folders)
        problems = Problems(file.annotations.source)
        paths = _find_images(file.annotations, folder, problems)
        annotations = _finish(file, labels, paths, problems, wanted)
        datasets[split] = build_dataset(annotations, labels, path_array(paths), split)
        used.setdefault(folder.root, set()).update(paths)
    for root, paths in used.items():
        _report_unlisted(folders[root], paths)
    return datasets


def read_coco_file(path: Path, wanted: Wanted) -> CocoFile:
    """Read an annotation file into arrays; masks and keypoints that are not wanted are dropped as they are parsed.

    Raises:
        DetectionDataError: no JSON, missing parts, or records whose fields have the wrong type.
    """
    content = _load_json(path, wanted.task)
    problems = Problems(str(path))
    categories, images, records = content["categories"], content["images"], content["annotations"]
    category_id = _integers(categories, "category", "id", problems)
    image_id = _integers(images, "image", "id", problems)
    for index, image in enumerate(images):
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            problems.add(f"image {_record_name(image, index)}: field file_name is missing", "name the image's file")
    unknown = [-1] * len(images)
    size = np.stack([_integers(images, "image", side, problems, unknown) for side in ("width", "height")], axis=1)
    boxes = _read_boxes(records, image_id, problems)
    keypoints: dict[int, ClassKeypoints] = {}
    if wanted.task == "keypoints":
        keypoints = class_keypoints(categories, records, problems)
        boxes = replace(boxes, keypoints=keypoint_array(records, boxes, keypoints, problems))
    problems.raise_if_any()
    return CocoFile(
        Annotations(str(path), image_id, size, [image["file_name"] for image in images], boxes),
        names={int(i): str(category.get("name", i)) for i, category in zip(category_id, categories, strict=True)},
        parents={
            int(i): str(category["supercategory"])
            for i, category in zip(category_id, categories, strict=True)
            if category.get("supercategory")
        },
        keypoints=keypoints,
        masks=[record.get("segmentation") for record in records] if wanted.task == "segmentation" else None,
    )


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
        dropped = ", ".join(f"{i} ({file.names[i]})" for i in grouping)
        logger.info("%s: dropped grouping categories without annotations: %s", file.annotations.source, dropped)
    kept = {i: name for i, name in file.names.items() if i not in grouping}
    return class_table(kept, class_names, f"{file.annotations.source}: field categories")


def _load_json(path: Path, task: Task) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=partial(_reduced, task=task))
    except (OSError, ValueError) as error:
        raise DetectionDataError(f"{path}: cannot be read as JSON ({error}); export the annotations again") from error
    for part in ("images", "annotations", "categories"):
        records = content.get(part) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DetectionDataError(
                f"{path}: field {part!r} is missing or no list of objects; "
                "a COCO file needs images, annotations and categories"
            )
    return content


def _reduced(record: dict[str, Any], task: Task) -> dict[str, Any]:
    # Polygons are most of a file's numbers. Dropping or packing each as soon as it is parsed keeps the peak memory at a
    # fraction. Categories have a field keypoints too, which stays.
    if "segmentation" in record:
        if task == "segmentation":
            record["segmentation"] = packed_mask(record["segmentation"])
        else:
            del record["segmentation"]
    if task != "keypoints" and "image_id" in record:
        record.pop("keypoints", None)
    return record


def _record_name(record: Mapping[str, Any], index: int) -> str:
    return f"id {record['id']}" if "id" in record else f"number {index} (it has no id)"


def _integers(
    records: Sequence[Mapping[str, Any]],
    kind: str,
    field: str,
    problems: Problems,
    default: Sequence[int] | None = None,
) -> np.ndarray:
    """One integer field of all records, `default` where it is missing; faults are noted and read as -1."""
    values = np.full(len(records), -1, dtype=np.int64)
    for index, record in enumerate(records):
        value = record.get(field)
        if value is None and default is not None:
            value = default[index]
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            values[index] = int(value)
        else:
            fault = f"{kind} {_record_name(record, index)}: field {field} is {value!r}, not an integer"
            problems.add(fault, "ids, sizes and references must be integers")
    return values


def _read_boxes(records: Sequence[Mapping[str, Any]], image_id: np.ndarray, problems: Problems) -> Boxes:
    references = _integers(records, "annotation", "image_id", problems)
    row = map_ids(references, image_id)
    problems.add_all(
        (
            f"annotation {_record_name(records[i], i)}: field image_id is {references[i]}, which no image has"
            for i in np.flatnonzero(row < 0)
        ),
        "delete annotations of images that the file does not list, or list the images",
    )
    return Boxes(
        row=row,
        # Annotations without an id go by their position, so that messages lead to them.
        id=_integers(records, "annotation", "id", problems, range(len(records))),
        bbox=_bbox_array(records, problems),
        category=_integers(records, "annotation", "category_id", problems),
        area=_area_array(records, problems),
        iscrowd=np.array([bool(record.get("iscrowd")) for record in records], dtype=bool),
    )


def _bbox_array(records: Sequence[Mapping[str, Any]], problems: Problems) -> np.ndarray:
    values = np.zeros((len(records), 4))
    for index, record in enumerate(records):
        box = record.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box):
            values[index] = box
        else:
            fault = f"annotation {_record_name(record, index)}: field bbox is {box!r}, not four numbers"
            problems.add(fault, "write bbox as [x, y, width, height] in pixels, or delete the annotation")
    return values


def _area_array(records: Sequence[Mapping[str, Any]], problems: Problems) -> np.ndarray:
    values = np.full(len(records), np.nan)
    for index, record in enumerate(records):
        area = record.get("area")
        if isinstance(area, (int, float)):
            values[index] = area
        elif area is not None:
            fault = f"annotation {_record_name(record, index)}: field area is {area!r}, not a number"
            problems.add(fault, "write area as a number, or leave the field out")
    return values


def _looks_like_coco(file: Path) -> bool:
    # The lists may come in any order, but one of them starts early, whatever the file's size.
    with open(file, encoding="utf-8", errors="replace") as stream:
        start = stream.read(1 << 16)
    return any(f'"{part}"' in start for part in ("images", "annotations", "categories"))


def _split_of(file: Path) -> str:
    return re.sub(r"^(instances|person_keypoints)_(?=.)", "", file.stem)


def _image_folder(
    annotations: Annotations, candidates: Sequence[Path], folders: dict[Path, ImageFolder]
) -> ImageFolder:
    """The candidate that holds most of a few of the images; `folders` keeps what has been read for the next split."""
    names = annotations.file_name
    probes = [names[i] for i in np.linspace(0, len(names) - 1, min(_PROBES, len(names)), dtype=int)]
    best, best_hits = None, 0 if probes else -1
    for path in candidates:
        if not path.is_dir():
            continue
        folder = folders[path] = folders.get(path) or ImageFolder(path)
        hits = sum(folder.find(name) is not None for name in probes)
        if hits > best_hits:
            best, best_hits = folder, hits
        if hits == len(probes):
            break
    if best is None:
        looked = ", ".join(str(path) for path in candidates)
        raise DetectionDataError(
            f"{annotations.source}: none of its images ({names[0] if names else 'it lists none'}, …) is in {looked}; "
            "name the folder with image_dir=…"
        )
    return best


def _find_images(annotations: Annotations, folder: ImageFolder, problems: Problems) -> list[str]:
    paths = [folder.find(name) or "" for name in annotations.file_name]
    problems.add_all(
        (
            f"image id {annotations.image_id[i]}: file_name {annotations.file_name[i]!r} is missing in {folder.root}"
            for i, path in enumerate(paths)
            if not path
        ),
        "restore the missing files or take them out of the annotations",
    )
    return paths


def _finish(file: CocoFile, labels: Labels, paths: Sequence[str], problems: Problems, wanted: Wanted) -> Annotations:
    """Check what needs the other splits or the image files, repair boxes, and turn category ids into labels."""
    annotations = _with_sizes(file.annotations, paths)
    boxes = annotations.boxes
    find_broken(annotations, problems)
    label = map_ids(boxes.category, labels.ids)
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field category_id is {boxes.category[i]}, "
            f"not in the label table {dict(zip(labels.ids, labels.names, strict=True))}"
            for i in np.flatnonzero(label < 0)
        ),
        "the label table is that of the training split: list the category there, or correct the annotation",
    )
    for i, name in zip(labels.ids, labels.names, strict=True):
        if i in file.names and file.names[i] != name:
            problems.add(
                f"category id {i}: is named {file.names[i]!r} here but {name!r} in the label table",
                "use the same categories in all splits",
            )
        theirs = file.keypoints.get(i, ClassKeypoints()).names
        if labels.keypoints and theirs != labels.keypoints.classes[labels.ids.index(i)].names and not wanted.keypoints:
            problems.add(
                f"category id {i}: has the keypoints {list(theirs)} here, but other ones in the training split",
                "use the same keypoints in all splits",
            )
    boxes = replace(boxes, category=label)
    if file.masks is not None:
        boxes = replace(boxes, masks=read_masks(file.masks, annotations, problems))
    if labels.keypoints is not None:
        boxes = replace(boxes, keypoints=fit_keypoints(boxes.keypoints, labels.keypoints.num_keypoints))
    problems.raise_if_any()
    repaired = settle_missing_masks(repair_boxes(replace(annotations, boxes=boxes)), wanted.missing_masks, problems)
    problems.raise_if_any()
    return replace(repaired, boxes=_with_own_ids(repaired))


def _with_sizes(annotations: Annotations, paths: Sequence[str]) -> Annotations:
    """Sizes that the file leaves out, read from the images."""
    size = annotations.size.copy()
    for row in np.flatnonzero((size == -1).any(axis=1)):
        # A missing file is reported as such; its size must not be a second fault.
        size[row] = image_size(paths[row], {}) if paths[row] else 1
    return replace(annotations, size=size)


def _with_own_ids(annotations: Annotations) -> Boxes:
    """Boxes whose ids are distinct: the file's, or 1, 2, 3… for all when it uses one twice."""
    boxes = annotations.boxes
    if len(np.unique(boxes.id)) == len(boxes.id):
        return boxes
    logger.warning("%s: annotation ids are not distinct; numbered anew", annotations.source)
    return replace(boxes, id=np.arange(1, len(boxes.id) + 1))


def _report_unlisted(folder: ImageFolder, used: set[str]) -> None:
    unlisted = folder.unlisted(used)
    if unlisted:
        logger.warning(
            "%s: %d image files are in no annotation file and are left out, such as %s; "
            "to train on them as background, list them among the images",
            folder.root,
            len(unlisted),
            ", ".join(unlisted[:3]),
        )
