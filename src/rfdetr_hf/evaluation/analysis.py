"""What COCO's matching says beyond AP: precision, recall and F1 by score, confused classes, the worst images."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .backends import Evaluation
from .error_types import ErrorTypes, error_types
from .metrics import class_table
from .similarity import overlaps

SCORE_THRESHOLDS = np.linspace(0, 1, 101)
_FOREGROUND = 0.5


class OperatingCurves(NamedTuple):
    """Precision, recall and F1 of each class when detections below a score are left out.

    At threshold t a class has the detections with score >= t that COCO counts at IoU .5: each is right or wrong as in
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
    # Scores are float32: so are thresholds, or .9 would not pass .9.
    # The number of thresholds that a detection passes; those that pass none drop out with the first column.
    passed = np.searchsorted(thresholds.astype(np.float32), matches.score, side="right")
    cell = matches.category * (len(thresholds) + 1) + passed
    counts = []
    for kind in (matches.correct, matches.wrong):
        histogram = np.bincount(cell[kind], minlength=classes * (len(thresholds) + 1))
        histogram = histogram.reshape(classes, len(thresholds) + 1)
        counts.append(histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:])
    truths = np.bincount(evaluation.truths.category[~evaluation.truths.ignored], minlength=classes)
    return OperatingCurves(thresholds, *counts, truths)


def confusion_matrix(evaluation: Evaluation, threshold: float) -> np.ndarray:
    """Which class was taken for which, at one score threshold.

    1. A detection that COCO matches within its class at IoU .5 goes on the diagonal.
    2. The detections and objects left over are matched across classes: in the order of the scores, each detection takes
       the object that it overlaps most, if that is IoU .5 or more and nobody has it. These are the confusions.
    3. A detection still left is in the row of the background, an object still left in the column of the background.

    Crowds, and detections matched to them, are left out. So the sum of a class's row is the number of its objects, and
    the sum of its column the number of its detections.

    Returns:
        (K + 1, K + 1) int64: row = the class of the object, column = the class of the detection, background last.
    """
    matches, truths = evaluation.matches, evaluation.truths
    background = len(evaluation.category_ids)
    counted = (matches.score >= np.float32(threshold)) & ~matches.ignored
    found = matches.truth[counted & matches.correct]
    free = ~truths.ignored
    free[found] = False
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(matrix, (truths.category[found], truths.category[found]), 1)
    left = np.flatnonzero(counted & matches.wrong)
    confused, taken = _greedy(evaluation, left, np.flatnonzero(free))
    np.add.at(matrix, (truths.category[taken], matches.category[confused]), 1)
    free[taken] = False
    alone = np.setdiff1d(left, confused, assume_unique=True)
    np.add.at(matrix, (background, matches.category[alone]), 1)
    np.add.at(matrix, (truths.category[free], background), 1)
    return matrix


def _greedy(evaluation: Evaluation, matches: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs at IoU .5 or more, each detection and each object once: best score first, then largest overlap."""
    kept = [np.empty((3, 0))]
    for pairs in overlaps(evaluation, matches, truths):
        kept.append(np.stack(pairs)[:, pairs.overlap >= _FOREGROUND])
    match, truth, overlap = np.concatenate(kept, axis=1)
    order = np.lexsort([-overlap, match, -evaluation.matches.score[match.astype(np.int64)]])
    chosen: dict[int, int] = {}
    used: set[int] = set()
    for m, t in zip(match[order].astype(int).tolist(), truth[order].astype(int).tolist(), strict=True):
        if m not in chosen and t not in used:
            chosen[m] = t
            used.add(t)
    return np.array(list(chosen), dtype=np.int64), np.array(list(chosen.values()), dtype=np.int64)


class ImageErrors(NamedTuple):
    """What went wrong on one image at a score threshold."""

    image_id: int
    true_positives: int
    false_positives: int
    missed: int


def worst_images(evaluation: Evaluation, threshold: float, limit: int = 20) -> list[ImageErrors]:
    """The images with the most wrong detections and missed objects; images without an error are not listed."""
    matches, truths = evaluation.matches, evaluation.truths
    image_ids = np.array(sorted(evaluation.ground_truth.imgs))
    counted = matches.score >= np.float32(threshold)
    kinds = (matches.correct, matches.wrong)
    right, wrong = (np.bincount(matches.image[counted & kind], minlength=len(image_ids)) for kind in kinds)
    missed = np.bincount(truths.image[~truths.ignored], minlength=len(image_ids)) - right
    order = np.argsort(-(wrong + missed), kind="stable")[:limit]
    columns = (image_ids, right, wrong, missed)
    rows = [ImageErrors(*(int(column[i]) for column in columns)) for i in order]
    return [row for row in rows if row.false_positives + row.missed]


class DetectionAnalysis:
    """All that one evaluation tells about a detector; each part is computed when it is first asked for.

    Args:
        evaluation: of `CocoEvaluator.run`.

    Attributes:
        evaluation: the evaluation.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    @cached_property
    def curves(self) -> OperatingCurves:
        """Precision, recall and F1 over score thresholds."""
        return operating_curves(self.evaluation)

    @property
    def threshold(self) -> float:
        """The score threshold with the highest macro F1."""
        return float(self.curves.thresholds[self.curves.best])

    @cached_property
    def confusion(self) -> np.ndarray:
        """The confusion matrix at `threshold`; see `confusion_matrix`."""
        return confusion_matrix(self.evaluation, self.threshold)

    @cached_property
    def errors(self) -> ErrorTypes:
        """The error types and what they cost; see `error_types`."""
        return error_types(self.evaluation, self.threshold)

    def worst_images(self, limit: int = 20) -> list[ImageErrors]:
        """The images with the most errors at `threshold`."""
        return worst_images(self.evaluation, self.threshold, limit)

    def summary(self) -> dict[str, float]:
        """Macro `precision`, `recall` and `f1` at the best threshold, and that `score_threshold`."""
        at = self.curves.best
        scores = {name: float(self.curves.macro(name)[at]) for name in ("precision", "recall", "f1")}
        return scores | {"score_threshold": self.threshold}

    def per_class(self) -> list[dict[str, Any]]:
        """A row for each class: its objects, AP and AR, and precision, recall and F1 at the common best threshold.

        `map` and `mar` are COCO's for all areas at the largest limit, -1 without objects; `best_threshold` and
        `best_f1` are those of this class alone.
        """
        curves, at = self.curves, self.curves.best
        rows = class_table(self.evaluation)
        best = curves.f1.argmax(axis=1)
        for k, row in enumerate(rows):
            row["objects"] = int(curves.num_truths[k])
            row |= {name: float(getattr(curves, name)[k, at]) for name in ("precision", "recall", "f1")}
            row |= {"best_threshold": float(curves.thresholds[best[k]]), "best_f1": float(curves.f1[k, best[k]])}
        return rows


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
