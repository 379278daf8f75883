"""How much detections overlap objects of any class: box IoU, mask IoU, keypoint similarity, for pairs within an image.

COCO's matching compares within a class only. What confuses classes needs the rest, for the few rows that matching left.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from .backends import Evaluation, run_lengths

_PAIRS_AT_ONCE = 1 << 16  # what the temporaries of numpy keep in a core's cache


class Pairs(NamedTuple):
    """Pairs of one detection and one object of the same image.

    Attributes:
        match: (p,) index into `Evaluation.matches`, ascending: the pairs of a detection are side by side.
        truth: (p,) index into `Evaluation.truths`, ascending within a detection.
        overlap: (p,) IoU or keypoint similarity.
    """

    match: np.ndarray
    truth: np.ndarray
    overlap: np.ndarray


def overlaps(evaluation: Evaluation, matches: np.ndarray, truths: np.ndarray) -> Iterator[Pairs]:
    """All pairs of these detections and these objects, a bounded number at a time.

    A detection's pairs are never torn apart. Detections on images without any of the objects have no pairs.

    Args:
        evaluation: what the indices point into.
        matches: (n,) ascending indices into `evaluation.matches`.
        truths: (m,) indices into `evaluation.truths`; none of them may be ignored.
    """
    truths = truths[np.argsort(evaluation.truths.image[truths], kind="stable")]
    images = evaluation.truths.image[truths]
    starts = np.searchsorted(images, evaluation.matches.image[matches])
    counts = np.searchsorted(images, evaluation.matches.image[matches], side="right") - starts
    matches, starts, counts = (values[counts > 0] for values in (matches, starts, counts))
    chunk = np.cumsum(counts) // _PAIRS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(matches)]
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        if begin < end:
            count = counts[begin:end]
            offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            truth = truths[np.repeat(starts[begin:end], count) + offset]
            match = np.repeat(matches[begin:end], count)
            yield Pairs(match, truth, _OVERLAP[evaluation.iou_type](evaluation, match, truth))


def _box_overlap(evaluation: Evaluation, match: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union in pycocotools' order of operations."""
    x1, y1, w, h = evaluation.detections.boxes_xywh[evaluation.matches.row[match]].T
    left, top, width, height = evaluation.truths.box[truth].T
    across = np.minimum(w + x1, width + left) - np.maximum(x1, left)
    down = np.minimum(h + y1, height + top) - np.maximum(y1, top)
    shared = np.maximum(across, 0) * np.maximum(down, 0)
    union = w * h + width * height - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _mask_overlap(evaluation: Evaluation, match: np.ndarray, truth: np.ndarray) -> np.ndarray:
    overlap = np.empty(len(match))
    image = evaluation.matches.image[match]
    for position in np.unique(image):
        pairs = np.flatnonzero(image == position)
        found, found_at = np.unique(match[pairs], return_inverse=True)
        there, there_at = np.unique(truth[pairs], return_inverse=True)
        table = evaluation.detections.take(evaluation.matches.row[found])
        annotations: Any = [evaluation.ground_truth.anns[i] for i in evaluation.truths.id[there].tolist()]
        rles = [evaluation.ground_truth.annToRLE(annotation) for annotation in annotations]
        lengths: Any = run_lengths(table, evaluation.ground_truth, evaluation.image_ids)
        overlap[pairs] = np.asarray(mask_utils.iou(lengths, rles, [0] * len(rles)))[found_at, there_at]
    return overlap


def _keypoint_overlap(evaluation: Evaluation, match: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Object keypoint similarity over the labelled keypoints of each object."""
    assert evaluation.detections.keypoints is not None and evaluation.sigmas is not None
    annotations: Any = [evaluation.ground_truth.anns[i] for i in evaluation.truths.id.tolist()]
    points = np.array([annotation["keypoints"] for annotation in annotations]).reshape(len(annotations), -1, 3)
    area = np.array([annotation["area"] for annotation in annotations])
    found = evaluation.detections.keypoints[evaluation.matches.row[match]]
    distance = ((found[..., :2] - points[truth][..., :2]) ** 2).sum(axis=-1)
    sigmas = evaluation.sigmas[evaluation.truths.category[truth]]
    error = distance / (2 * sigmas) ** 2 / (area[truth][:, None] + np.spacing(1)) / 2
    labelled = points[truth][..., 2] > 0
    return (np.exp(-error) * labelled).sum(axis=1) / labelled.sum(axis=1)


_OVERLAP = {"bbox": _box_overlap, "segm": _mask_overlap, "keypoints": _keypoint_overlap}
