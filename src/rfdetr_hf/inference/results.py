"""Detections as values for files, and the files, which grow with them: JSON, JSON lines, a COCO data set, crops."""

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from pycocotools import mask as mask_utils

from ..choices import counted
from ..data.keypoints import ClassKeypoints, KeypointSchema
from ..evaluation.detection_table import compressed
from ..evaluation.metrics import highest_rejected
from ..models.configuration_rfdetr import RFDETRConfig
from .images import NamedImage, bounded
from .yolo import NOT_LABELLED, VISIBLE, YoloDataset

_NOT_IN_FILES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


def keypoints_of_classes(config: RFDETRConfig) -> list[ClassKeypoints]:
    """Names and skeletons of the keypoints by label; names are numbers where the model does not know them."""
    if config.keypoint_schema:
        return list(KeypointSchema.from_dict(config.keypoint_schema).classes)
    counts = config.num_keypoints_per_class or []
    return [ClassKeypoints.of([str(k + 1) for k in range(count)], flip_pairs=()) for count in counts]


def as_records(detections: Mapping[str, Any], id2label: Mapping[int, str], threshold: float) -> list[dict[str, Any]]:
    """The detections of one image above the threshold: `label`, `score` and `box` (x1, y1, x2, y2 in pixels).

    Masks, where there are any, come as `mask`, a COCO run-length encoding with `counts` as text; keypoints as
    `keypoints`, (x, y) in pixels and, where the model gives it, the confidence.
    """
    records = []
    for i, score in enumerate(detections["scores"].tolist()):
        if score <= threshold:
            continue
        box = [round(value, 2) for value in detections["boxes"][i].tolist()]
        record = {"label": id2label[int(detections["labels"][i])], "score": round(score, 5), "box": box}
        if detections.get("masks") is not None:
            record["mask"] = run_length(detections["masks"][i])
        if detections.get("keypoints") is not None:
            record["keypoints"] = [[round(value, 4) for value in p] for p in detections["keypoints"][i].tolist()]
        records.append(record)
    return records


def run_length(mask: Any) -> dict[str, Any]:
    """A mask, (height, width) or a COCO run-length encoding, as an encoding that JSON takes: `counts` is text."""
    if not isinstance(mask, Mapping):
        mask = mask_utils.encode(np.asfortranarray(np.asarray(mask).astype(bool).astype(np.uint8)))
    mask = compressed(mask)
    return {**mask, "counts": mask["counts"].decode("ascii")}


