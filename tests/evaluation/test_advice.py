"""What the dearest errors of a class advise."""

import torch

from rfdetr_hf import evaluate_detector
from rfdetr_hf.evaluation.advice import class_advice


def test_advice_names_the_dearest_error_of_a_class(scored_shapes):
    """All found; every second forgotten; boxes moved by a third; every second object taken for the next class."""

    def altered(change):
        rows = iter(scored_shapes.select_columns(["objects"]))

        def detect(images):
            found = []
            for _ in images:
                objects = next(rows)["objects"]
                boxes = torch.tensor(objects["bbox"]).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                labels = torch.tensor(objects["category"], dtype=torch.int64)
                boxes, labels = change(boxes, labels)
                found.append({"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), 0.9)})
            return found

        return " ".join(class_advice(evaluate_detector(detect, scored_shapes).analysis))

    def moved(boxes, labels):
        side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return torch.cat([boxes, boxes + 0.4 * side, boxes - 0.4 * side]), labels.repeat(3)

    assert altered(lambda boxes, labels: (boxes, labels)).count("Good.") == 3
    assert "are missed" in altered(lambda boxes, labels: (boxes[::3], labels[::3]))
    assert "most of the type localisation" in altered(moved)
    assert "are taken for" in altered(lambda boxes, labels: (boxes, (labels + torch.arange(len(labels)) % 2) % 3))
