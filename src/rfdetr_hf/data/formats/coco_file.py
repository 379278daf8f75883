"""One COCO annotation file as arrays."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...tasks import TaskName
from ...values import as_flag, as_integer, is_number, shown
from ..annotations import Annotations, Boxes, ReadOptions, map_ids
from ..errors import DetectionDataError, Problems, SplitMissingError
from ..keypoints import ClassKeypoints
from ..masks import packed_mask
from .coco_keypoints import class_keypoints, keypoint_array

logger = logging.getLogger(__name__)


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


def read_coco_file(path: Path, options: ReadOptions) -> CocoFile:
    """Read an annotation file into arrays; masks and keypoints that no task needs are dropped as they are parsed.

    Raises:
        DetectionDataError: no JSON, missing parts, or records whose fields have the wrong type.
    """
    content = _load_json(path, options.task)
    problems = Problems(str(path))
    categories, images, records = content["categories"], content["images"], content["annotations"]
    category_id = _integers(categories, "category", "id", problems)
    image_id = _integers(images, "image", "id", problems)
    unknown = [-1] * len(images)
    size = np.stack([_integers(images, "image", side, problems, unknown) for side in ("width", "height")], axis=1)
    file_names = [_file_name(image, index, problems) for index, image in enumerate(images)]
    names = _category_names(categories, category_id, problems)
    boxes = _read_boxes(records, image_id, problems)
    keypoints: dict[int, ClassKeypoints] = {}
    if options.task == "keypoints" and not problems.count:
        keypoints = class_keypoints(categories, records, problems)
        if not problems.count:
            boxes = replace(boxes, keypoints=keypoint_array(records, boxes, keypoints, problems))
    labelled = _labelled(images, boxes, category_id, problems)
    problems.raise_if_any()
    return CocoFile(
        Annotations(str(path), image_id, size, file_names, boxes, labelled=labelled),
        names=names,
        parents={
            int(i): str(category["supercategory"])
            for i, category in zip(category_id, categories, strict=True)
            if category.get("supercategory")
        },
        keypoints=keypoints,
        masks=[record.get("segmentation") for record in records] if options.task == "segmentation" else None,
    )


def _load_json(path: Path, task: TaskName) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_pairs_hook=partial(_reduced, task=task))
    except (OSError, ValueError, RecursionError) as error:
        reason = "its lists are nested without end" if isinstance(error, RecursionError) else error
        raise DetectionDataError(f"{path}: cannot be read as JSON ({reason}); export the annotations again") from error
    for part in ("images", "annotations", "categories"):
        records = content.get(part) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            # What lists images and classes alone is a test set whose annotations are kept back.
            kind = SplitMissingError if part == "annotations" and part not in content else DetectionDataError
            raise kind(
                f"{path}: field {part!r} is missing or no list of objects; "
                "a COCO file needs images, annotations and categories"
            )
    return content


def _reduced(pairs: list[tuple[str, Any]], task: TaskName) -> dict[str, Any]:
    # Polygons are most of a file's numbers. Dropping or packing each as soon as it is parsed keeps the peak memory at a
    # fraction. Categories have a field keypoints too, which stays.
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} stands twice in one object, {shown(record)}")
    if "segmentation" in record:
        if task == "segmentation":
            record["segmentation"] = packed_mask(record["segmentation"])
        else:
            del record["segmentation"]
    if task != "keypoints" and "image_id" in record:
        record.pop("keypoints", None)
    return record


def _record_name(record: Mapping[str, Any], index: int) -> str:
    return f"id {str(record['id'])[:40]}" if "id" in record else f"number {index} (it has no id)"


def _file_name(image: Mapping[str, Any], index: int, problems: Problems) -> str:
    name, url = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(url, str) and url.count("/") > 1:
        # LVIS names its images by the address in COCO: …/train2017/000000391895.jpg.
        name = "/".join(url.split("/")[-2:])
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        fault = "missing" if name is None or name == "" else f"{shown(name)}, no name of a file"
        problems.add(f"image {_record_name(image, index)}: field file_name is {fault}", "name the image's file")
        return ""
    return name


def _category_names(
    categories: Sequence[Mapping[str, Any]], category_id: np.ndarray, problems: Problems
) -> dict[int, str]:
    names: dict[int, str] = {}
    for i, category in zip(category_id.tolist(), categories, strict=True):
        name = category.get("name", i)
        if isinstance(name, bool) or not isinstance(name, (str, int, float)) or not str(name).strip():
            problems.add(f"category id {i}: field name is {shown(name)}, no name", "give each category a name")
        text = str(name)
        if names.setdefault(i, text) != text:
            problems.add(
                f"category id {i}: field name: has two names, {names[i]!r} and {text!r}",
                "give each category an id of its own",
            )
    if without := [i for i, each in zip(category_id.tolist(), categories, strict=True) if "name" not in each]:
        logger.warning("%s: categories without a name are called by their ids: %s", problems.source, without[:10])
    return names


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
        number = as_integer(value)
        if number is not None:
            values[index] = number
        else:
            fault = f"{kind} {_record_name(record, index)}: field {field} is {shown(value)}, not an integer of 64 bits"
            problems.add(fault, "ids, sizes and references must be integers")
    return values


def _labelled(
    images: Sequence[Mapping[str, Any]], boxes: Boxes, category_id: np.ndarray, problems: Problems
) -> list[list[int] | None] | None:
    """The categories that LVIS says are labelled completely in each image.

    Those that are looked for and are not there (`neg_category_ids`), and those that are there, less those of which not
    all are marked (`not_exhaustive_category_ids`). None for an image with neither field: all are.
    """
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    if not any(field in image for image in images for field in fields):
        return None
    known, present = set(category_id.tolist()), [set() for _ in images]
    for row, category in zip(boxes.row.tolist(), boxes.category.tolist(), strict=True):
        present[row].add(category)
    remedy = "list ids of categories, those that are not in the image as neg_category_ids"
    labelled: list[list[int] | None] = []
    for index, image in enumerate(images):
        sets = []
        for field in fields:
            values = image.get(field)
            numbers = [as_integer(value) for value in values] if isinstance(values, list) else [None]
            if values is not None and (None in numbers or not known.issuperset(numbers)):
                fault = f"field {field} is {shown(values)}, no list of ids of categories"
                problems.add(f"image {_record_name(image, index)}: {fault}", remedy)
            sets.append({number for number in numbers if number is not None})
        if both := sorted(sets[0] & present[index]):
            fault = f"field neg_category_ids has {both}, of which there are annotations"
            problems.add(f"image {_record_name(image, index)}: {fault}", remedy)
        federated = any(image.get(field) is not None for field in fields)
        labelled.append(sorted(sets[0] | (present[index] - sets[1])) if federated else None)
    for field in fields:
        if lacking := sum(field not in image for image in images):
            logger.warning(
                "%s: %d of %d images have no field %s, and others have: beside the other field it counts as empty, and "
                "without both all classes are labelled", problems.source, lacking, len(images), field,
            )  # fmt: skip
    return labelled


def _read_boxes(records: Sequence[Mapping[str, Any]], image_id: np.ndarray, problems: Problems) -> Boxes:
    references = _integers(records, "annotation", "image_id", problems)
    row = map_ids(references, image_id)
    problems.add_all(
        (
            f"annotation {_record_name(records[i], i)}: field image_id is {references[i]}, which no image has"
            for i in np.flatnonzero(row < 0).tolist()
        ),
        "delete annotations of images that the file does not list, or list the images",
    )
    bbox, area = np.zeros((len(records), 4)), np.full(len(records), np.nan)
    crowd = np.zeros(len(records), bool)
    for index, record in enumerate(records):
        name, box, size = _record_name(record, index), record.get("bbox"), record.get("area")
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            bbox[index] = box
        else:
            problems.add(
                f"annotation {name}: field bbox is {shown(box)}, not four numbers",
                "write bbox as [x, y, width, height] in pixels, or delete the annotation",
            )
        if size is not None and is_number(size) and math.isfinite(size):
            area[index] = size
        elif size is not None:
            problems.add(
                f"annotation {name}: field area is {shown(size)}, not a finite number",
                "write area as a number, or null or no field for width x height",
            )
        flag = as_flag(record.get("iscrowd"))
        if flag is None:
            problems.add(
                f"annotation {name}: field iscrowd is {shown(record['iscrowd'])}, neither yes nor no",
                "write iscrowd as 0 or 1",
            )
        crowd[index] = bool(flag)
    return Boxes(
        row=row,
        # Annotations without an id go by their position, so that messages lead to them.
        id=_integers(records, "annotation", "id", problems, range(len(records))),
        bbox=bbox,
        category=_integers(records, "annotation", "category_id", problems),
        area=area,
        iscrowd=crowd,
    )
