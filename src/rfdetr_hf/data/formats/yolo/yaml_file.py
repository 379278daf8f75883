"""The data.yaml of a YOLO data set."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ....values import as_flag, as_integer, shown
from ...errors import DetectionDataError
from ...images import is_hidden
from ...keypoints import COCO_KEYPOINTS, ClassKeypoints, pairs_of_permutation

logger = logging.getLogger(__name__)

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_MAX_YAML_FILES = 20
_MAX_BYTES = 10_000_000
_MAX_KEYPOINTS = 1000
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
        from_roboflow: whether Roboflow has written it.
    """

    file: Path
    root: Path
    splits: dict[str, list[str]]
    names: dict[int, str]
    num_keypoints: int = 0
    keypoint_dims: int = 0
    keypoints: dict[int, ClassKeypoints] = field(default_factory=dict)
    skip_unlabelled: bool = False
    from_roboflow: bool = False


def find_yaml(path: Path) -> Path | None:
    """The data.yaml of a data set: the file itself, or the one file of a folder that lists names and images.

    Raises:
        DetectionDataError: several files do.
    """
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    named = next((path / name for name in YAML_NAMES if (path / name).is_file()), None)
    if named is not None or not path.is_dir():
        return named
    others = []
    for file in sorted(path.glob("*.y*ml"))[:_MAX_YAML_FILES]:
        if file.is_file() and not is_hidden(file.name):
            try:
                content = _load(file)
            except DetectionDataError:
                continue
            if isinstance(content, dict) and "names" in content and any(content.get(name) for name in _SPLITS):
                others.append(file)
    if len(others) > 1:
        raise DetectionDataError(f"{path}: several data.yaml: {[file.name for file in others]}; give the path of one")
    return others[0] if others else None


