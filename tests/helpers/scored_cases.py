"""Random truth and predictions, and single objects that tests may spoil."""

import numpy as np
import torch
from datasets import Dataset

from rfdetr_hf import CocoEvaluator
from rfdetr_hf.data.schema import detection_features
from rfdetr_hf.evaluation.ground_truth import make_coco

NAMES = ("circle", "square", "triangle", "never")


def make_dataset(rows: list[dict]) -> Dataset:
    """A data set in the project's schema whose image column can't be decoded."""
    filled = []
    for row in rows:
        objects = {"id": list(range(len(row["objects"]["bbox"]))), **row["objects"]}
        image = {"bytes": b"not an image", "path": None}
        filled.append({"image": image, "width": 400, "height": 300, "file_name": None, **row, "objects": objects})
    return Dataset.from_list(filled, features=detection_features(NAMES))


def random_case(seed: int, num_images: int = 12) -> tuple[Dataset, dict[int, dict]]:
    """Truth with crowds, odd areas and empty images; predictions with ties, near misses and more than 100 a class."""
    rng = np.random.default_rng(seed)
    rows, predictions = [], {}
    for image_id in rng.permutation(1000)[:num_images].tolist():
        count = int(rng.integers(0, 7))
        start, side = rng.uniform(0, 200, (count, 2)), rng.choice([10, 40, 110], (count, 1)) * rng.uniform(0.8, 1.2)
        truth = np.concatenate([start, np.broadcast_to(side, (count, 2))], 1).astype(np.float32)
        rows.append(
            {
                "image_id": image_id,
                "objects": {
                    "bbox": truth.tolist(),
                    "category": rng.integers(0, 3, count).tolist(),
                    "area": (truth[:, 2] * truth[:, 3] * rng.uniform(0.3, 1, count)).tolist(),
                    "iscrowd": (rng.random(count) < 0.2).tolist(),
                },
            }
        )
        predictions[image_id] = random_predictions(rng, truth, rows[-1]["objects"]["category"])
    return make_dataset(rows), predictions


def random_predictions(rng: np.random.Generator, truth: np.ndarray, categories: list[int]) -> dict:
    """Three near misses for each object, and boxes anywhere."""
    noise = int(rng.choice([0, 5, 250]))
    near = np.repeat(truth, 3, axis=0) + rng.normal(0, 4, (3 * len(truth), 4))
    boxes = np.concatenate([near, rng.uniform(0, 150, (noise, 4))])
    boxes[:, 2:] = np.abs(boxes[:, 2:]) + boxes[:, :2]
    return {
        "scores": torch.from_numpy(np.round(rng.random(len(boxes)), 1)).float(),
        "labels": torch.from_numpy(np.concatenate([np.repeat(categories, 3), rng.integers(0, 2, noise)]).astype(int)),
        "boxes": torch.from_numpy(boxes).float(),
    }


def scored(dataset: Dataset, predictions: dict[int, dict], batch_size: int = 5, **options) -> CocoEvaluator:
    """An evaluator that has seen all predictions in batches."""
    evaluator = CocoEvaluator(dataset, **options)
    ids = list(predictions)
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        evaluator.update(torch.tensor(batch), [predictions[image_id] for image_id in batch])
    return evaluator


GOOD = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}


def one_object(**changes):
    """A `COCO` object of one annotation with other values; `...` leaves a field out."""
    annotation = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return make_coco([{"id": 1, "width": 99, "height": 99}], [annotation], [{"id": 0, "name": "a"}])
