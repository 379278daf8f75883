"""The data.yaml of a YOLO data set."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import DetectionDataError
from ..keypoints import COCO_KEYPOINTS, ClassKeypoints, pairs_of_permutation

_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True)
class YoloConfig:
    """What a data.yaml says.

    Attributes:
        file: the yaml file.
        root: the data set's folder.
        splits: split as the file calls it -> folders of images, files that list images.
        names: class id -> name; ids may have gaps.
        num_keypoints, keypoint_dims: of `kpt_shape`, or 0.
        keypoints: what they are, one entry per class id.
        skip_unlabelled: leave out images without a label file (`skip_if_label_file_missing`), instead of taking them
            as images without objects.
    """

    file: Path
    root: Path
    splits: dict[str, list[str]]
    names: dict[int, str]
    num_keypoints: int = 0
    keypoint_dims: int = 0
    keypoints: dict[int, ClassKeypoints] = field(default_factory=dict)
    skip_unlabelled: bool = False


def read_yaml(file: Path) -> YoloConfig:
    """Read a data.yaml.

    Raises:
        DetectionDataError: the file is no data.yaml, or its fields do not fit each other.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DetectionDataError(f"{file}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict) or "names" not in content or not any(content.get(name) for name in _SPLITS):
        raise DetectionDataError(f"{file}: a YOLO data set needs the fields names and train (or val, test)")
    names = _names(content, file)
    values = {name: content[name] for name in _SPLITS if content.get(name)}
    splits = {name: [str(part) for part in (v if isinstance(v, list) else [v])] for name, v in values.items()}
    count, dims, keypoints = _keypoints(content, names, file)
    path = content.get("path")
    root = file.parent if path is None else file.parent / Path(str(path)).expanduser()
    # A folder that was moved, or that another tool would look up in a folder of its own, is where its yaml is.
    root = Path(os.path.normpath((root if root.is_dir() else file.parent).absolute()))
    skip = bool(content.get("skip_if_label_file_missing"))
    return YoloConfig(file, root, splits, names, count, dims, keypoints, skip)


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(i, int) and i >= 0 for i in names):
        raise DetectionDataError(f"{file}: field names must be a list, or class ids from 0 with their names")
    if isinstance(content.get("nc"), int) and content["nc"] != len(names):
        raise DetectionDataError(f"{file}: field nc is {content['nc']}, but there are {len(names)} names; correct one")
    return {i: str(name) for i, name in names.items()}


def _keypoints(
    content: Mapping[str, Any], names: Mapping[int, str], file: Path
) -> tuple[int, int, dict[int, ClassKeypoints]]:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0, 0, {}
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape)) or (
        shape[0] < 1 or shape[1] not in (2, 3)
    ):
        raise DetectionDataError(f"{file}: field kpt_shape is {shape!r}; write [number of keypoints, 2 or 3]")
    count, dims = shape
    given = content.get("kpt_names") or {}
    given = dict.fromkeys(names, given) if isinstance(given, list) else given
    # Without names, 17 keypoints of persons are COCO's.
    people = count == len(COCO_KEYPOINTS) and list(names.values()) == ["person"]
    default = list(COCO_KEYPOINTS) if people else [f"keypoint_{k}" for k in range(count)]
    keypoints = {}
    for i in names:
        own = given.get(i, default)
        if len(own) != count:
            raise DetectionDataError(f"{file}: field kpt_names has {len(own)} names for class {i}, kpt_shape {count}")
        try:
            flip = content.get("flip_idx")
            pairs = None if flip is None else pairs_of_permutation(flip, count)
            keypoints[i] = ClassKeypoints.of([str(name) for name in own], flip_pairs=pairs)
        except (TypeError, ValueError) as error:
            raise DetectionDataError(f"{file}: fields flip_idx, kpt_names: {error}") from error
    return count, dims, keypoints
