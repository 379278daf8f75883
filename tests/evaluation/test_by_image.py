"""Detections and truth image by image, as metrics of a user get them."""

import numpy as np
import torch
from pycocotools import mask as mask_utils

from rfdetr_hf import CocoEvaluator, make_shapes_dataset, predictions_by_image, truth_by_image


def test_images_without_detections_have_empty_predictions():
    crowded = make_shapes_dataset(7, image_size=64, seed=2, crowd_share=0.5)
    evaluator = CocoEvaluator(crowded)
    second = crowded["image_id"][1]
    one = {"scores": torch.tensor([0.5]), "labels": torch.tensor([1]), "boxes": torch.tensor([[1.0, 2, 3, 4]])}
    none = {"scores": torch.empty(0), "labels": torch.empty(0, dtype=torch.long), "boxes": torch.empty(0, 4)}
    ids = crowded["image_id"]
    evaluator.update(ids, [one if image_id == second else none for image_id in ids])
    found = {each["image_id"]: each for each in predictions_by_image(evaluator)}
    assert found[second]["boxes"].tolist() == [[1, 2, 3, 4]] and found[second]["labels"].tolist() == [1]
    assert all(len(found[image_id]["scores"]) == 0 for image_id in ids if image_id != second)


def test_masks_and_truth_are_those_of_the_rows():
    data = make_shapes_dataset(4, image_size=64, seed=2, crowd_share=0.5, task="segmentation")
    evaluator = CocoEvaluator(data, iou_types=("bbox", "segm"))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 2:5, 3:9] = True
    one = {"scores": torch.tensor([0.5]), "labels": torch.tensor([1]), "boxes": torch.tensor([[3.0, 2, 9, 5]])}
    evaluator.update(data["image_id"], [{**one, "masks": mask} for _ in data])
    for predicted, truth, row in zip(predictions_by_image(evaluator), truth_by_image(evaluator), data, strict=True):
        assert np.array_equal(mask_utils.decode(predicted["masks"][0]), mask[0].numpy())
        assert "keypoints" not in predicted and "keypoints" not in truth
        objects = row["objects"]
        corners = [[x, y, x + w, y + h] for x, y, w, h in objects["bbox"]]
        assert truth["image_id"] == row["image_id"] and np.allclose(truth["boxes"], corners)
        assert truth["labels"].tolist() == objects["category"] and truth["iscrowd"].tolist() == objects["iscrowd"]
        assert np.allclose(truth["area"], objects["area"]) and len(truth["masks"]) == len(corners)
    assert any(truth["iscrowd"].any() for truth in truth_by_image(evaluator))
