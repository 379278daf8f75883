"""The six ways for a detector to be wrong (TIDE, Bolya et al. 2020, arXiv:2008.08115), and what each costs in AP."""

from typing import NamedTuple

import numpy as np

from .backends import Evaluation
from .metrics import highest_rejected
from .similarity import Pairs, overlaps

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
_FOREGROUND, _BACKGROUND_BELOW = 0.5, 0.1
_RECALLS = np.linspace(0, 1, 101)


class ErrorTypes(NamedTuple):
    """The errors of a detector by type.

    Attributes:
        map_50: AP at IoU .5 as the matches give it.
        cost: for each of `KINDS` the AP at IoU .5 that the detector would gain if an oracle mended this type alone.
        count: how many of all detections (or objects, for "missed") have this error.
        confident: the same for detections at or above the score threshold; objects count as missed without a right,
            confused or badly placed detection above it.
        kind: (n,) type of each wrong match as position in `KINDS`, -1 for matches that are right or ignored.
    """

    map_50: float
    cost: dict[str, float]
    count: dict[str, int]
    confident: dict[str, int]
    kind: np.ndarray


def error_types(evaluation: Evaluation, threshold: float) -> ErrorTypes:
    """Sorts each wrong detection of COCO's matching at IoU .5 into one type, in this order:

    * localisation: it overlaps an object of its class by .1 to .5;
    * classification: it overlaps an object of another class by .5 or more;
    * duplicate: it overlaps an object of its class by .5 or more that another detection has;
    * background: it overlaps no object by more than .1;
    * both: the rest, which overlap only objects of other classes, by .1 to .5.

    missed: objects that neither a right detection nor a classification or localisation error speaks for.

    The oracle turns a classification or localisation error into a right detection of the object it speaks for, the
    best one where several do, and drops those that speak for an object which is found already; it drops detections
    of the other types, and takes missed objects off the list. A type's cost is the gain when it alone is mended, so
    costs do not add up to 1 - AP.

    Args:
        evaluation: for boxes, masks or keypoints; overlap is IoU or keypoint similarity accordingly.
        threshold: for the counts of confident errors.
    """
    wrong = np.flatnonzero(evaluation.matches.wrong)
    kind, target = _classify(evaluation, wrong)
    mended = _best_of_each_target(evaluation, kind, target)
    missed = _missed(evaluation, mended, -1.0)
    ranking = _ranking(evaluation, evaluation.matches.category)
    base = _mean_ap(evaluation, ranking)
    cost = {}
    for number, name in enumerate(KINDS[:-1]):
        cost[name] = _mean_ap(evaluation, ranking, kind == number, np.where(kind == number, mended, -1)) - base
    cost["missed"] = _mean_ap(evaluation, ranking, missed=missed) - base
    above = evaluation.matches.score > highest_rejected(threshold)
    count = {name: int((kind == number).sum()) for number, name in enumerate(KINDS[:-1])}
    confident = {name: int((kind[above] == number).sum()) for number, name in enumerate(KINDS[:-1])}
    count["missed"] = int(missed.sum())
    confident["missed"] = int(_missed(evaluation, np.where(above, target, -1), threshold).sum())
    return ErrorTypes(base, cost, count, confident, kind)


