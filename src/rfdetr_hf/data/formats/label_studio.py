"""Label Studio's export "JSON": a list of tasks, each with a picture and the annotations that people made of it.

Coordinates are percents of the picture. Rectangles, polygons, ellipses and brush strokes are objects; keypoints belong
to the region that is their parent. The box of a turned rectangle or ellipse is the upright one around it.

Annotations that were cancelled do not count, and a task without any other is not labelled: its picture is left out. An
annotation without regions says that there is nothing: its picture is background. Of several annotations that differ one
must be the ground truth.
"""

import base64
import binascii
import json
import logging
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from datasets import Dataset

from ...choices import counted
from ...values import as_integer, is_number, shown
from ..annotations import ReadOptions
from ..errors import DetectionDataError, Problems, SplitMissingError
from ..images import IMAGE_SUFFIXES, ImageFolder, is_hidden
from ..keypoints import ClassKeypoints
from ..masks import encode_mask
from . import Found, read_splits, warn_of_others
from .brush import decode_brush
from .hub import is_saved
from .named import NamedObject, NamedSplit, Points, ellipse, find_pictures, finish_splits, hull, rectangle, turned

logger = logging.getLogger(__name__)

_IMAGE_FOLDERS = ("images", "upload", "media", "data")
_REMEDY = "correct or delete the region in Label Studio, and export again as JSON"
_HASH = re.compile(r"^[0-9a-f]{8}-")  # that Label Studio puts before the name of a file that it is given


class LabelStudioLocation(NamedTuple):
    """Where one split lies: its file, and the folders that may hold its pictures, likeliest first."""

    file: Path
    image_folders: tuple[Path, ...]


def find(root: Any, options: ReadOptions) -> Found | None:
    """An exported file, or a folder with some, each of which is a split."""
    if not isinstance(root, str) or options.load.get("data_files") or is_saved(Path(root)):
        return None
    path = Path(root)
    files = [path] if path.is_file() and path.suffix.lower() == ".json" else []
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if not is_hidden(file.name) and file.is_file()]
        files = [file for file in files if file.suffix.lower() == ".json"]
    files = [file for file in files if looks_like_tasks(file)]
    if not files:
        return None
    options.refuse(root, "is an export of Label Studio, which", "load", "label_dir", "bbox_format")
    splits: dict[str, LabelStudioLocation] = {}
    for file in files:
        if file.stem in splits:
            raise DetectionDataError(f"{file}: two files would be the split {file.stem!r}; rename one")
        given = options.image_dir.get(file.stem) if isinstance(options.image_dir, Mapping) else options.image_dir
        usual = [*(file.parent / name for name in _IMAGE_FOLDERS), file.parent]
        splits[file.stem] = LabelStudioLocation(file, (file.parent / given,) if given else tuple(usual))
    return Found(root, "Label Studio", splits)


def near(folder: Path) -> str:
    """How near a folder comes to an export of Label Studio."""
    return "no *.json with a list of tasks that have data and annotations (the export JSON, not JSON-MIN)"


def looks_like_tasks(file: Path) -> bool:
    """Whether a file is an export of tasks; it is searched, not parsed, since it may be large."""
    try:
        if not file.stat().st_size:
            return False
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            listed = re.match(rb"\s*\[", text[:256].removeprefix(b"\xef\xbb\xbf"))
            return bool(
                listed
                and re.search(rb'"data"\s*:\s*\{', text)
                and re.search(rb'"(annotations|predictions)"\s*:\s*\[', text)
            )
    except OSError as error:
        raise DetectionDataError(f"{file}: cannot be read ({error.strerror or error}); make it readable") from error


