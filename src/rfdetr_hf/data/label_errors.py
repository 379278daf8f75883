"""Labels that a model contradicts: objects that were overlooked, classes that were swapped, boxes in the wrong place.

The kinds are those of ObjectLab (Tkachenko, Thyagarajan, Mueller: ObjectLab: Automated Diagnosis of Mislabeled Images
in Object Detection Data, 2023, arXiv:2309.00832), as cleanlab has them, and boxes on nothing. Its scores compare
confidences with fixed thresholds, which few detectors reach; here a confidence counts as what it has been worth on this
data set: the share of detections of about this confidence that meet an object of their class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import DetectionDataError
from .pipeline.pixels import decode_image
from .schema import class_names, undecoded
from .shards.dataset import AnySplit

__all__ = ["LABEL_ERRORS", "Annotated", "Detected", "LabelError", "find_label_errors", "rank_label_errors"]

LABEL_ERRORS = {
    "swapped": "of another class than the model finds there",
    "overlooked": "without a box, found by the model",
    "badly located": "boxed elsewhere than the model does it",
    "on nothing": "where the model finds nothing",
}
_SAME = 0.5  # IoU from which on two boxes are of one object
_TOUCHES = 0.05
_BINS = 20
_FEW, _FEW_OBJECTS = 1000, 200  # detections and objects of a class; with fewer all classes are counted together
_LEAST = 0.001
_PRIOR = 0.01  # share of labels that are wrong
_SEEN = 0.3


class Annotated(NamedTuple):
    """The objects of an image: (n, 4) corners, (n,) labels, (n,) whether it is a crowd, and the labelled classes."""

    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    labelled: frozenset[int] | None = None


class Detected(NamedTuple):
    """What a model finds in an image: (n, 4) corners, (n,) labels, (n,) confidences."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class LabelError:
    """One label that is likely wrong.

    Attributes:
        kind: one of `LABEL_ERRORS`.
        score: how likely, from 0 to 1.
        row: of the image.
        name: of its file.
        object: place of the object among those of the image; None where it was overlooked.
        bbox, label: x, y, w, h and class as annotated; None likewise.
        found_bbox, found_label: as the model has it; None where it finds nothing.
    """

    kind: str
    score: float
    row: int
    name: str
    object: int | None
    bbox: tuple[float, ...] | None
    label: str | None
    found_bbox: tuple[float, ...] | None
    found_label: str | None


class _Candidate(NamedTuple):
    kind: str
    score: float
    given: int | None
    found: int | None


def find_label_errors(
    dataset: AnySplit,
    detect: Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]],
    names: Sequence[str],
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 8,
    least: float = 0.3,
) -> list[LabelError]:
    """Look for labels that a model contradicts, the likeliest first.

    A model that was trained on these very images has learnt their errors too, and finds fewer of them: better one that
    was trained on others. Images that cannot be decoded are left out, since the audit names them.

    Args:
        dataset: a split in the schema of `load_detection_dataset`.
        detect: PIL images -> detections of each, as `load_detector` gives it, with low confidences too.
        names: of the model's labels; compared with those of the data set by name.
        rows: images to look at; default: all.
        batch_size: images given to `detect` at once.
        least: errors of a lower score are left out.

    Raises:
        DetectionDataError: the model and the data set have no class in common.
    """
    ours = class_names(dataset)
    place = np.array([ours.index(name) if name in ours else -1 for name in names], np.int64)
    if (place < 0).all():
        raise DetectionDataError(f"the model has the classes {list(names)}, and the data set {ours}: none is the same")
    known = frozenset(place[place >= 0].tolist())
    numbers = np.arange(len(dataset)) if rows is None else np.asarray(rows)
    seen, annotated, detected = list[dict[str, Any]](), list[Annotated](), list[Detected]()
    for batch in _decoded(dataset, numbers, batch_size):
        for (row, _), found in zip(batch, detect([image for _, image in batch]), strict=True):
            seen.append(row)
            annotated.append(_annotated(row, known))
            labels = place[np.asarray(found["labels"], np.int64)]
            inside = labels >= 0
            boxes = np.asarray(found["boxes"], np.float64).reshape(-1, 4)
            detected.append(Detected(boxes[inside], labels[inside], np.asarray(found["scores"], np.float64)[inside]))
    errors = []
    for index, each in rank_label_errors(annotated, detected):
        if each.score < least:
            break
        row, objects = seen[index], seen[index]["objects"]
        path = str(row.get("file_name") or row["image"].get("path") or row["image_id"])
        given, found = each.given, each.found
        corners = None if found is None else detected[index].boxes[found]
        errors.append(
            LabelError(
                each.kind, round(each.score, 4), int(row["row"]), path, given,
                None if given is None else tuple(objects["bbox"][given]),
                None if given is None else ours[objects["category"][given]],
                None if corners is None else tuple(np.append(corners[:2], corners[2:] - corners[:2]).round(2).tolist()),
                None if found is None else ours[int(detected[index].labels[found])],
            )
        )  # fmt: skip
    return errors


