"""Detections and truth image by image, as plain values: what a user's own metric works on."""

from typing import Any

import numpy as np

from .evaluator import CocoEvaluator


def predictions_by_image(evaluator: CocoEvaluator) -> list[dict[str, Any]]:
    """The detections of each image, in the order of `evaluator.image_ids`.

    Returns:
        Dicts with `image_id`, `scores` (n,) float64, `labels` (n,) int64, `boxes` (n, 4) float64 xyxy in pixels and,
        where the evaluator scores them, `masks` (n compressed COCO RLE dicts) and `keypoints` (n, K, 3) float64.
    """
    table, truth = evaluator.table, evaluator.ground_truth
    starts = np.searchsorted(table.rows["image"], np.arange(len(evaluator.image_ids) + 1))
    found = []
    for position, image_id in enumerate(evaluator.image_ids.tolist()):
        part = slice(starts[position], starts[position + 1])
        rows = table.rows[part]
        each = {"image_id": image_id, "scores": rows["score"], "labels": rows["label"].astype(np.int64)}
        each["boxes"] = rows["box"]
        if table.masks is not None:
            image = truth.imgs[image_id]
            size = [image["height"], image["width"]]
            each["masks"] = [{"size": size, "counts": counts} for counts in table.masks[part]]
        if table.keypoints is not None:
            each["keypoints"] = table.keypoints[part]
        found.append(each)
    return found


def truth_by_image(evaluator: CocoEvaluator) -> list[dict[str, Any]]:
    """The annotated objects of each image, in the order of `evaluator.image_ids`.

    Returns:
        Dicts with `image_id`, `labels` (n,) int64, `boxes` (n, 4) float64 xyxy in pixels, `area` (n,) float64,
        `iscrowd` (n,) bool and, where the evaluator scores them, `masks` (n segmentations as in COCO's files) and
        `keypoints` (n, K, 3) float64.
    """
    return [_truth(evaluator, image_id) for image_id in evaluator.image_ids.tolist()]


def _truth(evaluator: CocoEvaluator, image_id: int | str) -> dict[str, Any]:
    index: Any = evaluator.ground_truth.imgToAnns
    objects = index.get(image_id, [])
    boxes = np.array([each["bbox"] for each in objects], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    truth = {
        "image_id": image_id,
        "labels": np.array([each["category_id"] for each in objects], dtype=np.int64),
        "boxes": boxes,
        "area": np.array([each["area"] for each in objects], dtype=np.float64),
        "iscrowd": np.array([each["iscrowd"] for each in objects], dtype=bool),
    }
    if "segm" in evaluator.iou_types:
        truth["masks"] = [each["segmentation"] for each in objects]
    if "keypoints" in evaluator.iou_types:
        points = np.array([each["keypoints"] for each in objects], dtype=np.float64)
        truth["keypoints"] = points.reshape(len(objects), -1, 3)
    return truth
