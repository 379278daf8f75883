"""Detections as flat arrays: what is taken, what is refused by name, and the way between processes."""

import numpy as np
import pytest
import torch
from helpers.coco_cases import random_coco
from helpers.scored_cases import one_object, random_case, scored

from rfdetr_hf import CocoEvaluator


@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_predictions_that_are_not_numbers(field):
    dataset, predictions = random_case(7)
    image_id = next(i for i, p in predictions.items() if len(p["scores"]))
    predictions[image_id][field][0] = float("nan")
    with pytest.raises(ValueError, match=f"images {image_id} are NaN"):
        scored(dataset, predictions)


def test_predictions_that_do_not_fit():
    dataset, predictions = random_case(7)
    image_id, prediction = next((i, p) for i, p in predictions.items() if len(p["scores"]) > 1)
    with pytest.raises(ValueError, match=f"Image {image_id}: scores"):
        CocoEvaluator(dataset).update([image_id], [{**prediction, "labels": prediction["labels"][1:]}])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": [False]}, "labels are true or false"), ({"labels": torch.tensor([False])}, "labels are true or false"),
     ({"scores": [True]}, "scores are true or false"), ({"boxes": np.ones((1, 4), bool)}, "boxes are true or false"),
     ({"labels": [0.7]}, "labels must be integers"), ({"labels": torch.tensor([2**32])}, "labels must be integers"),
     ({"labels": [float("nan")]}, "labels must be integers"), ({"boxes": [[30, 10, 10, 30]]}, "with x1 <= x2"),
     ({"boxes": torch.tensor([[10.0, 30, 30, 10]])}, r"not \[10.0, 30.0, 30.0, 10.0\]"),
     ({"boxes": np.array([[10.0, 30, 30, 10]])}, "with x1 <= x2")],
)  # fmt: skip
def test_impossible_predictions_are_named_with_image_and_field(change, message):
    evaluator, good = CocoEvaluator(one_object()), {"scores": [0.9], "labels": [0], "boxes": [[10, 10, 30, 30]]}
    with pytest.raises(ValueError, match=f"Image 1: .*{message}"):
        evaluator.update([1], [good | change])
    corners = {name: value for name, value in good.items() if name != "boxes"} | {"boxes_xywh": [[10, 10, -20, 20]]}
    with pytest.raises(ValueError, match="Image 1: boxes must be"):
        evaluator.update([1], [corners])
    evaluator.update([1], [good | {"labels": [0.0]}])
    assert evaluator.compute()["map"] == pytest.approx(1)


def test_masks_may_come_as_run_lengths():
    truth, predictions = random_coco(5)
    dense, encoded = (CocoEvaluator(truth, iou_types=["segm"]) for _ in range(2))
    dense.update(list(predictions), list(predictions.values()))
    results = {image_id: [] for image_id in predictions}
    for each in dense.predictions_json():
        results[each["image_id"]].append(each["segmentation"])
    assert sum(map(len, results.values())) > 20
    encoded.update(list(predictions), [{**p, "masks": results[i]} for i, p in predictions.items()])
    assert encoded.compute() == dense.compute()


@pytest.mark.parametrize("field", ["masks", "keypoints"])
def test_masks_and_keypoints_must_fit(field):
    truth, predictions = random_coco(5)
    image_id = next(i for i, p in predictions.items() if len(p["scores"]) > 1)
    prediction = predictions[image_id]
    evaluator = CocoEvaluator(truth, iou_types=["segm", "keypoints"])
    with pytest.raises(ValueError, match=f"Image {image_id}: .*{field}.* do not fit"):
        evaluator.update([image_id], [{**prediction, field: prediction[field][:, :-1]}])
    with pytest.raises(ValueError, match=f"has no '{field}'"):
        evaluator.update([image_id], [{k: v for k, v in prediction.items() if k != field}])


FORMS = {
    "bytes": lambda m: m.to(torch.uint8), "pictures": lambda m: m.to(torch.uint8) * 255, "floats": lambda m: m.float(),
    "array": lambda m: m.numpy(), "list": list, "arrays": lambda m: [each.numpy() for each in m],
}  # fmt: skip


def masked():
    truth, predictions = random_coco(5)
    image_id = next(i for i, p in predictions.items() if len(p["scores"]) > 1)
    prediction = predictions[image_id]
    return CocoEvaluator(truth, iou_types=["segm"]), image_id, prediction, torch.as_tensor(prediction["masks"]) != 0


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_masks_of_ones_and_zeros_are_taken_in_every_form(form):
    found = []
    for change in (lambda m: m, form):
        evaluator, image_id, prediction, masks = masked()
        evaluator.update([image_id], [{**prediction, "masks": change(masks)}])
        found.append(evaluator.predictions_json())
    assert found[0] == found[1] and len(found[0]) > 1


WRONG = {
    "probabilities": lambda m: m * 0.7, "logits": lambda m: m * 8.0 - 4, "256": lambda m: m * 256,
    "None": lambda m: None, "sizes": lambda m: [m[0], m[1][1:]],
    "nan": lambda m: torch.where(m, float("nan"), 0.0), "texts": lambda m: ["a"] * len(m),
    "no run lengths": lambda m: [{"size": [1, 1]}] * len(m), "soft": lambda m: list(m * 0.7),
}  # fmt: skip


@pytest.mark.parametrize("form", WRONG.values(), ids=WRONG)
def test_other_masks_are_refused_by_image(form):
    evaluator, image_id, prediction, masks = masked()
    with pytest.raises(ValueError, match=f"Image {image_id}: masks "):
        evaluator.update([image_id], [{**prediction, "masks": form(masks)}])