def _decoded(dataset: AnySplit, rows: np.ndarray, size: int) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    plain, batch = undecoded(dataset.with_format(None)), []
    for number in rows.tolist():
        row = plain[int(number)] | {"row": number}
        try:
            batch.append((row, decode_image(row)))
        except DetectionDataError:
            continue
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _annotated(row: Mapping[str, Any], known: frozenset[int]) -> Annotated:
    """The objects of a row; classes that the model does not know count as not labelled."""
    objects, own = row["objects"], row.get("labelled_classes")
    corners = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
    corners = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    labelled = known if own is None else known & frozenset(own)
    return Annotated(corners, np.asarray(objects["category"], np.int64), np.asarray(objects["iscrowd"], bool), labelled)


def rank_label_errors(annotated: Sequence[Annotated], detected: Sequence[Detected]) -> list[tuple[int, _Candidate]]:
    """The likely errors of images as (image, error), the likeliest first.

    Args:
        annotated: of each image.
        detected: of each image, low confidences included.
    """
    overlaps = [_overlap(found.boxes, given.boxes) for given, found in zip(annotated, detected, strict=True)]
    worth, real = _worth(annotated, detected, overlaps)
    images = list(zip(annotated, detected, overlaps, worth, strict=True))
    objects = [[_look(given, found, overlap, value, index) for index in range(len(given.labels))]
               for given, found, overlap, value in images]  # fmt: skip
    faults = _Faults.of([each for image in objects for each in image])
    ranked = []
    for image, (given, found, overlap, _) in enumerate(images):
        judged = [each for each in objects[image] if not given.crowds[each.index]]
        judged = [each for each in judged if given.labelled is None or each.label in given.labelled]
        errors = [faults.judge(each) for each in judged]
        errors += _overlooked(given, found, overlap, real[image])
        ranked += [(image, each) for each in errors if each.score >= _LEAST]
    return sorted(ranked, key=lambda pair: -pair[1].score)


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) IoU of corners."""
    shared = _shared_area(first, second)
    return shared / np.maximum(_area(first)[:, None] + _area(second) - shared, 1e-9)


def _shared_area(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) of corners."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(0).prod(axis=-1)


def _area(corners: np.ndarray) -> np.ndarray:
    return (corners[:, 2:] - corners[:, :2]).clip(0).prod(axis=-1)


def _worth(
    annotated: Sequence[Annotated], detected: Sequence[Detected], overlaps: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each detection the share of those of about its confidence that meet an object of their class.

    Counted for a class by itself where it has enough detections, in bins of equal counts, and never falling with the
    confidence. A second detection of an object that is met already counts as a miss, as in the AP.

    Returns:
        the shares of all detections, and those among detections that meet such an object or touch none.
    """
    hits, alone = [], []
    for given, found, overlap in zip(annotated, detected, overlaps, strict=True):
        hit = np.zeros(len(found.scores))
        taken = np.zeros(len(given.labels), bool)
        for index in np.argsort(-found.scores, kind="stable"):
            fits = (given.labels == found.labels[index]) & (overlap[index] >= _SAME) & ~taken
            if fits.any():
                taken[int(np.where(fits, overlap[index], -1).argmax())] = True
                hit[index] = 1
        hits.append(hit)
        alone.append((hit > 0) | (overlap < _SAME).all(axis=1))
    parts = [[each.scores for each in detected], [each.labels for each in detected], hits, alone]
    scores, labels, hit, counted = (np.concatenate([*each, np.zeros(0)]) for each in parts)
    ends = np.cumsum([len(each.scores) for each in detected])[:-1]
    results = []
    for among in (np.ones(len(scores), bool), counted.astype(bool)):
        worth = _rising_share(scores, scores[among], hit[among])
        for label in np.unique(labels):
            mine = labels == label
            if mine.sum() >= _FEW:
                worth[mine] = _rising_share(scores[mine], scores[mine & among], hit[mine & among])
        results.append(np.split(worth, ends) if len(detected) else [])
    return results[0], results[1]