class CocoResults:
    """Collects the detections of images as a COCO data set, with a `score` in every annotation.

    Args:
        id2label: names of the classes; their ids become the category ids.
        keypoints: of the classes by label, where the model finds any; see `keypoints_of_classes`.
        keypoint_threshold: keypoints of this confidence or less are not labelled (v = 0), others visible (v = 2).
    """

    def __init__(
        self,
        id2label: Mapping[int, str],
        keypoints: Sequence[ClassKeypoints] = (),
        keypoint_threshold: float = 0.3,
    ) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._counts = [0, 0]
        self.categories: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in sorted(id2label.items())]
        self.keypoint_threshold = keypoint_threshold
        for category, each in zip(self.categories, keypoints, strict=False):
            # COCO counts the ends of a skeleton's lines from 1.
            skeleton = [[a + 1, b + 1] for a, b in each.skeleton]
            category |= {"keypoints": list(each.names), "skeleton": skeleton} if each.names else {}

    def add(self, file_name: str, size: tuple[int, int], detections: Mapping[str, Any], threshold: float = 0.0) -> None:
        """Add one image.

        Args:
            file_name: how the image is found.
            size: width and height in pixels.
            detections: `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy in pixels; also `masks`, (n, height, width)
                or n run-length encodings, and `keypoints` (n, K, 3) in pixels with their confidence.
            threshold: scores must be above it.
        """
        image, annotations = self.records(file_name, size, detections, threshold)
        self.images.append(image)
        self.annotations += annotations

    def records(
        self, file_name: str, size: tuple[int, int], detections: Mapping[str, Any], threshold: float = 0.0, **more: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The next image and its annotations, numbered on; they are not kept. For the arguments see `add`.

        Args:
            more: further fields of the image.
        """
        self._counts[0] += 1
        image = {"id": self._counts[0], "file_name": file_name, "width": size[0], "height": size[1], **more}
        annotations, rejected = [], highest_rejected(threshold)
        for i, score in enumerate(detections["scores"].tolist()):
            if score > rejected:
                self._counts[1] += 1
                head = {"id": self._counts[1], "image_id": image["id"]}
                annotations.append({**head, **self._annotation(detections, i), "score": round(score, 5)})
        return image, annotations

    def _annotation(self, detections: Mapping[str, Any], i: int) -> dict[str, Any]:
        x1, y1, x2, y2 = (round(value, 2) for value in detections["boxes"][i].tolist())
        bbox = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        annotation: dict[str, Any] = {"category_id": int(detections["labels"][i]), "bbox": bbox}
        annotation |= {"area": round(bbox[2] * bbox[3], 2), "iscrowd": 0}
        if detections.get("masks") is not None:
            rle: Any = run_length(detections["masks"][i])
            annotation |= {"segmentation": rle, "area": int(mask_utils.area(rle))}
        if detections.get("keypoints") is not None:
            annotation |= self._keypoints(detections["keypoints"][i].tolist(), annotation["category_id"])
        return annotation

    def _keypoints(self, points: Sequence[Sequence[float]], label: int) -> dict[str, Any]:
        names, numbers = self.categories[label].get("keypoints", ()), list[float]()
        for x, y, confidence in points[: len(names)]:
            seen = confidence > self.keypoint_threshold
            numbers += [round(x, 2), round(y, 2), VISIBLE] if seen else [0, 0, NOT_LABELLED]
        return {"keypoints": numbers, "num_keypoints": sum(v > 0 for v in numbers[2::3])} if names else {}

    def to_dict(self) -> dict[str, Any]:
        """What a COCO file holds."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}


class JsonFile(AbstractContextManager):
    """A JSON object that grows on disk, entry by entry; what was added before an error is valid JSON after it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write("{")
        self._entries = 0

    def add(self, name: str, value: Any) -> None:
        """One more entry."""
        self.open(name)
        self._file.write(json.dumps(value))
        self._file.flush()

    def open(self, name: str) -> None:
        """The name of an entry, whose value `write` gives."""
        self._file.write(("," if self._entries else "") + f"\n {json.dumps(name)}: ")
        self._entries += 1

    def write(self, text: str) -> None:
        """A part of the value of the entry that `open` began."""
        self._file.write(text)

    def __exit__(self, *error: object) -> None:
        self._file.write("\n}\n")
        self._file.close()


class CocoFile(AbstractContextManager):
    """A COCO data set that grows on disk: its images wait in a temporary file beside it, not in memory.

    Args:
        path: of the file.
        coco: makes the records.
    """

    def __init__(self, path: Path, coco: CocoResults) -> None:
        self._coco, self._annotations, self._images = coco, 0, 0
        self._waiting: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", dir=path.parent)
        self._file = JsonFile(path)
        self._file.add("categories", coco.categories)
        self._file.open("annotations")
        self._file.write("[")

    def add(self, file_name: str, size: tuple[int, int], detections: Mapping[str, Any], **more: Any) -> None:
        """One more image; see `CocoResults.records`."""
        image, annotations = self._coco.records(file_name, size, detections, -1.0, **more)
        for annotation in annotations:
            self._file.write(("," if self._annotations else "") + "\n  " + json.dumps(annotation))
            self._annotations += 1
        self._waiting.write(json.dumps(image) + "\n")

    def __exit__(self, *error: object) -> None:
        self._file.write("]")
        self._file.open("images")
        self._waiting.seek(0)
        for number, line in enumerate(self._waiting):
            self._file.write(("," if number else "[") + "\n  " + line.rstrip("\n"))
        self._file.write("]" if self._waiting.tell() else "[]")
        self._waiting.close()
        self._file.__exit__()


class JsonResults(AbstractContextManager):
    """predictions.json: an entry for each image."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, JsonFile(path)

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """One more image with its detections, and their `as_records`."""
        self._file.add(item.name, {"source": str(item.source), **item.place, "objects": records})

    def __exit__(self, *error: object) -> None:
        self._file.__exit__()


class JsonLines(AbstractContextManager):
    """predictions.jsonl: a line for each image, complete as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.open("w", encoding="utf-8")

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """One more image with its detections, and their `as_records`."""
        head = {"name": item.name, "source": str(item.source), **item.place}
        size = dict(zip(("width", "height"), item.image.size, strict=True))
        self._file.write(json.dumps({**head, **size, "objects": records}) + "\n")
        self._file.flush()

    def __exit__(self, *error: object) -> None:
        self._file.close()


class CocoDataset(AbstractContextManager):
    """coco.json. Frames of a video and rows of a data set have file names of their own."""

    def __init__(self, path: Path, coco: CocoResults) -> None:
        self.path, self._file = path, CocoFile(path, coco)

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """One more image with its detections."""
        origin = "video" if item.frame is not None else "dataset"
        more = {origin: str(item.source), **item.place} if item.place else {}
        self._file.add(f"{item.name}.png" if item.place else str(item.source), item.image.size, found, **more)

    def __exit__(self, *error: object) -> None:
        self._file.__exit__()


class Crops(AbstractContextManager):
    """A picture of each object, `<class>/<image>-<number>.png` in a folder.

    Args:
        path: of the folder.
        id2label: names of the classes; characters that a file system may refuse become "_".
    """

    def __init__(self, path: Path, id2label: Mapping[int, str]) -> None:
        self.path = path
        names = {i: bounded(_NOT_IN_FILES.sub("_", name).strip(" .") or "_") for i, name in id2label.items()}
        while shared := {n for n, count in Counter(map(str.lower, names.values())).items() if count > 1}:
            names = {i: f"{name}-{i}" if name.lower() in shared else name for i, name in names.items()}
        self._folders = names

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """The objects of one more image; what has no pixel inside it is left out."""
        width, height = item.image.size
        pairs = zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True)
        for number, (label, (x1, y1, x2, y2)) in enumerate(pairs):
            box = max(int(x1), 0), max(int(y1), 0), min(math.ceil(x2), width), min(math.ceil(y2), height)
            if box[0] < box[2] and box[1] < box[3]:
                where = self.path / self._folders[label] / f"{item.name}-{number:03d}.png"
                where.parent.mkdir(parents=True, exist_ok=True)
                item.image.crop(box).save(where)

    def __exit__(self, *error: object) -> None:
        """Every picture is written."""


class ResultFiles(AbstractContextManager):
    """What is asked for besides pictures: predictions.json, predictions.jsonl, coco.json, yolo/, crops/.

    Args:
        folder: where they are written.
        formats: of which "pictures" is not looked at.
        id2label, keypoints, keypoint_threshold: see `CocoResults`.

    Attributes:
        count: of the images that were added.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[str],
        id2label: Mapping[int, str],
        keypoints: Sequence[ClassKeypoints],
        keypoint_threshold: float,
    ) -> None:
        self.count = 0
        described = id2label, keypoints, keypoint_threshold
        make: dict[str, tuple[str, Callable[[Path], Any]]] = {
            "json": ("predictions.json", JsonResults),
            "jsonl": ("predictions.jsonl", JsonLines),
            "coco": ("coco.json", lambda path: CocoDataset(path, CocoResults(*described))),
            "yolo": ("yolo", lambda path: YoloDataset(path, *described)),
            "crops": ("crops", lambda path: Crops(path, id2label)),
        }
        self._writers = []
        for file, begin in (make[name] for name in make if name in formats):
            with writing(folder / file, 0):
                self._writers.append(begin(folder / file))

    @property
    def paths(self) -> list[Path]:
        """The files and folders that are written; there are no crops without an object."""
        return [writer.path for writer in self._writers if writer.path.exists()]

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """One more image with its detections, and their `as_records`."""
        for writer in self._writers:
            with writing(writer.path, self.count):
                writer.add(item, found, records)
        self.count += 1

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        failed: OSError | None = None
        for writer in reversed(self._writers):
            try:
                with writing(writer.path, self.count):
                    writer.__exit__(kind, error, traceback)
            except OSError as raised:
                failed = failed or raised
        if failed is not None and error is None:  # else the first error says it
            raise failed


@contextmanager
def writing(path: Path, done: int) -> Iterator[None]:
    """An error of the file system within it, as of a full disk, names the file and how many images were done before."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        text = f"{error.strerror}; {counted(done, 'image', 'was')} done before"
        raise OSError(error.errno, text, error.filename or str(path)) from error
