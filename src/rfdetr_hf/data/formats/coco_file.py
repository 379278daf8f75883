"""One COCO annotation file as arrays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...tasks import TaskName
from ..annotations import Annotations, Boxes, ReadOptions, map_ids
from ..errors import DetectionDataError, Problems
from ..keypoints import ClassKeypoints
from ..masks import packed_mask
from .coco_keypoints import class_keypoints, keypoint_array


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
    for index, image in enumerate(images):
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            problems.add(f"image {_record_name(image, index)}: field file_name is missing", "name the image's file")
    unknown = [-1] * len(images)
    size = np.stack([_integers(images, "image", side, problems, unknown) for side in ("width", "height")], axis=1)
    boxes = _read_boxes(records, image_id, problems)
    keypoints: dict[int, ClassKeypoints] = {}
    if options.task == "keypoints":
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
        masks=[record.get("segmentation") for record in records] if options.task == "segmentation" else None,
    )


def _load_json(path: Path, task: TaskName) -> dict[str, Any]:
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


def _reduced(record: dict[str, Any], task: TaskName) -> dict[str, Any]:
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
            for i in np.flatnonzero(row < 0).tolist()
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
