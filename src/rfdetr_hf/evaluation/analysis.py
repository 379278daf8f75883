"""What COCO's matching says beyond AP: precision, recall and F1 by score, confused classes, the worst images."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..choices import counted
from .backends import Evaluation
from .confusion import confusion_matrix
from .error_types import ErrorTypes, error_types
from .metrics import COCO_LIMITS, OperatingCurves, class_table, highest_rejected, operating_curves

_NAMED = 5  # classes of a note


class ImageErrors(NamedTuple):
    """What went wrong on one image at a score threshold."""

    image_id: int | str
    true_positives: int
    false_positives: int
    missed: int


def worst_images(evaluation: Evaluation, threshold: float, limit: int = 20) -> list[ImageErrors]:
    """The images with the most wrong detections and missed objects; images without an error are not listed."""
    matches, truths = evaluation.matches, evaluation.truths
    image_ids = evaluation.image_ids.tolist()
    counted = matches.score > highest_rejected(threshold)
    kinds = (matches.correct, matches.wrong)
    right, wrong = (np.bincount(matches.image[counted & kind], minlength=len(image_ids)) for kind in kinds)
    missed = np.bincount(truths.image[~truths.ignored], minlength=len(image_ids)) - right
    order = np.argsort(-(wrong + missed), kind="stable")[:limit]
    rows = [ImageErrors(image_ids[i], *(int(column[i]) for column in (right, wrong, missed))) for i in order]
    return [row for row in rows if row.false_positives + row.missed]


class DetectionAnalysis:
    """All that one evaluation shows of a detector; each part is computed when it is first asked for.

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
        """Macro `precision`, `recall` and `f1` at the best threshold, and that `score_threshold`, -1 for none.

        None is best where no detection is right.
        """
        at = self.curves.best
        scores = {name: float(self.curves.macro(name)[at]) for name in ("precision", "recall", "f1")}
        return scores | {"score_threshold": self.threshold if scores["f1"] > 0 else -1.0}

    def notes(self) -> list[str]:
        """What the numbers do not say by themselves: thresholds that are not given, and limits that hide objects."""
        evaluation, truths, notes = self.evaluation, self.evaluation.truths, []
        silent = [row["name"] for row in self.per_class() if row["objects"] and row["best_threshold"] is None]
        if silent:
            rest = len(silent) - _NAMED
            more = f" and {rest} more, as the table of the classes (per_class.csv) says" if rest > 0 else ""
            named = f"{', '.join(silent[:_NAMED])}{more}"
            notes.append(f"no best_threshold for {named}: no correct detection yet, at any confidence")
        there = ~truths.ignored
        limit, per_image = evaluation.limits[-1], np.bincount(truths.image[there], minlength=len(evaluation.image_ids))
        cells = np.bincount(truths.image[there] * np.int64(len(evaluation.category_ids)) + truths.category[there])
        if hidden := np.maximum(cells - limit, 0).sum():
            option = "" if evaluation.iou_type == "keypoints" else "; raise max_dets"
            notes.append(
                f"{counted((cells > limit).sum(), 'time')} an image has more than {limit} objects of a class, the "
                f"limit of detections: at least {counted(hidden, 'object', 'counts')} as missed, whatever the detector "
                f"finds{option}"
            )
        standard = COCO_LIMITS[evaluation.iou_type][-1]
        if standard < limit and (hidden := np.maximum(cells - standard, 0).sum()):
            notes.append(
                f"{counted((cells > standard).sum(), 'time')} an image has more than {standard} objects of a class, "
                f"and map, mar_{standard} and the table of the classes count {standard} detections of each: at least "
                f"{counted(hidden, 'object', 'is')} missed there, whatever the detector finds; map_at_{limit} and "
                f"mar_{limit} count {limit}"
            )
        found = np.bincount(evaluation.detections.rows["image"], minlength=len(per_image)).max(initial=0)
        # A model gives each image as many detections as it has queries: more objects cannot be found.
        if (crowded := per_image > found).any() and self.curves.true_positives.any():
            notes.append(
                f"{counted(crowded.sum(), 'image', 'has')} more objects (up to {per_image.max()}) than any image has "
                f"detections ({found}): a model finds no more than its num_queries, and detections below a threshold "
                "are missing"
            )
        return notes

    def per_class(self) -> list[dict[str, Any]]:
        """A row for each class: its objects, AP and AR, and precision, recall and F1 at the common best threshold.

        `map` and `mar` are COCO's for all areas at the largest limit, -1 without objects; `best_threshold` and
        `best_f1` are those of this class alone, the threshold None where no detection is right at any score.
        """
        curves, at = self.curves, self.curves.best
        rows = class_table(self.evaluation)
        best = curves.f1.argmax(axis=1)
        for k, row in enumerate(rows):
            row["objects"] = int(curves.num_truths[k])
            row |= {name: float(getattr(curves, name)[k, at]) for name in ("precision", "recall", "f1")}
            best_f1 = float(curves.f1[k, best[k]])
            row |= {"best_threshold": float(curves.thresholds[best[k]]) if best_f1 else None, "best_f1": best_f1}
        return rows
