"""COCO scores of boxes, masks and keypoints: predictions stream into compact arrays, one function scores them."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from pycocotools.coco import COCO
from torch import Tensor

from ..choices import BACKENDS
from ..data.keypoints import COCO_KEYPOINTS, DEFAULT_SIGMA
from ..values import as_id, is_boolean, shown
from .analysis import DetectionAnalysis
from .backends import COCO_PERSON_SIGMAS, IOU_TYPES, Evaluation, evaluate, run_lengths
from .detection_table import DETECTION, DetectionTable, concatenate, first_few, gather, pack
from .ground_truth import coco_ground_truth, id_array, repeated
from .metrics import COCO_LIMITS, class_scores, summarize

__all__ = ["DETECTION", "CocoEvaluator", "coco_ground_truth", "summarize"]

logger = logging.getLogger(__name__)

PREFIXES = {"bbox": "", "segm": "segm_", "keypoints": "keypoint_"}


class CocoEvaluator:
    """Scores one pass over a split: `update` per batch, `gather` where there are several processes, `compute`.

    Every detection given is kept, in float64: 64 bytes each, and its run lengths or keypoints. Only the best of an
    image *and category* count for the scores (100 by COCO's standard), so nothing that pycocotools would look at gets
    lost: give it all that the model's post-processing returns. Images that an evaluator never saw are an error, not
    images without detections.

    Args:
        ground_truth: A `COCO` (which may be shared by many evaluators) or a data set for `coco_ground_truth`.
        max_dets: Another limit of detections per image and category, beside the standard 100: its scores get
            names of their own. Keypoints keep COCO's limit of 20.
        label_map: Model label -> category id, for a model whose labels are not those of the ground truth; detections
            of labels that are not in the map are dropped. Without it a label is the category id.
        iou_types: What to score: "bbox", "segm", "keypoints". The ground truth must have it.
        sigmas: Per-keypoint constants of the object keypoint similarity, of all categories or by category id; default
            those that the data set, or each category of the `COCO` as "sigmas", describes, else COCO's for 17 keypoints
            without other names (with a warning if they have no names), else `DEFAULT_SIGMA` each (with a warning). By
            category there are as many as it has keypoints, the first ones of its objects and detections; what pads
            these to the number of the category with most plays no part, and a category without keypoints is not scored
            (-1).
        backend: "pycocotools", "ultrafast" (same bits, much faster; extra `fast-eval`) or "auto": the second where
            it is installed.

    Attributes:
        ground_truth: The `COCO` in use.
        image_ids: Sorted image ids, int64 or objects: texts, or integers beyond 64 bits.

    Raises:
        ValueError: `max_dets` below 1, an unknown type or backend, truth that lacks what a type needs, a map to an
            unknown category, or an annotation with id 0, with numbers that are no box, area or crowd flag, or of an
            unknown category.
    """

    def __init__(
        self,
        ground_truth: COCO | Dataset,
        max_dets: int = 100,
        label_map: Mapping[int, int] | None = None,
        iou_types: Sequence[str] = ("bbox",),
        sigmas: Sequence[float] | Mapping[int, Sequence[float]] | None = None,
        backend: str = "pycocotools",
    ) -> None:
        self.ground_truth = ground_truth if isinstance(ground_truth, COCO) else coco_ground_truth(ground_truth)
        self.iou_types = tuple(iou_types)
        _check_truth(self.ground_truth, self.iou_types)
        if max_dets < 1:
            raise ValueError(f"max_dets={max_dets}: it must be 1 or more.")
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r}: it must be one of {', '.join(BACKENDS)}.")
        unknown = set(label_map.values()) - set(self.ground_truth.cats) if label_map else set()
        if unknown:
            raise ValueError(f"label_map leads to category ids that the ground truth has not: {first_few(unknown)}.")
        self.max_dets = max_dets
        self.label_map = label_map
        self.backend = backend
        self.sigmas = points = None
        if "keypoints" in self.iou_types:
            self.sigmas, count = _keypoint_sigmas(self.ground_truth, sigmas)
            points = np.empty((0, count, 3))
        self.image_ids = id_array(self.ground_truth.imgs)
        self._position = {image_id: position for position, image_id in enumerate(self.image_ids.tolist())}
        self._seen = np.zeros(len(self.image_ids), dtype=np.uint8)
        self._empty = DetectionTable(masks=[] if "segm" in self.iou_types else None, keypoints=points)
        self._chunks: list[DetectionTable] = []
        self._analyses: dict[tuple[str, bool], DetectionAnalysis] = {}
        self._gathered = False

    def update(
        self, image_ids: Sequence[int] | Sequence[str] | np.ndarray | Tensor, predictions: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds the detections of a batch, in one copy from the device.

        Args:
            image_ids: One id for each prediction.
            predictions: Per image `scores` (n,), `labels` (n,) and `boxes` (n, 4) xyxy in pixels of the original
                image, or `boxes_xywh`, (x, y, width, height) as COCO's files have them; for "segm" also `masks`,
                (n, H, W) bool at the size of the image or n RLE dicts, for "keypoints" `keypoints` (n, K, 3): x, y in
                pixels, and a confidence that COCO does not look at.
                Equal scores rank in the order given.

        Raises:
            ValueError: An image id is unknown or was scored before, sizes do not fit, a number is not finite, a box
                has a negative size, or a label is no integer or not a category of the ground truth.
        """
        self._require_open("update")
        given = image_ids.tolist() if isinstance(image_ids, (Tensor, np.ndarray)) else image_ids
        ids: list[Any] = [as_id(each) for each in given]
        if None in ids:
            raise ValueError(f"image_ids: {shown(given[ids.index(None)])} is no image id; give integers, or texts")
        if len(ids) != len(predictions):
            raise ValueError(f"{len(ids)} image ids but {len(predictions)} predictions.")
        positions = self._positions(ids)
        if ids:
            # Only masks need the sizes, which a ground truth of boxes may lack.
            sizes = [(0, 0)] * len(ids)
            if self._empty.masks is not None:
                known: Any = self.ground_truth.imgs
                images = [known[image_id] for image_id in ids]
                sizes = [(image["height"], image["width"]) for image in images]
            table = pack(ids, positions, predictions, sizes, self._empty)
            self._chunks.append(self._categorised(table))
        self._seen[positions] = 1
        self._analyses.clear()

    def gather(self, accelerator: Accelerator) -> None:
        """Merges the detections of all processes into every one of them; all must call it, once, after the updates.

        Raises:
            ValueError: An image was scored by more than one process.
        """
        self._require_open("gather")
        self._gathered = True
        if accelerator.num_processes == 1:
            return
        merged = gather(concatenate(self._chunks, self._empty), self._empty, accelerator)
        every: Any = accelerator.gather(torch.from_numpy(self._seen)[None].to(accelerator.device))
        seen = every.sum(0).cpu().numpy()
        if (seen > 1).any():
            raise ValueError(f"Scored by more than one process: images {first_few(self.image_ids[seen > 1])}.")
        self._seen = seen.astype(np.uint8)
        self._chunks = [merged]
        self._analyses.clear()

    @property
    def detections(self) -> np.ndarray:
        """All detections as one array of dtype `DETECTION` (label = category id, box = xyxy), ordered by image."""
        return self.table.rows

    def run(self, iou_type: str | None = None, partial: bool = False) -> Evaluation:
        """The evaluation with its precision, recall and score arrays and the matches; see `analyze`."""
        return self.analyze(iou_type, partial).evaluation

    def analyze(self, iou_type: str | None = None, partial: bool = False) -> DetectionAnalysis:
        """The evaluation, and what its matches say of scores, confusions and errors; kept until the next update.

        Args:
            iou_type: One of `iou_types`; default the first.
            partial: Score only the images that were updated, instead of failing where some were not.

        Raises:
            ValueError: Images of the ground truth were never updated (the message lists them).
        """
        iou_type = iou_type or self.iou_types[0]
        if iou_type not in self.iou_types:
            raise ValueError(f"iou_type {iou_type!r}: this evaluator was made for {', '.join(self.iou_types)}.")
        missing = self.image_ids[self._seen == 0]
        if len(missing) and not partial:
            raise ValueError(
                f"{len(missing)} of {len(self.image_ids)} images were not evaluated: {first_few(missing)}. Update with "
                "each image, call gather(accelerator) under several processes, or pass partial=True to leave them out."
            )
        if (iou_type, partial) not in self._analyses:
            limits = COCO_LIMITS[iou_type]
            found = evaluate(
                self.ground_truth,
                self.table,
                self.image_ids,
                self._seen > 0,
                iou_type=iou_type,
                limits=limits if iou_type == "keypoints" else sorted({*limits, self.max_dets}),
                sigmas=self.sigmas,
                backend=self.backend,
            )
            self._analyses[iou_type, partial] = DetectionAnalysis(found)
        return self._analyses[iou_type, partial]

    @property
    def analyses(self) -> dict[str, DetectionAnalysis]:
        """That of each IoU type, of all images."""
        return {iou_type: self.analyze(iou_type) for iou_type in self.iou_types}

    def compute(self, per_class: bool = False, partial: bool = False) -> dict[str, float]:
        """The COCO numbers in [0, 1], or -1 where there is nothing to score.

        Args:
            per_class: Adds `map_class_<name>` and `mar_100_class_<name>` for each category.
            partial: See `run`.

        Returns:
            `map`, `map_50`, `map_75`, `map_small`, `map_medium`, `map_large`, `mar_1`, `mar_10`, `mar_100`,
            `mar_small`, `mar_medium`, `mar_large`: pycocotools' twelve, at 100 detections whatever `max_dets` is. With
            another `max_dets` N also `map_at_N`, `map_50_at_N`, `map_75_at_N` and `mar_N`. Masks have the same names
            after `segm_`; keypoints after `keypoint_`: pycocotools' ten, `mar_20` the first recall, no `small`.
        """
        scores: dict[str, float] = {}
        for iou_type in self.iou_types:
            evaluation = self.run(iou_type, partial)
            found = summarize(evaluation) | (class_scores(evaluation) if per_class else {})
            scores |= {PREFIXES[iou_type] + name: value for name, value in found.items()}
        return scores

    def predictions_json(self, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The detections in COCO's results format, for `json.dump`, with masks and keypoints where there are any.

        Args:
            category_ids: Original category id by label; default the category ids of the ground truth.
        """
        table = self.table
        fields = {
            "image_id": self.image_ids[table.rows["image"]].tolist(),
            "category_id": table.rows["label"].tolist(),
            "bbox": table.boxes_xywh.tolist(),
            "score": table.rows["score"].tolist(),
        }
        if category_ids is not None:
            fields["category_id"] = [int(category_ids[label]) for label in fields["category_id"]]
        if table.masks is not None:
            rles = run_lengths(table, self.ground_truth, self.image_ids)
            fields["segmentation"] = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
        if table.keypoints is not None:
            fields["keypoints"] = [each.flatten().tolist() for each in table.keypoints]
        return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]

    @property
    def table(self) -> DetectionTable:
        """All detections with their masks and keypoints, ordered by image."""
        return concatenate(self._chunks, self._empty).by_image()

    def _require_open(self, action: str) -> None:
        if self._gathered:
            raise RuntimeError(f"{action}() after gather(): use a new CocoEvaluator for each pass over the data.")

    def _positions(self, ids: Sequence[int | str]) -> list[int]:
        unknown = [image_id for image_id in ids if image_id not in self._position]
        if unknown:
            raise ValueError(f"Images {first_few(unknown)} are not in the ground truth.")
        positions = [self._position[image_id] for image_id in ids]
        scored = [image_id for image_id, position in zip(ids, positions, strict=True) if self._seen[position]]
        scored += repeated(ids)
        if scored:
            raise ValueError(f"Images {first_few(scored)} were scored already; each image counts once.")
        return positions

    def _categorised(self, table: DetectionTable) -> DetectionTable:
        """Detections with category ids for labels."""
        labels, inverse = np.unique(table.rows["label"], return_inverse=True)
        if self.label_map is None:
            unknown = set(labels.tolist()) - set(self.ground_truth.cats)
            if unknown:
                raise ValueError(
                    f"Predicted labels {first_few(unknown)} are not categories of the ground truth; pass label_map to "
                    "say what the labels of the model mean."
                )
            return table
        kept = np.array([label in self.label_map for label in labels.tolist()], dtype=bool)[inverse]
        categories = np.array([self.label_map.get(label, -1) for label in labels.tolist()], dtype=np.int32)
        table.rows["label"] = categories[inverse]
        return table.take(np.flatnonzero(kept))


def _check_truth(truth: COCO, iou_types: Sequence[str]) -> None:
    if 0 in truth.anns:
        raise ValueError(
            "An annotation of the ground truth has id 0, which pycocotools scores as a miss: "
            "number the annotations from 1, or use coco_ground_truth(dataset)."
        )
    unknown = set(iou_types) - set(IOU_TYPES)
    if unknown or not iou_types:
        raise ValueError(f"iou_types {list(iou_types)}: give one or more of {', '.join(IOU_TYPES)}.")
    for iou_type, key in (("segm", "segmentation"), ("keypoints", "keypoints")):
        without = [number for number, annotation in truth.anns.items() if not annotation.get(key)]
        if iou_type in iou_types and without:
            raise ValueError(
                f"iou_types has {iou_type!r}, but {len(without)} of {len(truth.anns)} annotations have no {key}: "
                f"ids {first_few(without)}; add it, or leave {iou_type!r} out."
            )
    _check_annotations(truth)


def _check_annotations(truth: COCO) -> None:
    """Whether the numbers of all annotations mean something, and belong to an image and a category that there are."""
    numeric, annotations = (int, float, np.number), cast("dict[int, dict[str, Any]]", truth.anns)
    for kind, ids in (("image", truth.imgs), ("category", truth.cats), ("annotation", truth.anns)):
        if wrong := [each for each in ids if is_boolean(each)]:
            raise ValueError(f"{kind} id {wrong[0]} of the ground truth is no number; write it as an integer")
    for number, each in annotations.items():
        box, area, crowd = (each.get(field) for field in ("bbox", "area", "iscrowd"))
        four: Any = box if isinstance(box, (list, tuple, np.ndarray)) and len(box) == 4 else [None]
        # Comparisons with NaN are false.
        finite = all(
            isinstance(value, numeric) and not is_boolean(value) and -math.inf < value < math.inf for value in four
        )
        wrong = ""
        if not finite or min(four[2:]) < 0:
            wanted = "finite numbers, no negative size (where corners are given, x1 <= x2 and y1 <= y2)"
            wrong = f"bbox {shown(box)} must be x, y, width, height in pixels: {wanted}"
        elif is_boolean(area) or not (isinstance(area, numeric) and 0 <= area < math.inf):
            wrong = f"area {shown(area)} must be a number of pixels, 0 or more; without masks it is width x height"
        elif not (isinstance(crowd, (*numeric, np.bool_)) and crowd in (0, 1)):
            wrong = f"iscrowd {shown(crowd)} must be 0 or 1, a number"
        elif is_boolean(each.get("category_id")) or each.get("category_id") not in truth.cats:
            ids = first_few(truth.cats)
            wrong = f"category_id {shown(each.get('category_id'))} is none of the ground truth's categories: {ids}"
        if wrong:
            image = shown(each.get("image_id"))
            raise ValueError(f"Image {image}, annotation {number}: {wrong}; correct the annotation, or delete it")
    if homeless := [number for number, each in annotations.items() if each.get("image_id") not in truth.imgs]:
        example = shown(annotations[homeless[0]].get("image_id"))
        text = (
            f"{len(homeless)} of {len(annotations)} annotations of the ground truth have an image_id that none of its "
            f"images has, such as {example} of annotation {homeless[0]}"
        )
        if len(homeless) == len(annotations):
            raise ValueError(f"{text}; the images have {first_few(map(shown, truth.imgs), 3)}: correct image_id")
        logger.warning("%s; they are not scored", text)


def _keypoint_sigmas(
    truth: COCO, sigmas: Sequence[float] | Mapping[int, Sequence[float]] | None
) -> tuple[np.ndarray | dict[int, np.ndarray], int]:
    """Sigmas as arrays, by category where they are given so, and how many keypoints the objects have."""
    annotations, categories = cast("Any", truth.anns.values()), cast("Any", truth.cats.values())
    if sigmas is None and all(category.get("sigmas") is not None for category in categories):
        sigmas = {category["id"]: category["sigmas"] for category in categories} or None
    counts = {len(annotation["keypoints"]) // 3 for annotation in annotations}
    if len(counts) > 1:
        raise ValueError(f"Annotations have {sorted(counts)} keypoints; pad them with v = 0 to one number.")
    if isinstance(sigmas, Mapping):
        count = max(counts or map(len, sigmas.values()), default=0)
        if different := set(sigmas) ^ set(truth.cats):
            raise ValueError(
                f"sigmas must name the categories of the ground truth, each once; see {first_few(different)}."
            )
        for category, own in sigmas.items():
            if len(own) > count or not all(0 < sigma < math.inf for sigma in own):
                raise ValueError(
                    f"sigmas of category {category} must be up to {count} positive numbers; got {list(own)}."
                )
        if not any(map(len, sigmas.values())):
            raise ValueError("sigmas name no keypoint in any category; leave 'keypoints' out of iou_types.")
        return {category: np.asarray(own, dtype=np.float64) for category, own in sigmas.items()}, count
    count = max(counts, default=len(COCO_PERSON_SIGMAS if sigmas is None else sigmas))
    named = [tuple(category["keypoints"]) for category in categories if category.get("keypoints")]
    if sigmas is None and count == len(COCO_PERSON_SIGMAS) and all(names == COCO_KEYPOINTS for names in named):
        sigmas = COCO_PERSON_SIGMAS
        if not named:
            logger.warning(
                "%d keypoints without names are scored with the sigmas of COCO's person; give sigmas, or the names as "
                "'keypoints' of the categories", count,
            )  # fmt: skip
    elif sigmas is None:
        logger.warning("no sigmas for %d keypoints: %s for each of them", count, DEFAULT_SIGMA)
        sigmas = [DEFAULT_SIGMA] * count
    if len(sigmas) != count or not all(0 < sigma < math.inf for sigma in sigmas):
        raise ValueError(f"sigmas must be {count} positive numbers, one per keypoint; got {list(sigmas)}.")
    return np.asarray(sigmas, dtype=np.float64), count
