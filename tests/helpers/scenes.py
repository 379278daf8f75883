"""Scenes of a few objects and detections, with every kind of error."""

import torch

from helpers.coco_cases import SIGMAS, as_coco
from rfdetr_hf import CocoEvaluator, DetectionAnalysis

CAT, DOG, COW = range(3)


def analysed(truth, predictions, iou_type="bbox", **options) -> DetectionAnalysis:
    """The analysis of predictions for a `COCO` object."""
    evaluator = CocoEvaluator(truth, sigmas=SIGMAS, iou_types=[iou_type], **options)
    evaluator.update(list(predictions), list(predictions.values()))
    return evaluator.analyze()


def scene(truths, found, image_id=1):
    """Truths (label, box xyxy[, crowd]) and detections (label, score, box xyxy) of one image."""
    annotations = []
    for number, (label, (x1, y1, x2, y2), *crowd) in enumerate(truths, start=1):
        box = [x1, y1, x2 - x1, y2 - y1]
        record = {"id": number, "image_id": image_id, "category_id": label, "bbox": box, "area": box[2] * box[3]}
        annotations.append({**record, "iscrowd": int(bool(crowd))})
    names = [{"id": label, "name": name} for label, name in enumerate(("cat", "dog", "cow"))]
    truth = as_coco([{"id": image_id, "width": 400, "height": 300}], annotations, names)
    labels, scores, boxes = zip(*found, strict=True) if found else ((), (), ())
    prediction = {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }
    return truth, {image_id: prediction}


# One object of each kind of trouble; boxes of 100 x 100, 110 apart.
TROUBLE = scene(
    [(CAT, (0, 0, 100, 100)), (CAT, (110, 0, 210, 100)), (DOG, (220, 0, 320, 100)), (COW, (0, 150, 100, 250))]
    + [(COW, (110, 150, 210, 250)), (CAT, (220, 150, 320, 250), "crowd")],
    [
        (CAT, 0.95, (0, 0, 100, 100)),  # right
        (CAT, 0.9, (0, 0, 100, 90)),  # duplicate
        (CAT, 0.8, (150, 0, 250, 100)),  # localisation: IoU 60 / 140
        (CAT, 0.7, (220, 0, 320, 95)),  # classification: it is the dog
        (DOG, 0.6, (40, 150, 140, 250)),  # both: a cow, by IoU 60 / 140
        (DOG, 0.5, (300, 260, 400, 300)),  # background
        (CAT, 0.4, (230, 160, 300, 240)),  # inside a crowd: neither right nor wrong
    ],
)
