"""Random truth and predictions for boxes, masks and keypoints, and pycocotools' own way to score them."""

import contextlib
import io

import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIGMAS = np.array([0.05, 0.1, 0.03, 0.07, 0.02])
IOU_TYPES = ("bbox", "segm", "keypoints")


def random_coco(seed: int) -> tuple[COCO, dict[int, dict]]:
    """A `COCO` and predictions by image id: ties, crowds, empty images, areas on the edges of the ranges, rich images.

    Every eighth case has no truth, another eighth no detections.
    """
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 220, 2).tolist()
    categories = [{"id": int(c), "name": f"class {c}"} for c in rng.permutation(90)[: rng.integers(1, 5)]]
    labels = [category["id"] for category in categories]
    images, annotations, predictions = [], [], {}
    for image_id in rng.permutation(500)[: rng.integers(1, 8)].tolist():
        images.append({"id": image_id, "height": height, "width": width})
        found = []
        for _ in range(0 if seed % 8 == 0 else rng.integers(0, 7)):
            annotation, mask = _object(rng, image_id, labels, height, width)
            annotations.append({**annotation, "id": len(annotations) + 1})
            found += [_near(rng, annotation, mask, labels) for _ in range(rng.integers(0, 5))]
        found += [_anywhere(rng, labels, height, width) for _ in range(rng.choice([0, 3, 130]))]
        predictions[image_id] = _prediction([] if seed % 8 == 1 else found, height, width)
    return as_coco(images, annotations, categories), predictions


def as_coco(images: list, annotations: list, categories: list) -> COCO:
    coco = COCO()
    coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _mask(rng, height, width) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(1, 3)):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[y : y + rng.integers(2, 40), x : x + rng.integers(2, 40)] = 1
    return mask


def rle(mask: np.ndarray) -> dict:
    encoded = mask_utils.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def _object(rng, image_id, labels, height, width) -> tuple[dict, np.ndarray]:
    mask = _mask(rng, height, width)
    box = np.array(mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask))))
    if rng.random() < 0.5:
        box = box + np.concatenate([rng.normal(0, 1, 2), rng.uniform(0, 5, 2)])
    area = mask.sum() * rng.choice([1.0, 0.3, 8.0]) if rng.random() < 0.7 else rng.choice([1024.0, 9216.0])
    points = np.concatenate([rng.uniform(0, min(height, width), (5, 2)).round(2), rng.integers(0, 3, (5, 1))], axis=1)
    points[:, 2] *= rng.random() > 0.15
    x, y, w, h = box.tolist()
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    annotation = {
        "image_id": image_id,
        "category_id": int(rng.choice(labels)),
        "bbox": [float(np.float32(v)) for v in box],
        "area": float(area),
        "iscrowd": int(rng.random() < 0.15),
        "segmentation": polygon if rng.random() < 0.3 else rle(mask),
        "keypoints": points.ravel().tolist(),
        "num_keypoints": int((points[:, 2] > 0).sum()),
    }
    return annotation, mask


def _score(rng) -> float:
    return round(rng.random(), 1) if rng.random() < 0.6 else rng.random()


def _near(rng, annotation, mask, labels) -> tuple:
    noise = 0 if rng.random() < 0.2 else 3
    box = np.array(annotation["bbox"]) + rng.normal(0, 1, 4) * noise
    moved = np.roll(mask, rng.integers(-4, 5, 2), (0, 1)) if rng.random() < 0.6 else mask
    points = np.array(annotation["keypoints"]).reshape(5, 3) + rng.normal(0, 1, (5, 3)) * noise
    label = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(labels))
    return _score(rng), label, [*box[:2], *(box[:2] + np.abs(box[2:]))], moved, points


def _anywhere(rng, labels, height, width) -> tuple:
    mask = _mask(rng, height, width)
    x, y, w, h = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask)))
    points = rng.uniform(0, min(height, width), (5, 3))
    return round(rng.random(), 1), int(rng.choice(labels)), [x, y, x + w, y + h], mask, points


def _prediction(found: list[tuple], height: int, width: int) -> dict:
    scores, labels, boxes, masks, points = zip(*found, strict=True) if found else ([], [], [], [], [])
    return {
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
        "masks": torch.from_numpy(np.array(masks).reshape(-1, height, width).astype(bool)),
        "keypoints": torch.tensor(np.array(points), dtype=torch.float32).reshape(-1, 5, 3),
    }


def results(predictions: dict[int, dict], iou_type: str) -> list[dict]:
    """A results file of one type, in the order of the image ids."""
    found = []
    for image_id in sorted(predictions):
        prediction = predictions[image_id]
        for i, (score, label) in enumerate(zip(*(prediction[k].tolist() for k in ("scores", "labels")), strict=True)):
            x1, y1, x2, y2 = prediction["boxes"][i].double().tolist()
            shape = {
                "bbox": lambda box=(x1, y1, x2 - x1, y2 - y1): {"bbox": list(box)},
                "segm": lambda p=prediction, i=i: {"segmentation": rle(p["masks"][i].numpy().astype(np.uint8))},
                "keypoints": lambda p=prediction, i=i: {"keypoints": p["keypoints"][i].double().flatten().tolist()},
            }[iou_type]()
            found.append({"image_id": image_id, "category_id": label, "score": score, **shape})
    return found


def pycocotools_run(
    truth: COCO,
    predictions: dict[int, dict],
    iou_type: str,
    limits: list[int] | None = None,
    sigmas: np.ndarray = SIGMAS,
) -> COCOeval:
    """`COCOeval` as a user would call it, on a results list through `loadRes` (which can't read an empty one)."""
    found = results(predictions, iou_type)
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        empty = as_coco(truth.dataset["images"], [], truth.dataset["categories"])
        evaluation = COCOeval(truth, truth.loadRes(found) if found else empty, iou_type)
        if iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = sigmas
        elif limits:
            evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        if evaluation.params.maxDets[-1] in (20, 100):
            evaluation.summarize()
    return evaluation
