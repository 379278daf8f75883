"""Which class a detector takes for which."""

import numpy as np

from .backends import Evaluation
from .metrics import highest_rejected
from .similarity import overlaps

_FOREGROUND = 0.5


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
    background = np.array(len(evaluation.category_ids))
    counted = (matches.score > highest_rejected(threshold)) & ~matches.ignored
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