def warn_of_other_names(config: YoloConfig) -> None:
    """Warn of other lists of classes beside the yaml file that name other classes, or in another order."""
    ours = [config.names[i] for i in sorted(config.names)]
    folders = [".", "labels", *(f"labels/{split}" for split in _SPLITS), *(f"{split}/labels" for split in _SPLITS)]
    texts = [config.root / "obj.names", *(config.root / folder / "classes.txt" for folder in folders)]
    for file in (*texts, *(config.file.parent / name for name in YAML_NAMES)):
        if not file.is_file() or file.samefile(config.file):
            continue
        if file in texts:
            theirs = [line.strip() for line in file.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
        else:
            try:
                names = _names(_load(file), file)
            except (DetectionDataError, LookupError, TypeError):  # another kind of file
                continue
            theirs = [names[i] for i in sorted(names)]
        if theirs != ours:
            logger.warning(
                "%s: its classes are %s, which count, and those of %s are %s; correct or remove the one that is wrong",
                config.file, shown(ours), file, shown(theirs),
            )  # fmt: skip


def read_yaml(file: Path) -> YoloConfig:
    """Read a data.yaml; names are read as they are written, also those that YAML takes for a number or a truth value.

    Raises:
        DetectionDataError: the file is no data.yaml, or its fields do not fit each other.
    """
    content = _load(file)
    if not isinstance(content, dict) or "names" not in content or not any(content.get(name) for name in _SPLITS):
        raise DetectionDataError(f"{file}: a YOLO data set needs the fields names and train (or val, test)")
    names = _names(content, file)
    splits: dict[str, list[str]] = {}
    for name in _SPLITS:
        value = content.get(name)
        entries: list[Any] = value if isinstance(value, list) else [value]
        if _is_null(value):
            continue
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise DetectionDataError(
                f"{file}: field {name} is {shown(value)}; write a folder, a file or a list of them"
            )
        if entries not in splits.values() or name in ("train", "val", "test"):
            splits[name] = entries
    count, dims, keypoints = _keypoints(content, names, file)
    path = content.get("path")
    if not (_is_null(path) or isinstance(path, str)):
        raise DetectionDataError(f"{file}: field path is {shown(path)}; write the folder of the data set")
    root = file.parent if path is None or _is_null(path) else file.parent / Path(path).expanduser()
    # A folder that was moved, or that another tool would look up in a folder of its own, is where its yaml is.
    if not root.is_dir():
        logger.warning("%s: field path: %s is not there; its folders are looked for beside the file", file, shown(path))
    root = Path(os.path.normpath((root if root.is_dir() else file.parent).absolute()))
    skip = as_flag(content.get("skip_if_label_file_missing"))
    if skip is None:
        raise DetectionDataError(f"{file}: field skip_if_label_file_missing is neither true nor false")
    return YoloConfig(file, root, splits, names, count, dims, keypoints, skip, "roboflow" in content)


class _AsWritten(yaml.BaseLoader):
    """Scalars as text, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"field {shown(twice)} stands twice, line {node.start_mark.line + 1}; delete one")
        return super().construct_mapping(node, deep=deep)


def _load(file: Path) -> Any:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        return yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_AsWritten)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = "it is nested without end" if isinstance(error, RecursionError) else error
        raise DetectionDataError(f"{file}: cannot be read as YAML ({reason}); correct the file") from error


def _is_null(value: Any) -> bool:
    return value is None or isinstance(value, str) and value in ("", "~", "null", "Null", "NULL")


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    names = content["names"]
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    ids = [as_integer(i) for i in names] if isinstance(names, dict) else [None]
    if not isinstance(names, dict) or any(i is None or i < 0 for i in ids):
        raise DetectionDataError(f"{file}: field names must be a list, or class ids from 0 with their names")
    found: dict[int, str] = {}
    for i, name in zip(ids, names.values(), strict=True):
        if not isinstance(name, str) or not name.strip():
            raise DetectionDataError(f"{file}: field names: class {i} is {shown(name)}; give each class a name")
        found[i or 0] = name
    nc = content.get("nc")
    number = as_integer(nc)
    if not _is_null(nc) and number != len(found):
        given = shown(nc) if number is None else number
        raise DetectionDataError(f"{file}: field nc is {given}, but there are {len(found)} names; correct one")
    return found


def _keypoints(
    content: Mapping[str, Any], names: Mapping[int, str], file: Path
) -> tuple[int, int, dict[int, ClassKeypoints]]:
    shape = content.get("kpt_shape")
    if shape is None or _is_null(shape):
        return 0, 0, {}
    numbers = [as_integer(number) for number in shape] if isinstance(shape, list) else []
    count, dims = numbers if len(numbers) == 2 else (None, None)
    if count is None or not 1 <= count <= _MAX_KEYPOINTS or dims not in (2, 3):
        raise DetectionDataError(f"{file}: field kpt_shape is {shown(shape)}; write [number of keypoints, 2 or 3]")
    given = content.get("kpt_names") or {}
    given = {str(i): given for i in names} if isinstance(given, list) else given
    if not isinstance(given, dict) or not all(isinstance(each, list) for each in given.values()):
        raise DetectionDataError(f"{file}: field kpt_names is {shown(given)}; write a list of names for each class")
    flip: Any = content.get("flip_idx")
    flip = [as_integer(i) for i in flip] if isinstance(flip, list) else flip
    # Without names, 17 keypoints of persons are COCO's.
    people = count == len(COCO_KEYPOINTS) and list(names.values()) == ["person"]
    default = list(COCO_KEYPOINTS) if people else [f"keypoint_{k}" for k in range(count)]
    keypoints = {}
    for i in names:
        own = given.get(str(i), default)
        if len(own) != count:
            raise DetectionDataError(f"{file}: field kpt_names has {len(own)} names for class {i}, kpt_shape {count}")
        try:
            pairs = None if flip is None or _is_null(flip) else pairs_of_permutation(flip, count)
            keypoints[i] = ClassKeypoints.of([str(name) for name in own], flip_pairs=pairs)
        except (TypeError, ValueError) as error:
            raise DetectionDataError(f"{file}: fields flip_idx, kpt_names: {error}") from error
    return count, dims, keypoints