def _rising_share(asked: np.ndarray, scores: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """The mean of `hits` around scores that are asked for; a thousandth of the score itself orders what is equal."""
    if not len(scores):
        return asked
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(_BINS, max(1, len(scores) // 10)))
    middles = np.array([scores[part].mean() for part in parts])
    # Half a miss and half a hit more: a few detections prove little.
    shares = np.array([(hits[part].sum() + 0.5) / (len(part) + 1) for part in parts])
    counts = np.array([len(part) for part in parts], np.float64)
    blocks: list[list[float]] = []
    for share, count in zip(shares, counts, strict=True):
        blocks.append([share, count, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            total = before[1] + last[1]
            blocks.append([(before[0] * before[1] + last[0] * last[1]) / total, total, before[2] + last[2]])
    rising = np.concatenate([np.full(int(length), share) for share, _, length in blocks])
    return np.interp(asked, middles, rising) * 0.999 + 0.001 * asked


class _Seen(NamedTuple):
    """What a model sees of an object: worth of its class there, of another class, how far off its nearest box is."""

    index: int
    label: int
    own: float
    other: float
    other_at: int
    near: float
    near_at: int
    off: float
    anything: float


def _look(given: Annotated, found: Detected, overlap: np.ndarray, worth: np.ndarray, index: int) -> _Seen:
    label = int(given.labels[index])
    here, same = overlap[:, index], found.labels == label
    # A detection that another object of its class explains as well says nothing about this one.
    alike = (found.labels[:, None] == given.labels) & ~given.crowds
    explained = np.where(alike, overlap, 0).max(axis=1, initial=0)
    own = np.where(same & (here >= _SAME), worth, 0)
    others = np.where(~same & (here >= _SAME) & (explained < here), worth, 0)
    near = np.where(same & (here >= _TOUCHES) & (explained <= here), worth * here**0.25, 0)
    other_at, near_at = (int(each.argmax()) if len(each) else -1 for each in (others, near))
    return _Seen(
        index, label, float(own.max(initial=0)), float(others.max(initial=0)), other_at,
        float(worth[near_at]) if near.max(initial=0) > 0 else 0.0, near_at,
        1 - float(here[near_at]) if near.max(initial=0) > 0 else 1.0,
        float((worth * (here >= _TOUCHES)).max(initial=0)),
    )  # fmt: skip


class _Faults(NamedTuple):
    """How often the model itself is wrong, by class: what it takes for another, what it misses, how far off it is.

    Where a share p of labels is wrong, and the model contradicts a share u of all in some way, a label that it
    contradicts so is wrong with p / u at most. The exponents and factors of `judge` are chosen on the made-up data of
    `benchmarks/label_errors.py`.
    """

    confused: Mapping[int, float]
    missed: Mapping[int, float]
    middle: float
    spread: float

    @classmethod
    def of(cls, objects: Sequence[_Seen]) -> _Faults:
        by_class: dict[int, list[_Seen]] = {}
        for each in objects:
            by_class.setdefault(each.label, []).append(each)
        all_confused, all_missed = (_share(objects, test) for test in (_is_confused, _is_missed))
        off = np.log(np.array([max(each.off, 1e-3) for each in objects if each.near >= _SEEN and each.off < 1 - _SAME]))
        middle, spread = (float(np.median(off)), 0.2) if len(off) else (-2.0, 0.5)
        if len(off) >= 8:
            low, high = np.quantile(off, [0.25, 0.75])
            spread = max(spread, float(high - low) / 1.349)  # of a normal distribution
        return cls(
            {k: _share(v, _is_confused) if len(v) >= _FEW_OBJECTS else all_confused for k, v in by_class.items()},
            {k: _share(v, _is_missed) if len(v) >= _FEW_OBJECTS else all_missed for k, v in by_class.items()},
            middle, spread,
        )  # fmt: skip

    def judge(self, each: _Seen) -> _Candidate:
        """The likeliest error of an object."""
        swapped = each.other * (1 - each.own) * min(1.0, _PRIOR / self.confused[each.label]) ** 0.5
        beyond = (math.log(max(each.off, 1e-3)) - self.middle) / self.spread
        by_chance = 0.5 * math.erfc(beyond / math.sqrt(2))
        apart = each.near * (1 - max(each.other, 0.0)) * (_PRIOR / (_PRIOR + by_chance))
        nothing = (1 - each.anything) * 0.5 * min(1.0, _PRIOR / self.missed[each.label])
        return max(
            _Candidate("swapped", swapped, each.index, each.other_at),
            _Candidate("badly located", apart, each.index, each.near_at),
            _Candidate("on nothing", nothing, each.index, None),
            key=lambda candidate: candidate.score,
        )


def _is_confused(each: _Seen) -> bool:
    return each.other >= _SEEN and each.own < each.other


def _is_missed(each: _Seen) -> bool:
    return each.anything < _SEEN


def _share(objects: Sequence[_Seen], test: Callable[[_Seen], bool]) -> float:
    return (sum(map(test, objects)) + 0.5) / (len(objects) + 1)


def _overlooked(given: Annotated, found: Detected, overlap: np.ndarray, worth: np.ndarray) -> Iterator[_Candidate]:
    """Detections without a box, each object once."""
    kept: list[int] = []
    shared = _shared_area(found.boxes, given.boxes[given.crowds]).max(axis=1, initial=0)
    inside = shared / np.maximum(_area(found.boxes), 1e-9)
    for index in np.argsort(-worth, kind="stable").tolist():
        label = int(found.labels[index])
        if given.labelled is not None and label not in given.labelled or inside[index] >= _SAME:
            continue
        free = 1 - float(np.where(given.crowds, 0, overlap[index]).max(initial=0)) / _SAME
        if free <= 0 or (kept and _overlap(found.boxes[kept], found.boxes[index : index + 1]).max() >= _SAME):
            continue
        touching = (given.labels == label) & (overlap[index] >= _TOUCHES)
        if touching.any():  # rather a box in the wrong place
            continue
        kept.append(index)
        # Among detections without a box there are far more false alarms than among all of their confidence.
        yield _Candidate("overlooked", float(worth[index] ** 4 * min(1.0, free**0.5)), None, index)