def read(found: Found, splits: Mapping[str, LabelStudioLocation], options: ReadOptions) -> dict[str, Dataset]:
    """Read splits; the label table is the sorted names of the first one's objects, or `class_names`.

    Raises:
        DetectionDataError: a file that is no JSON, missing pictures, annotations that differ, or malformed regions.
    """
    faults = {name: Problems(str(location.file)) for name, location in splits.items()}
    folders: dict[Path, ImageFolder] = {}
    read = read_splits(
        splits, options, lambda name, location: _Reader(location, options.task, faults[name]).read(folders)
    )
    for problems in faults.values():
        problems.raise_if_any()
    warn_of_others(found, splits, [at.file for at in found.splits.values()], ".json", looks_like_tasks)
    points: dict[str, set[str]] = {}
    for each in next(iter(read.values())).objects:
        points.setdefault(each.label, set()).update(each.keypoints)
    keypoints = {label: ClassKeypoints.of(sorted(names)) for label, names in points.items()}
    return finish_splits(read, options, {name: faults[name] for name in read}, keypoints=keypoints)


def _load(file: Path) -> list[Any]:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            tasks = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise DetectionDataError(f"{file}: cannot be read as JSON ({error}); export the tasks again") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DetectionDataError(f"{file}: is no list of tasks; export as JSON, not as JSON-MIN")
    return tasks


