"""Numbers out of COCO's arrays."""

from typing import Any

import numpy as np

from .backends import Evaluation

COCO_LIMITS = {"bbox": (1, 10, 100), "segm": (1, 10, 100), "keypoints": (20,)}


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
