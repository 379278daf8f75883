"""What COCO's matching says beyond AP: precision, recall and F1 by score, confused classes, the worst images."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .backends import Evaluation
from .confusion import confusion_matrix
from .error_types import ErrorTypes, error_types
from .metrics import OperatingCurves, class_table, operating_curves


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