class _Reader:
    """Reads one file."""

    def __init__(self, location: LabelStudioLocation, task: str, problems: Problems) -> None:
        self.location, self.task, self.problems = location, task, problems
        self.split = NamedSplit(str(location.file))
        self.servers: dict[str, list[int]] = {}  # what serves pictures -> which of the split's

    def read(self, folders: dict[Path, ImageFolder]) -> NamedSplit:
        """The pictures and objects of the file."""
        labelled: list[tuple[str, list[dict[str, Any]]]] = []
        counted: list[tuple[str, Mapping[str, Any], list[dict[str, Any]]]] = []
        for index, task in enumerate(_load(self.location.file)):
            place = f"{self.location.file}: task {shown(task['id'])}" if "id" in task else f"task number {index}"
            results = self._results(task, place)
            if results is None:
                self.split.left_out["tasks that nobody has annotated"] += 1
                continue
            counted.append((place, task, results))
        everywhere = {target for _, _, results in counted for target in _targets(results)}
        for place, task, results in counted:
            address = self._address(task, place, _targets(results), everywhere)
            self.servers.setdefault(_server_of(address), []).append(self.split.add_picture("", _path_of(address), None))
            labelled.append((place, results))
        self.problems.raise_if_any()
        if not labelled:
            raise SplitMissingError(f"{self.location.file}: no task has an annotation; export annotated tasks")
        self._find(folders)
        for index, (place, results) in enumerate(labelled):
            self._read_task(index, place, results)
        return self.split

    def _find(self, folders: dict[Path, ImageFolder]) -> None:
        """The pictures in the folder that holds most of them.

        What all addresses of one server share at their beginning is the server's own; folders behind it count.
        """
        present = [path for path in self.location.image_folders if path.is_dir()]
        found: dict[Path, list[str]] = {}
        repairs: dict[Path, Counter[str]] = {}
        stripped: Counter[Path] = Counter()
        for path in present:
            folder = folders[path] = folders.get(path) or ImageFolder(path)
            found[path], repairs[path] = [""] * len(self.split.file_names), Counter()
            for indices in self.servers.values():
                names = [self.split.file_names[i] for i in indices]
                plain = [os.path.join(os.path.dirname(n), _HASH.sub("", os.path.basename(n))) for n in names]
                exact, without_hash = folder.resolve(names), folder.resolve(plain)
                repairs[path] += exact.repairs
                stripped[path] += max(exact.stripped, without_hash.stripped)
                for index, first, second in zip(indices, exact.paths, without_hash.paths, strict=True):
                    if file := first or second:
                        found[path][index] = os.path.relpath(file, path).replace(os.sep, "/")
                    repairs[path]["without the hash before their names"] += first is None and second is not None
        files = {path: [name and str(path / name) for name in names] for path, names in found.items()}
        best = max(present, key=lambda path: (sum(map(bool, found[path])), -stripped[path]), default=None)
        if best is not None and any(found[best]):
            best = next(path for path in present if files[path] == files[best])
            for reason, count in (+repairs[best]).items():
                logger.info("%s: found %s %s", self.split.source, counted(count, "image"), reason)
            self._note_shared(found[best])
            self.split.file_names = [
                file or name for file, name in zip(found[best], self.split.file_names, strict=True)
            ]
        usual = self.location.image_folders if best is None else (best,)
        find_pictures(self.split, self.location.file.stem, usual, folders, self.problems)

    def _note_shared(self, files: list[str]) -> None:
        """Note the addresses that lead to a file to which another one leads."""
        first: dict[str, str] = {}
        for file, name in zip(files, self.split.file_names, strict=True):
            if file and (other := first.setdefault(file, name)) != name:
                self.problems.add(
                    f"{shown(other)} and {shown(name)} both lead to {file}",
                    "put the pictures into folders as in their addresses, so that each leads to its own, "
                    "or take one of the tasks out",
                )

    def _results(self, task: Mapping[str, Any], place: str) -> list[dict[str, Any]] | None:
        """The regions of the annotation that counts; None where there is none."""
        annotations = task.get("annotations")
        annotations = [] if annotations is None else annotations
        if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
            self.problems.add(f"{place}: field annotations is {shown(annotations)}, no list", "export as JSON again")
            return []
        counted = [each for each in annotations if not each.get("was_cancelled")]
        truths = [each for each in counted if each.get("ground_truth")]
        counted = truths or counted
        results = [each.get("result") for each in counted]
        for each in results:
            if not isinstance(each, list) or not all(isinstance(region, dict) for region in each):
                self.problems.add(f"{place}: field result is {shown(each)}, no list of regions", "export as JSON again")
                return []
        # Two annotations that say the same have regions of other ids.
        said = {str(sorted(json.dumps([r.get("type"), r.get("value")], sort_keys=True) for r in e)) for e in results}
        if len(said) > 1:
            people = ", ".join(str(_person(each)) for each in counted)
            self.problems.add(
                f"{place}: has {len(counted)} annotations that differ (by {people})",
                "mark one annotation of the task as ground truth in Label Studio, or delete the others",
            )
        return results[0] if results else None

    def _address(self, task: Mapping[str, Any], place: str, targets: set[str], everywhere: set[str]) -> str:
        """The picture of a task: the one that its regions lie on, where it has several.

        Args:
            task: as written.
            place: for messages.
            targets: the names of the pictures that its regions lie on.
            everywhere: those of all tasks of the file.
        """
        data = task.get("data")
        texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
        suffixes = {key: os.path.splitext(_path_of(value))[1].lower() for key, value in texts.items()}
        names = {key: value for key, value in texts.items() if suffixes[key] in IMAGE_SUFFIXES}
        target = next(iter(targets or everywhere), "image") if len(targets or everywhere) < 2 else None
        if len(targets) > 1:
            self.problems.add(
                f"{place}: its regions lie on {len(targets)} pictures ({', '.join(sorted(targets))})",
                "have one picture in each task, as data.image",
            )
        elif len(names) == 1:
            return next(iter(names.values()))
        elif target in names:
            return names[target]
        elif "image" in names and len(everywhere) < 2:
            # The name of the picture in the labelling interface need not be that of its field.
            return names["image"]
        else:
            fault = (
                f"names {len(names)} pictures ({', '.join(names)})" if names else f"is {shown(data)}, without a picture"
            )
            self.problems.add(f"{place}: field data: {fault}", "have one picture in each task, as data.image")
        return ""

    def _read_task(self, image: int, place: str, results: list[dict[str, Any]]) -> None:
        regions = list(_merged(results))
        drawn = [region for region in regions if "keypointlabels" in region["value"] or _kind_of(region["value"])]
        for region in regions:
            if region not in drawn:
                self.split.left_out[f"results of the type {region.get('type')!r}"] += 1
        size = self._size(image, place, drawn)
        if size is None:
            return
        points = self._keypoints(drawn, place, size)
        for number, region in enumerate(drawn, start=1):
            value, where = region["value"], f"{place}, region {region.get('id', number)}"
            kind, labels = _kind_of(value), _labels_of(value)
            if kind is None or "keypointlabels" in value:
                continue
            if len(labels) != 1:
                fault = f"has the labels {labels}" if labels else "has no label"
                self.problems.add(f"{where}: {fault}", "give each region one label, and export again as JSON")
                continue
            try:
                box, mask = _shape(kind, value, size)
            except ValueError as error:
                self.problems.add(f"{where}: {error}", _REMEDY)
                continue
            own = points.pop(str(region["id"]), {}) if region.get("id") is not None else {}
            self.split.objects.append(NamedObject(image, labels[0], box, where, mask=mask, keypoints=own))
        lost = sum(map(len, points.values()))
        if lost and self.task == "keypoints":
            self.problems.add(
                f"{place}: {counted(lost, 'keypoint', 'belongs')} to no region",
                "drag them onto the region that they are a part of",
            )
        elif lost:
            self.split.left_out["keypoints without a region"] += lost

    def _size(self, image: int, place: str, regions: list[dict[str, Any]]) -> tuple[int, int] | None:
        """Width and height of the picture, which all regions give; None when they are faulty or there is no region."""
        sizes: set[tuple[Any, Any]] = set()
        for region in regions:
            if region.get("image_rotation") not in (None, 0):
                fault = f"field image_rotation is {shown(region['image_rotation'])}"
                self.problems.add(f"{place}: {fault}", "turn the picture itself, and annotate the turned file")
                return None
            sizes.add((as_integer(region.get("original_width")), as_integer(region.get("original_height"))))
        if not sizes:
            return None
        width, height = next(iter(sizes))
        if len(sizes) != 1 or width is None or height is None or min(width, height) < 1:
            fault = f"fields original_width and original_height are {sorted(sizes, key=str)}"
            self.problems.add(f"{place}: {fault}", "export again as JSON: all regions give the size of the picture")
            return None
        self.split.sizes[image] = self.split.sizes[image] or (width, height)
        return width, height

    def _keypoints(self, regions: list[dict[str, Any]], place: str, size: tuple[int, int]) -> dict[str | None, Points]:
        """The keypoints of each region by its id; None for those that belong to none."""
        found: dict[str | None, dict[str, tuple[float, float, int]]] = {}
        for region in regions:
            value = region["value"]
            if "keypointlabels" not in value:
                continue
            labels, where = _labels_of(value), f"{place}, keypoint {region.get('id')}"
            parent = region.get("parentID")
            own = found.setdefault(None if parent is None else str(parent), {})
            if len(labels) != 1 or not _all_numbers([value.get("x"), value.get("y")]):
                fault = f"has the labels {labels}, x {shown(value.get('x'))} and y {shown(value.get('y'))}"
                self.problems.add(f"{where}: {fault}", _REMEDY)
            elif labels[0] in own and parent is not None:
                self.problems.add(f"{where}: its region has two keypoints {labels[0]!r}", _REMEDY)
            else:
                hidden = bool(value.get("hidden") or region.get("hidden"))
                name = labels[0] if parent is not None else f"{labels[0]} {len(own)}"
                own[name] = (value["x"] * size[0] / 100, value["y"] * size[1] / 100, 1 if hidden else 2)
        return dict(found)


