"""A data set as a folder in the layout of Roboflow's COCO exports."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Mapping
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, cast

from datasets import Dataset

from ..images import IMAGE_SUFFIXES
from ..schema import (
    category_ids,
    class_names,
    coco_segmentation,
    has_keypoints,
    keypoint_schema,
    lvis_labels,
    undecoded,
)

_FOLDERS = {"validation": "valid"}
_FILE = "_annotations.coco.json"
_LONGEST_NAME = 255  # bytes, on all usual systems


def write_coco_folder(
    splits: Mapping[str, Dataset], folder: Path, image_bytes: Callable[[Mapping[str, Any], str], bytes]
) -> None:
    """Write `<split>/_annotations.coco.json` and the pictures beside it.

    Pictures keep their names where these are names below the folder; others are called by their image id. Classes that
    an image does not label are written as LVIS does, `neg_category_ids` and `not_exhaustive_category_ids`. What COCO
    files have no place for, such as the sigmas of keypoints, is left out.

    Args:
        splits: in the schema of `load_detection_dataset`.
        folder: exists and is empty.
        image_bytes: gives the encoded picture of a row and takes its name for messages.
    """
    for split, dataset in splits.items():
        place = folder / _FOLDERS.get(split, split)
        place.mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        taken: set[str] = set()
        ids = category_ids(dataset)
        if ids != sorted(ids):  # readers order the classes by their ids
            ids = list(range(len(ids)))
        for each in undecoded(dataset).with_format(None):
            row = cast(dict[str, Any], each)
            name = _file_name(row, taken)
            taken |= _places(name)
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:  # what is there is another image's
                file.write(image_bytes(row["image"], f"image with image_id {row['image_id']}"))
            sizes = {side: row[side] for side in ("width", "height")}
            labelled = {field: [ids[label] for label in labels] for field, labels in lvis_labels(row).items()}
            images.append({"id": row["image_id"], "file_name": name, **sizes, **labelled})
            annotations += _annotations(row, ids)
        content = {"images": images, "annotations": annotations, "categories": _categories(dataset, ids)}
        (place / _FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _file_name(row: Mapping[str, Any], taken: set[str]) -> str:
    name = row.get("file_name") or os.path.basename(row["image"]["path"] or "")
    parts = PurePosixPath(name).parts
    below = bool(parts) and not name.startswith("/") and ".." not in parts and ":" not in name and "\\" not in name
    below = below and all(len(part.encode(errors="surrogateescape")) <= _LONGEST_NAME for part in parts)
    suffix = os.path.splitext(name)[1].lower()
    if below and suffix in IMAGE_SUFFIXES and _free(name, taken):
        return name
    stem, suffix = f"{row['image_id']:012d}", suffix if suffix in IMAGE_SUFFIXES else ".jpg"
    names = chain([f"{stem}{suffix}"], (f"{stem}_{number}{suffix}" for number in count(1)))
    return next(each for each in names if _free(each, taken))


def _places(name: str) -> set[str]:
    """What a file takes of the names in its folder, letters of one case alike: its own, and "/" after its folders'."""
    path = PurePosixPath(unicodedata.normalize("NFC", name).casefold())
    return {str(path), *(f"{parent}/" for parent in path.parents)}


def _free(name: str, taken: set[str]) -> bool:
    """Whether no file has the name, or that of one of its folders, and no folder has it."""
    places = {each.rstrip("/") for each in _places(name)}
    own = unicodedata.normalize("NFC", name).casefold()
    return taken.isdisjoint({*places, f"{PurePosixPath(own)}/"})


def _annotations(row: Mapping[str, Any], ids: list[int]) -> list[dict[str, Any]]:
    objects = row["objects"]
    found = []
    for i, box in enumerate(objects["bbox"]):
        annotation = {
            "id": objects["id"][i], "image_id": row["image_id"], "category_id": ids[objects["category"][i]],
            "bbox": box, "area": objects["area"][i], "iscrowd": int(objects["iscrowd"][i]),
        }  # fmt: skip
        if "segmentation" in objects:
            mask = coco_segmentation(objects["segmentation"][i], row["height"], row["width"])
            annotation["segmentation"] = mask
        if "keypoints" in objects:
            points = objects["keypoints"][i]
            annotation |= {"keypoints": points, "num_keypoints": sum(v > 0 for v in points[2::3])}
        found.append(annotation)
    return found


def _categories(dataset: Dataset, ids: list[int]) -> list[dict[str, Any]]:
    categories: list[dict[str, Any]] = [
        {"id": number, "name": name} for number, name in zip(ids, class_names(dataset), strict=True)
    ]
    if has_keypoints(dataset):
        for category, each in zip(categories, keypoint_schema(dataset).classes, strict=True):
            skeleton = [[a + 1, b + 1] for a, b in each.skeleton]
            category |= {"keypoints": list(each.names), "skeleton": skeleton} if each.names else {}
    return categories
