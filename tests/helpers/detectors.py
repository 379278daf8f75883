"""Detectors that know the truth."""

import torch


def forgetful(dataset):
    """A detector that knows the truth, forgets every third object and mistakes every fifth."""
    rows = iter(dataset.select_columns(["objects"]))

    def detect(images):
        predictions = []
        for _ in images:
            objects = next(rows)["objects"]
            kept = [i for i in range(len(objects["bbox"])) if i % 3 != 2]
            boxes = torch.tensor([objects["bbox"][i] for i in kept]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([(objects["category"][i] + (i % 5 == 4)) % 3 for i in kept], dtype=torch.int64)
            predictions.append({"boxes": boxes, "labels": labels, "scores": torch.linspace(0.9, 0.5, len(kept))})
        return predictions

    return detect