# What a region of each kind has, most telling first.
_FIELDS = {
    "brush": ("rle",),
    "polygon": ("points",),
    "ellipse": ("x", "y", "radiusX", "radiusY"),
    "rectangle": ("x", "y", "width", "height"),
}


def _targets(results: list[dict[str, Any]]) -> set[str]:
    """The names of the pictures that regions lie on, in the labelling interface; older exports do not say."""
    values = ((result.get("value"), result.get("to_name")) for result in results)
    return {
        str(target)
        for value, target in values
        if target and isinstance(value, dict) and ("keypointlabels" in value or _kind_of(value))
    }


def _kind_of(value: Mapping[str, Any]) -> str | None:
    return next((kind for kind, fields in _FIELDS.items() if all(name in value for name in fields)), None)


def _shape(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> tuple[Any, Any]:
    """Box in pixels and mask of a region.

    Raises:
        ValueError: fields that are missing or have another form; starts with "field".
    """
    scale = np.array(size) / 100
    if kind == "brush":
        pixels = decode_brush(value["rle"], size)
        rows, columns = pixels.any(axis=1).nonzero()[0], pixels.any(axis=0).nonzero()[0]
        if not len(rows):
            return (0.0, 0.0, 0.0, 0.0), None
        box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        return tuple(map(float, box)), {"rle": encode_mask(pixels)}
    if kind == "polygon":
        points = value["points"]
        pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
        if not pairs or len(points) < 3 or not _all_numbers([v for point in points for v in point]):
            raise ValueError(f"field points is {shown(points)}, not three or more pairs of percents")
        corners = (np.array(points, np.float64) * scale).ravel().tolist()
        return hull(corners), [corners]
    numbers = [value.get(name) for name in _FIELDS[kind]]
    degrees = value.get("rotation") or 0
    if not _all_numbers([*numbers, degrees]):
        raise ValueError(f"fields {', '.join(_FIELDS[kind])}, rotation are {shown([*numbers, degrees])}, no numbers")
    x, y, across, down = (np.array(numbers, np.float64) * np.tile(scale, 2)).tolist()
    if kind == "rectangle" and not degrees % 360:
        return (x, y, across, down), None
    corners = rectangle(x, y, across, down) if kind == "rectangle" else ellipse((x, y), (across, down))
    # Rectangles turn around their corner, which x and y are; ellipses around their centre, which x and y are.
    corners = turned(corners, degrees, (x, y))
    return hull(corners), [corners]


def _merged(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The regions: several results with one id say different things about one region, such as shape and label."""
    by_id: dict[Any, dict[str, Any]] = {}
    for index, result in enumerate(results):
        value = result.get("value")
        key = str(result["id"]) if result.get("id") is not None else index
        known = by_id.setdefault(key, {**result, "value": {}})
        known["value"] |= value if isinstance(value, dict) else {}
        known.update({name: each for name, each in result.items() if name not in ("value", "type")})
    return iter(by_id.values())


def _labels_of(value: Mapping[str, Any]) -> list[str]:
    lists = [each for name, each in value.items() if name.endswith("labels") and isinstance(each, list)]
    names = ("" if label is None else str(label) for each in lists for label in each)
    return list(dict.fromkeys(name for name in names if name.strip()))


def _all_numbers(values: list[Any]) -> bool:
    return all(is_number(value) and np.isfinite(value) for value in values)


def _person(annotation: Mapping[str, Any]) -> Any:
    person = annotation.get("completed_by")
    return person.get("email", person.get("id")) if isinstance(person, dict) else person


def _server_of(address: str) -> str:
    """What an address has from a server that gives all pictures names of their own, and "" without one."""
    if re.search(r"[?&]d=", address):
        return "local-files"
    address = _behind(address)
    if upload := re.search(r"data/upload/\d+/", address):
        return upload[0]
    return address.split("://")[0] + urlsplit(address).netloc if "://" in address else ""


def _behind(address: str) -> str:
    """The address of a storage behind the server, which is in base64; "" where it is malformed."""
    if (hidden := re.search(r"[?&]fileuri=([^&]*)", address)) is None:
        return address
    try:
        return base64.b64decode(unquote(hidden[1]), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _path_of(address: str) -> str:
    """The file that an address in a task means, without what the server puts before it."""
    if local := re.search(r"[?&]d=([^&]*)", address):  # local files: /data/local-files/?d=folder/a.jpg
        return unquote(local[1]).replace("\\", "/").lstrip("/")
    address = _behind(address)
    parts = urlsplit(address) if "://" in address else None
    path = address if parts is None else parts.path
    return unquote(path.split("?")[0]).replace("\\", "/").lstrip("/")
