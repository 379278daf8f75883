"""COCO detection scores: predictions stream into compact arrays, pycocotools does the scoring."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from rfdetr_hf.data import schema

# One detection, 28 bytes; `image` is the position of the image id among the sorted ids of the ground truth.
DETECTION = np.dtype([("image", "i4"), ("label", "i4"), ("score", "f4"), ("box", "f4", (4,))])
_WORDS = DETECTION.itemsize // 4
_AREAS = ("small", "medium", "large")  # pycocotools' order, after "all"


def coco_ground_truth(dataset: Dataset, class_names: Sequence[str] | None = None) -> COCO:
    """The annotations of a data set as a pycocotools `COCO`; images are not decoded.

    Crowds stay, areas are those of the annotations (width x height where there is none), and a category id is the
    contiguous label. Annotations are numbered from 1, because pycocotools takes a match with id 0 for no match.

    Args:
        dataset: Has the columns of `rfdetr_hf.data.schema`: `image_id`, `width`, `height` and `objects`, of which
            `bbox` and `category` are needed, `area` and `iscrowd` are optional.
        class_names: Names by label; default those of the `ClassLabel` feature of `category`.

    Raises:
        ValueError: A column is missing, an image id is no integer or appears twice, a label has no name, or the
            class names are not known.
    """
    names = list(class_names) if class_names is not None else schema.class_names(dataset)
    images, annotations = [], []
    for row in _annotation_rows(dataset):
        images.append({"id": row["image_id"], "width": row["width"], "height": row["height"]})
        annotations.extend(_annotations(row, len(names)))
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    ids = [image["id"] for image in images]
    if not all(isinstance(image_id, int) for image_id in ids):
        raise ValueError("Column image_id must hold integers; give the images numbers, e.g. their row index.")
    if len(set(ids)) < len(ids):
        raise ValueError(f"image_id appears more than once: {_sample(_repeated(ids))}.")
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    return _coco(images, annotations, categories)


class CocoEvaluator:
    """Scores one pass over a split: `update` per batch, `gather` where there are several processes, `compute`.

    Every detection given is kept, 28 bytes each, in float32. Only the `max_dets` best of an image *and category* count
    for the scores, so nothing that pycocotools would look at gets lost: give it all that the model's post-processing
    returns. Images that an evaluator never saw are an error, not images without detections.

    Args:
        ground_truth: A `COCO` (which may be shared by many evaluators) or a data set for `coco_ground_truth`.
        max_dets: Detections per image and category that count; COCO's standard is 100.
        label_map: Model label -> category id, for a model whose labels are not those of the ground truth; detections
            of labels that are not in the map are dropped. Without it a label is the category id.

    Attributes:
        ground_truth: The `COCO` in use.
        image_ids: Sorted image ids, int64.

    Raises:
        ValueError: `max_dets` of 10 or less, a map to an unknown category, or an annotation with id 0.
    """

    def __init__(
        self, ground_truth: COCO | Dataset, max_dets: int = 100, label_map: Mapping[int, int] | None = None
    ) -> None:
        self.ground_truth = ground_truth if isinstance(ground_truth, COCO) else coco_ground_truth(ground_truth)
        if 0 in self.ground_truth.anns:
            raise ValueError(
                "An annotation of the ground truth has id 0, which pycocotools scores as a miss: "
                "number the annotations from 1, or use coco_ground_truth(dataset)."
            )
        if max_dets <= 10:
            raise ValueError(f"max_dets={max_dets}: it must be above 10, the second of COCO's recall limits.")
        unknown = set(label_map.values()) - set(self.ground_truth.cats) if label_map else set()
        if unknown:
            raise ValueError(f"label_map leads to category ids that the ground truth has not: {_sample(unknown)}.")
        self.max_dets = max_dets
        self.label_map = label_map
        self.image_ids = np.array(sorted(self.ground_truth.imgs), dtype=np.int64)
        self._position = {image_id: position for position, image_id in enumerate(self.image_ids.tolist())}
        self._seen = np.zeros(len(self.image_ids), dtype=np.uint8)
        self._chunks: list[np.ndarray] = []
        self._gathered = False

    def update(self, image_ids: Sequence[int] | Tensor, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Adds the detections of a batch, in one copy from the device.

        Args:
            image_ids: One id for each prediction.
            predictions: Per image `scores` (n,), `labels` (n,) and `boxes` (n, 4) xyxy in pixels of the original
                image. Equal scores rank in the order given.

        Raises:
            ValueError: An image id is unknown or was scored before, sizes do not fit, a number is not finite, or a
                label is not a category of the ground truth.
        """
        self._require_open("update")
        ids = [int(i) for i in (image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids)]
        if len(ids) != len(predictions):
            raise ValueError(f"{len(ids)} image ids but {len(predictions)} predictions.")
        positions = self._positions(ids)
        if ids:
            self._chunks.append(self._categorised(_pack(ids, positions, predictions)))
        self._seen[positions] = 1

    def gather(self, accelerator: Accelerator) -> None:
        """Merges the detections of all processes into every one of them; all must call it, once, after the updates.

        Raises:
            ValueError: An image was scored by more than one process.
        """
        self._require_open("gather")
        self._gathered = True
        if accelerator.num_processes == 1:
            return
        # A first row of padding keeps the tensor from being empty on a process without detections.
        padding = np.full((1, _WORDS), -1, dtype=np.int32)
        words = np.concatenate([padding, *(chunk.view(np.int32).reshape(-1, _WORDS) for chunk in self._chunks)])
        rows = accelerator.pad_across_processes(torch.from_numpy(words).to(accelerator.device), dim=0, pad_index=-1)
        rows = accelerator.gather(rows).cpu().numpy()
        seen = accelerator.gather(torch.from_numpy(self._seen)[None].to(accelerator.device)).sum(0).cpu().numpy()
        if (seen > 1).any():
            raise ValueError(f"Scored by more than one process: images {_sample(self.image_ids[seen > 1])}.")
        self._seen = seen.astype(np.uint8)
        self._chunks = [np.ascontiguousarray(rows[rows[:, 0] >= 0]).view(DETECTION).reshape(-1)]

    @property
    def detections(self) -> np.ndarray:
        """All detections as one array of dtype `DETECTION` (label = category id, box = xyxy), ordered by image."""
        rows = np.concatenate(self._chunks) if self._chunks else np.empty(0, dtype=DETECTION)
        return rows[np.argsort(rows["image"], kind="stable")]

    def run(self, partial: bool = False) -> COCOeval:
        """pycocotools' evaluation, accumulated: its `eval` holds the precision, recall and score arrays.

        Args:
            partial: Score only the images that were updated, instead of failing where some were not.

        Raises:
            ValueError: Images of the ground truth were never updated (the message lists them).
        """
        missing = self.image_ids[self._seen == 0]
        if len(missing) and not partial:
            raise ValueError(
                f"{len(missing)} of {len(self.image_ids)} images were not evaluated: {_sample(missing)}. Update with "
                "each image, call gather(accelerator) under several processes, or pass partial=True to leave them out."
            )
        results = _coco(self.ground_truth.dataset["images"], self._results(), self.ground_truth.dataset["categories"])
        with _silenced():
            evaluation = COCOeval(self.ground_truth, results, "bbox")
            evaluation.params.imgIds = self.image_ids[self._seen > 0].tolist()
            evaluation.params.maxDets = [1, 10, self.max_dets]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def compute(self, per_class: bool = False, partial: bool = False) -> dict[str, float]:
        """The twelve COCO numbers in [0, 1], or -1 where there is nothing to score.

        Args:
            per_class: Adds `map_class_<name>` and `mar_<max_dets>_class_<name>` for each category.
            partial: See `run`.

        Returns:
            `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_1`, `mar_10`, `mar_100`,
            `mar_small`, `mar_medium`, `mar_large`. With another `max_dets` than 100 all but `mar_1` and `mar_10` are
            at that limit, and `mar_100` carries it in its name.
        """
        evaluation = self.run(partial)
        scores = summarize(evaluation)
        if per_class:
            scores |= self._per_class(evaluation)
        return scores

    def predictions_json(self, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The detections in COCO's results format, for `json.dump`.

        Args:
            category_ids: Original category id by label; default the category ids of the ground truth.
        """
        results = []
        for item in self._results():
            label = item["category_id"]
            results.append(
                {
                    "image_id": item["image_id"],
                    "category_id": label if category_ids is None else int(category_ids[label]),
                    "bbox": item["bbox"],
                    "score": item["score"],
                }
            )
        return results

    def _require_open(self, action: str) -> None:
        if self._gathered:
            raise RuntimeError(f"{action}() after gather(): use a new CocoEvaluator for each pass over the data.")

    def _positions(self, ids: Sequence[int]) -> list[int]:
        unknown = [image_id for image_id in ids if image_id not in self._position]
        if unknown:
            raise ValueError(f"Images {_sample(unknown)} are not in the ground truth.")
        positions = [self._position[image_id] for image_id in ids]
        scored = [image_id for image_id, position in zip(ids, positions, strict=True) if self._seen[position]]
        scored += _repeated(ids)
        if scored:
            raise ValueError(f"Images {_sample(scored)} were scored already; each image counts once.")
        return positions

    def _categorised(self, rows: np.ndarray) -> np.ndarray:
        """Detections with category ids for labels."""
        labels, inverse = np.unique(rows["label"], return_inverse=True)
        if self.label_map is None:
            unknown = set(labels.tolist()) - set(self.ground_truth.cats)
            if unknown:
                raise ValueError(
                    f"Predicted labels {_sample(unknown)} are not categories of the ground truth; pass label_map to "
                    "say what the labels of the model mean."
                )
            return rows
        kept = np.array([label in self.label_map for label in labels.tolist()], dtype=bool)[inverse]
        categories = np.array([self.label_map.get(label, -1) for label in labels.tolist()], dtype=np.int32)
        rows["label"] = categories[inverse]
        return rows[kept]

    def _results(self) -> list[dict[str, Any]]:
        """What pycocotools' `loadRes` makes of the detections, less a polygon for each that no box score reads."""
        rows = self.detections
        boxes = rows["box"].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        fields = (self.image_ids[rows["image"]], rows["label"], rows["score"], boxes, boxes[:, 2] * boxes[:, 3])
        return [
            {"id": n, "image_id": image, "category_id": label, "score": score, "bbox": box, "area": area, "iscrowd": 0}
            for n, (image, label, score, box, area) in enumerate(
                zip(*(field.tolist() for field in fields), strict=True), start=1
            )
        ]

    def _per_class(self, evaluation: COCOeval) -> dict[str, float]:
        names = [self.ground_truth.cats[category]["name"] for category in evaluation.params.catIds]
        if len(set(names)) < len(names):
            raise ValueError("Scores per class need distinct class names; two categories share one.")
        precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
        scores = {f"map_class_{name}": _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
        recalls = {f"mar_{self.max_dets}_class_{name}": _mean(recall[:, k, 0, -1]) for k, name in enumerate(names)}
        return scores | recalls


def summarize(evaluation: COCOeval) -> dict[str, float]:
    """The twelve COCO numbers of an accumulated evaluation, by name, with its own maxDets (pycocotools insists on 100).

    Each is the mean over the defined entries (> -1) of the `precision` (IoU, recall, class, area, maxDets) or `recall`
    (IoU, class, area, maxDets) array.
    """
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    thresholds, limits = evaluation.params.iouThrs, evaluation.params.maxDets
    scores = {"map": _mean(precision[..., 0, -1])}
    scores |= {f"map_{iou:.0f}": _mean(precision[thresholds == iou / 100][..., 0, -1]) for iou in (50, 75)}
    scores |= {f"map_{area}": _mean(precision[..., a, -1]) for a, area in enumerate(_AREAS, start=1)}
    scores |= {f"mar_{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(limits)}
    scores |= {f"mar_{area}": _mean(recall[..., a, -1]) for a, area in enumerate(_AREAS, start=1)}
    return scores


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


def _annotation_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    columns = ["image_id", "width", "height", "objects"]
    missing = sorted(set(columns) - set(dataset.column_names))
    if missing:
        raise ValueError(f"The data set has no column {', '.join(missing)}; load it with load_detection_dataset.")
    # Without a format there is no user transform either, which might need the image.
    yield from dataset.select_columns(columns).with_format(None)


def _annotations(row: Mapping[str, Any], num_classes: int) -> Iterator[dict[str, Any]]:
    objects = row["objects"]
    count = len(objects["bbox"])
    areas = objects.get("area") or [None] * count
    crowds = objects.get("iscrowd") or [False] * count
    for box, label, area, crowd in zip(objects["bbox"], objects["category"], areas, crowds, strict=True):
        if label is None or not 0 <= label < num_classes:
            raise ValueError(f"Image {row['image_id']}: category {label} is none of the {num_classes} classes.")
        yield {
            "image_id": row["image_id"],
            "category_id": label,
            "bbox": [float(value) for value in box],
            "area": float(box[2] * box[3] if area is None else area),
            "iscrowd": int(bool(crowd)),
        }


def _pack(ids: Sequence[int], positions: Sequence[int], predictions: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The predictions of some images as one array of dtype `DETECTION`."""
    numbers, labels, counts = [], [], []
    for image_id, prediction in zip(ids, predictions, strict=True):
        score, label, box = (torch.as_tensor(prediction[key]) for key in ("scores", "labels", "boxes"))
        box = box.reshape(0, 4) if box.numel() == 0 else box
        if score.ndim != 1 or score.shape != label.shape or box.shape != (len(score), 4):
            raise ValueError(
                f"Image {image_id}: scores {tuple(score.shape)}, labels {tuple(label.shape)} and boxes "
                f"{tuple(box.shape)} do not fit; expected (n,), (n,) and (n, 4)."
            )
        numbers.append(torch.cat([score[:, None].float(), box.float()], dim=1))
        labels.append(label.to(torch.int32))
        counts.append(len(score))
    # The bits of the floats travel as integers: one tensor, one copy to the host.
    words = torch.cat([torch.cat(labels)[:, None], torch.cat(numbers).view(torch.int32)], dim=1).cpu().numpy()
    images = np.repeat(np.asarray(positions, dtype=np.int32), counts)
    rows = np.concatenate([images[:, None], words], axis=1).view(DETECTION).reshape(-1)
    finite = np.isfinite(rows["score"]) & np.isfinite(rows["box"]).all(axis=1)
    if not finite.all():
        bad = sorted({ids[positions.index(position)] for position in rows["image"][~finite].tolist()})
        raise ValueError(f"Scores or boxes of images {_sample(bad)} are NaN or infinite: the model has diverged.")
    return rows


def _coco(images: list[dict], annotations: list[dict], categories: list[dict]) -> COCO:
    with _silenced():
        coco = COCO()
        coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        coco.createIndex()
    return coco


def _silenced() -> contextlib.AbstractContextManager:
    """pycocotools prints its progress; nobody asked."""
    return contextlib.redirect_stdout(io.StringIO())


def _repeated(ids: Sequence[int]) -> list[int]:
    return [image_id for image_id, count in Counter(ids).items() if count > 1]


def _sample(items: Any, limit: int = 10) -> str:
    """The first few items, sorted, for an error message."""
    ordered = sorted(items)
    return ", ".join(map(str, ordered[:limit])) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")
