"""COCO annotations of one picture as the target of a model."""

import numpy as np
import pytest
import torch
from helpers.pictures import picture

from rfdetr_hf import RFDETRImageProcessor


def one_object(**fields) -> dict:
    return {"image_id": 4, "annotations": [{"id": 9, **fields}]}


def test_annotations_become_targets():
    objects = [
        {"bbox": [10, 20, 40, 30], "category_id": 2, "area": 600, "iscrowd": 0},
        {"bbox": [0, 0, 5, 5], "category_id": 0, "area": 25, "iscrowd": 1},
        {"bbox": [90, 80, 40, 40], "category_id": 1, "area": 1600},
        {"bbox": [100, 0, 10, 10], "category_id": 1},
    ]
    annotations = [{"image_id": 7, "annotations": objects}, {"image_id": 8, "annotations": []}]
    images = [picture(100, 100), picture(40, 50)]
    out = RFDETRImageProcessor(size={"shortest_edge": 50, "longest_edge": 100})(images, annotations)
    first, second = out["labels"]
    assert out["pixel_mask"].shape == (2, 50, 62)
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.3, 0.35, 0.4, 0.3], [0.95, 0.9, 0.1, 0.2]]))
    assert first["class_labels"].tolist() == [2, 1] and first["iscrowd"].tolist() == [0, 0]
    assert first["area"].tolist() == [150, 400], "pixels of the resized picture"
    assert [first[key].tolist() for key in ("image_id", "orig_size", "size")] == [[7], [100, 100], [50, 50]]
    assert second["boxes"].shape == (0, 4) and second["class_labels"].dtype == torch.int64


def test_values_of_annotations_are_read_as_those_of_data_sets():
    plain = {"bbox": [1, 2, 3, 4], "category_id": 2, "area": 12.0, "iscrowd": 0}
    others = [
        {"bbox": np.array([1, 2, 3, 4]), "category_id": "2", "area": None, "iscrowd": "0"},
        {"bbox": torch.tensor([1, 2, 3, 4]), "category_id": 2.0, "area": np.float32(12), "iscrowd": None},
    ]
    out = RFDETRImageProcessor(size=16)([picture()] * 2, [
        {"image_id": 1, "annotations": [plain] * 2}, {"image_id": np.int64(1), "annotations": others}
    ])  # fmt: skip
    first, second = out["labels"]
    tensors = {name: torch.tensor(value) for name, value in plain.items()}
    arrays = {name: np.asarray(value) for name, value in plain.items()}
    held = RFDETRImageProcessor(size=16)(picture(), {"image_id": torch.tensor(1), "annotations": [tensors, arrays]})
    assert all(torch.equal(first[name], held["labels"][0][name]) for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["class_labels"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"annotations": []}, "no 'image_id'"),
        ({"image_id": 4}, "no 'annotations'"),
        (one_object(bbox=[0, 0, 1, 1]), "annotation 9 of image 4 has no 'category_id'"),
        (one_object(bbox=[0, 0, float("nan"), 1], category_id=0), "annotation 9 of image 4: bbox"),
        (one_object(bbox=[0, 0, 1], category_id=0), "annotation 9 of image 4: bbox"),
        (one_object(bbox=None, category_id=0), "annotation 9 of image 4: bbox is None"),
        (one_object(bbox=[9, 9, -4, -4], category_id=0), "annotation 9 of image 4: bbox is .9, 9, -4, -4.*width >= 0"),
        (one_object(bbox=[0, 0, 1, 1], category_id=True), "annotation 9 of image 4: category_id is True"),
        (one_object(bbox=[0, 0, 1, 1], category_id=1.5), "annotation 9 of image 4: category_id is 1.5"),
        (one_object(bbox=[0, 0, 1, 1], category_id=-1), "annotation 9 of image 4: category_id is -1"),
        (one_object(bbox=[0, 0, 1, 1], category_id=1, area=True), "annotation 9 of image 4: area is True"),
        (one_object(bbox=[0, 0, 1, 1], category_id=1, area=-5), "annotation 9 of image 4: area is -5"),
        (one_object(bbox=[0, 0, 1, 1], category_id=1, iscrowd="maybe"), "image 4: iscrowd is 'maybe', neither"),
        ({"image_id": 1.5, "annotations": []}, "image_id is 1.5"),
        ([{"image_id": 4, "annotations": []}] * 2, "1 images but 2 annotations"),
    ],
)
def test_unusable_annotations(annotation, message):
    with pytest.raises(ValueError, match=message):
        RFDETRImageProcessor(size=16)(picture(), annotation)
