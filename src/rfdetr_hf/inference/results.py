"""Detections as values for files, a plain list for each image or a COCO data set, and files that grow with them."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
from pycocotools import mask as mask_utils

from ..data.keypoints import ClassKeypoints, KeypointSchema
from ..evaluation.detection_table import compressed
from ..models.configuration_rfdetr import RFDETRConfig
from .images import NamedImage

VISIBLE, NOT_LABELLED = 2, 0
_FILES = {"json": "predictions", "coco": "coco"}


def keypoints_of_classes(config: RFDETRConfig) -> list[ClassKeypoints]:
    """Names and skeletons of the keypoints by label; names are numbers where the model does not know them."""
    if config.keypoint_schema:
        return list(KeypointSchema.from_dict(config.keypoint_schema).classes)
    counts = config.num_keypoints_per_class or []
    return [ClassKeypoints.of([str(k + 1) for k in range(count)], flip_pairs=()) for count in counts]


def as_records(detections: Mapping[str, Any], id2label: Mapping[int, str], threshold: float) -> list[dict[str, Any]]:
    """The detections of one image above the threshold: `label`, `score` and `box` (x1, y1, x2, y2 in pixels).

    Masks, where there are any, come as `mask`, a COCO run-length encoding with `counts` as text; keypoints as
    `keypoints`, (x, y) in pixels and, where the model tells it, the confidence.
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
        annotations = []
        for i, score in enumerate(detections["scores"].tolist()):
            if score > threshold:
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


class ResultFiles(AbstractContextManager):
    """predictions.json and coco.json, as far as they are asked for.

    Args:
        folder: where they are written.
        formats: of which "json" and "coco" are looked at.
        coco: makes the records of coco.json.
    """

    def __init__(self, folder: Path, formats: Sequence[str], coco: CocoResults) -> None:
        self.paths = [folder / f"{file}.json" for name, file in _FILES.items() if name in formats]
        self._json = JsonFile(folder / "predictions.json") if "json" in formats else None
        self._coco = CocoFile(folder / "coco.json", coco) if "coco" in formats else None

    def add(self, item: NamedImage, found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """One more image with its detections, and their `as_records`. A frame of a video has a file name of its own."""
        is_frame = item.frame is not None
        if self._json is not None:
            frame = {"frame": item.frame} if is_frame else {}
            self._json.add(item.name, {"source": str(item.source), **frame, "objects": records})
        if self._coco is not None:
            of_video = {"video": str(item.source), "frame": item.frame} if is_frame else {}
            self._coco.add(f"{item.name}.png" if is_frame else str(item.source), item.image.size, found, **of_video)

    def __exit__(self, *error: object) -> None:
        for file in (self._json, self._coco):
            if file is not None:
                file.__exit__()
