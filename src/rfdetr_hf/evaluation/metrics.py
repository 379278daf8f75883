"""Scores: COCO's numbers out of its arrays; precision, recall and F1 by score threshold out of its matches."""

from typing import Any, NamedTuple

import numpy as np

from .backends import Evaluation

COCO_LIMITS = {"bbox": (1, 10, 100), "segm": (1, 10, 100), "keypoints": (20,)}
SCORE_THRESHOLDS = np.linspace(0, 1, 101)


def highest_rejected(thresholds: np.ndarray | float) -> np.ndarray:
    """The scores above which a detection counts at thresholds, as in predictions.

    Models give scores in float32, in which .9 is a little below .9 and .3 a little above .3: neither is above it.
    """
    return np.maximum(thresholds, np.float32(thresholds).astype(np.float64))


def summarize(evaluation: Evaluation) -> dict[str, float]:
    """pycocotools' numbers of an evaluation by name, and those of a limit other than the standard's.

    Each is the mean over the defined entries (> -1) of the `precision` (IoU, recall, class, area, limit) or `recall`
    (IoU, class, area, limit) array.
    """
    precision, recall = evaluation.precision, evaluation.recall
    standard = COCO_LIMITS[evaluation.iou_type]
    at = evaluation.limits.index(standard[-1])
    areas = list(enumerate(evaluation.areas))[1:]
    ious = {name: _iou_index(evaluation, iou) for name, iou in (("_50", 0.5), ("_75", 0.75))}
    scores = {"map": _mean(precision[..., 0, at])}
    scores |= {f"map{name}": _mean(precision[t][..., 0, at]) for name, t in ious.items()}
    scores |= {f"map_{area}": _mean(precision[..., a, at]) for a, area in areas}
    scores |= {f"mar_{limit}": _mean(recall[..., 0, evaluation.limits.index(limit)]) for limit in standard}
    if evaluation.iou_type == "keypoints":
        scores |= {f"mar{name}": _mean(recall[t][..., 0, at]) for name, t in ious.items()}
    scores |= {f"mar_{area}": _mean(recall[..., a, at]) for a, area in areas}
    for m, limit in enumerate(evaluation.limits):
        if limit not in standard:
            scores[f"map_at_{limit}"] = _mean(precision[..., 0, m])
            scores |= {f"map{name}_at_{limit}": _mean(precision[t][..., 0, m]) for name, t in ious.items()}
            scores[f"mar_{limit}"] = _mean(recall[..., 0, m])
    return scores


def class_table(evaluation: Evaluation) -> list[dict[str, Any]]:
    """`name`, `map`, `map_50`, `map_75` and `mar` of each category at COCO's standard limit, -1 without objects."""
    at = evaluation.limits.index(COCO_LIMITS[evaluation.iou_type][-1])
    precision, recall = evaluation.precision[..., 0, at], evaluation.recall[..., 0, at]
    half, three_quarters = _iou_index(evaluation, 0.5), _iou_index(evaluation, 0.75)
    return [
        {
            "name": name,
            "map": _mean(precision[:, :, k]),
            "map_50": _mean(precision[half, :, k]),
            "map_75": _mean(precision[three_quarters, :, k]),
            "mar": _mean(recall[:, k]),
        }
        for k, name in enumerate(evaluation.class_names)
    ]


def class_scores(evaluation: Evaluation) -> dict[str, float]:
    """`map_class_<name>` and `mar_<limit>_class_<name>` of each category at COCO's standard limit.

    Raises:
        ValueError: two categories share a name.
    """
    rows, limit = class_table(evaluation), COCO_LIMITS[evaluation.iou_type][-1]
    if len({row["name"] for row in rows}) < len(rows):
        raise ValueError("Scores per class need distinct class names; two categories share one.")
    scores = {f"map_class_{row['name']}": row["map"] for row in rows}
    return scores | {f"mar_{limit}_class_{row['name']}": row["mar"] for row in rows}


def _iou_index(evaluation: Evaluation, iou: float) -> np.ndarray:
    return np.flatnonzero(np.isclose(evaluation.iou_thresholds, iou))


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


class OperatingCurves(NamedTuple):
    """Precision, recall and F1 of each class when detections below a score are left out.

    At threshold t a class has the detections with score > t that COCO counts at IoU .5: each is right or wrong as in
    AP, and those matched to crowds are neither. Precision is 0 where nothing is left. Only classes with objects to be
    found enter the macro means.

    Attributes:
        thresholds: (T,) 0 to 1 by .01.
        true_positives: (K, T) int64.
        false_positives: (K, T) int64.
        num_truths: (K,) objects to be found.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    num_truths: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """(K, T)."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> np.ndarray:
        """(K, T); 0 for classes without objects."""
        return _ratio(self.true_positives, self.num_truths[:, None])

    @property
    def f1(self) -> np.ndarray:
        """(K, T)."""
        found_and_there = self.true_positives + self.false_positives + self.num_truths[:, None]
        return _ratio(2 * self.true_positives, found_and_there)

    def macro(self, name: str) -> np.ndarray:
        """(T,) mean of "precision", "recall" or "f1" over the classes with objects; 0 when there are none."""
        values = getattr(self, name)[self.num_truths > 0]
        return values.mean(axis=0) if len(values) else np.zeros(len(self.thresholds))

    @property
    def best(self) -> int:
        """Position of the threshold with the highest macro F1, the lowest of several."""
        return int(self.macro("f1").argmax())


def operating_curves(evaluation: Evaluation, thresholds: np.ndarray = SCORE_THRESHOLDS) -> OperatingCurves:
    """Counts of right and wrong detections of each class at each score threshold, in one pass."""
    matches, classes = evaluation.matches, len(evaluation.category_ids)
    # The number of thresholds that a detection passes; those that pass none drop out with the first column.
    passed = np.searchsorted(highest_rejected(thresholds), matches.score, side="left")
    cell = matches.category * (len(thresholds) + 1) + passed
    counts = []
    for kind in (matches.correct, matches.wrong):
        histogram = np.bincount(cell[kind], minlength=classes * (len(thresholds) + 1))
        histogram = histogram.reshape(classes, len(thresholds) + 1)
        counts.append(histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:])
    truths = np.bincount(evaluation.truths.category[~evaluation.truths.ignored], minlength=classes)
    return OperatingCurves(thresholds, counts[0], counts[1], truths)


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    part, total = np.broadcast_arrays(part, total)
    return np.divide(part, total, out=np.zeros(part.shape), where=total > 0)
