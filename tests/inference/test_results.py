"""Detections as records, COCO files and crops."""

import json

import pytest
import torch
from helpers.pictures import noise
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from rfdetr_hf import NamedImage
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.inference.results import CocoResults, Crops, as_records, keypoints_of_classes, run_length

FOUND = {
    "scores": torch.tensor([0.9, 0.4]),
    "labels": torch.tensor([1, 0]),
    "boxes": torch.tensor([[1.0, 2.0, 5.0, 4.0], [0.0, 0.0, 2.0, 2.0]]),
}
NAMES = {0: "a", 1: "b"}


def test_records_and_coco_results_agree_on_what_is_above_the_threshold():
    assert as_records(FOUND, NAMES, 0.5) == [{"label": "b", "score": 0.9, "box": [1.0, 2.0, 5.0, 4.0]}]
    coco = CocoResults(NAMES)
    coco.add("x.jpg", (10, 8), FOUND, 0.5)
    coco.add("y.jpg", (10, 8), FOUND)
    annotations = coco.to_dict()["annotations"]
    assert [(a["image_id"], a["id"], a["category_id"]) for a in annotations] == [(1, 1, 1), (2, 2, 1), (2, 3, 0)]
    assert annotations[0]["bbox"] == [1.0, 2.0, 4.0, 2.0] and annotations[0]["area"] == 8.0


def test_a_coco_file_is_read_by_pycocotools(tmp_path):
    coco = CocoResults(NAMES)
    coco.add("x.jpg", (10, 8), FOUND)
    (tmp_path / "coco.json").write_text(json.dumps(coco.to_dict()))
    assert len(COCO(str(tmp_path / "coco.json")).getAnnIds(catIds=[1])) == 1


def test_masks_are_run_lengths_and_give_the_area():
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 2:4, 1:5] = True
    rles = [run_length(mask) for mask in masks]
    for given in (masks, rles):
        (record,) = as_records({**FOUND, "masks": given}, NAMES, 0.5)
        assert record["mask"] == json.loads(json.dumps(rles[0])) and record["mask"]["size"] == [8, 10]
        coco = CocoResults(NAMES)
        coco.add("x.jpg", (10, 8), {**FOUND, "masks": given})
        annotations = json.loads(json.dumps(coco.to_dict()))["annotations"]
        assert [a["area"] for a in annotations] == [8, 0]
        assert isinstance(annotations[0]["segmentation"]["counts"], str)
        assert (mask_utils.decode(annotations[0]["segmentation"]) == masks[0].numpy()).all()


def test_keypoints_are_visible_above_the_threshold_and_described():
    classes = [ClassKeypoints(), ClassKeypoints.of(["head", "tail"], skeleton=[(0, 1)])]
    coco = CocoResults(NAMES, classes, keypoint_threshold=0.3)
    points = torch.tensor([[[1.0, 2.0, 0.9], [3.0, 4.0, 0.2]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    coco.add("x.jpg", (10, 8), {**FOUND, "keypoints": points}, 0.5)
    found = coco.to_dict()
    assert found["annotations"][0]["keypoints"] == [1.0, 2.0, 2, 0, 0, 0]
    assert found["annotations"][0]["num_keypoints"] == 1
    assert found["categories"] == [
        {"id": 0, "name": "a"}, {"id": 1, "name": "b", "keypoints": ["head", "tail"], "skeleton": [[1, 2]]},
    ]  # fmt: skip
    assert as_records({**FOUND, "keypoints": points}, NAMES, 0.5)[0]["keypoints"][1] == pytest.approx([3, 4, 0.2])


def test_keypoints_without_names_are_numbered(tiny_config):
    (first, *_) = keypoints_of_classes(tiny_config(num_keypoints_per_class=[2, 2, 2]))
    assert first.names == ("1", "2")
    assert keypoints_of_classes(tiny_config()) == []


def test_classes_that_differ_in_what_no_file_name_holds_have_folders_of_their_own(tmp_path):
    crops = Crops(tmp_path, {0: "a", 1: "A", 2: "a-0"})
    item = NamedImage("image", tmp_path / "image.png", Image.new("RGB", (8, 8)))
    found = {"labels": torch.arange(3), "boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 3)}
    crops.add(item, found, [])
    assert len(list(tmp_path.iterdir())) == 3


def test_crops_are_the_pixels_of_the_boxes(tmp_path):
    picture = noise(4)
    found = {
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([1, 0, 1]),
        "boxes": torch.tensor([[1.5, 2.0, 5.2, 4.0], [-3.0, -3.0, 2.0, 2.0], [90.0, 2.0, 95.0, 9.0]]),
    }
    with Crops(tmp_path, {0: "..", 1: "b"}) as crops:
        crops.add(NamedImage("x", tmp_path / "x.png", picture), found, [])
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert paths == ["_/x-001.png", "b/x-000.png"]
    assert Image.open(tmp_path / "b" / "x-000.png").tobytes() == picture.crop((1, 2, 6, 4)).tobytes()
    assert Image.open(tmp_path / "_" / "x-001.png").size == (2, 2)