def _classify(evaluation: Evaluation, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Type of each match (-1: no error), and the object that a localisation or classification error speaks for."""
    truths = evaluation.truths
    kind = np.full(len(evaluation.matches.row), -1, dtype=np.int8)
    target = np.full(len(kind), -1, dtype=np.int64)
    kind[wrong] = _BACKGROUND
    used = np.zeros(len(truths.id), dtype=bool)
    used[evaluation.matches.truth[evaluation.matches.correct]] = True
    for pairs in overlaps(evaluation, wrong, np.flatnonzero(~truths.ignored)):
        same = truths.category[pairs.truth] == evaluation.matches.category[pairs.match]
        starts = np.flatnonzero(np.diff(pairs.match, prepend=-1))
        match = pairs.match[starts]
        own, own_truth = _best(pairs, starts, same)
        other, other_truth = _best(pairs, starts, ~same)
        held, _ = _best(pairs, starts, same & used[pairs.truth])
        choices = [
            (own >= _BACKGROUND_BELOW) & (own < _FOREGROUND),
            other >= _FOREGROUND,
            held >= _FOREGROUND,
            np.maximum(own, other) <= _BACKGROUND_BELOW,
        ]
        kind[match] = np.select(choices, [_LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND], _BOTH)
        target[match] = np.select(choices[:2], [own_truth, other_truth], -1)
    return kind, target


def _best(pairs: Pairs, starts: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the largest overlap among the allowed pairs (0 if none), and its first such object."""
    overlap = np.where(allowed, pairs.overlap, 0.0)
    best = np.maximum.reduceat(overlap, starts)
    counts = np.diff(starts, append=len(overlap))
    # Objects ascend within a detection, so the smallest index is the first.
    first = np.where(allowed & (overlap == np.repeat(best, counts)), pairs.truth, np.iinfo(np.int64).max)
    return best, np.minimum.reduceat(first, starts)


def _best_of_each_target(evaluation: Evaluation, kind: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`target`, kept only for the best-scored error of each type that speaks for an object nobody has found."""
    used = np.zeros(len(evaluation.truths.id), dtype=bool)
    used[evaluation.matches.truth[evaluation.matches.correct]] = True
    mended = np.full(len(target), -1, dtype=np.int64)
    speaks = np.flatnonzero(target >= 0)
    speaks = speaks[~used[target[speaks]]]
    order = speaks[np.argsort(-evaluation.matches.score[speaks], kind="stable")]
    _, first = np.unique(np.stack([kind[order], target[order]]), axis=1, return_index=True)
    mended[order[first]] = target[order[first]]
    return mended


def _missed(evaluation: Evaluation, spoken_for: np.ndarray, threshold: float) -> np.ndarray:
    """(m,) bool: objects to be found that no right detection above the threshold has, and nobody speaks for."""
    missed = ~evaluation.truths.ignored
    right = evaluation.matches.correct & (evaluation.matches.score > highest_rejected(threshold))
    missed[evaluation.matches.truth[right]] = False
    missed[spoken_for[spoken_for >= 0]] = False
    return missed


def _ranking(evaluation: Evaluation, category: np.ndarray) -> np.ndarray:
    """Order of the matches by category, then score: that of COCO's accumulation."""
    return np.lexsort([-evaluation.matches.score, category])


def _mean_ap(
    evaluation: Evaluation,
    ranking: np.ndarray,
    dropped: np.ndarray | None = None,
    mended: np.ndarray | None = None,
    missed: np.ndarray | None = None,
) -> float:
    """COCO's AP at IoU .5, mean over the classes, after mending.

    Args:
        evaluation: the matches.
        ranking: of all matches in their own categories.
        dropped: (n,) bool, detections to leave out unless they are mended.
        mended: (n,) objects that detections find after all, -1 for the rest; they take the class of the object.
        missed: (m,) bool, objects to take off the list.
    """
    matches, truths = evaluation.matches, evaluation.truths
    category, right, kept = matches.category, matches.correct, ~matches.ignored
    if mended is not None and dropped is not None:
        hit = mended >= 0
        kept = kept & (~dropped | hit)
        right = right | hit
        if hit.any():
            category = category.copy()
            category[hit] = truths.category[mended[hit]]
            ranking = _ranking(evaluation, category) if (category != matches.category).any() else ranking
    order = ranking[kept[ranking]]
    there = np.bincount(truths.category[~truths.ignored], minlength=len(evaluation.category_ids))
    wanted = there if missed is None else there - np.bincount(truths.category[missed], minlength=len(there))
    ends = np.searchsorted(category[order], np.arange(len(there) + 1))
    values = [
        average_precision(right[order[ends[k] : ends[k + 1]]], int(wanted[k])) for k in range(len(there)) if there[k]
    ]
    return float(np.mean(values)) if values else -1.0


def average_precision(right: np.ndarray, wanted: int) -> float:
    """COCO's AP: the mean over 101 recalls of the best precision at that recall or beyond.

    Args:
        right: (n,) bool, best score first.
        wanted: objects to be found; with none, 1 for a detector that is silent and else 0.
    """
    if not wanted:
        return float(len(right) == 0)
    if not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = hits / (np.arange(1, len(right) + 1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / wanted, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].mean())
