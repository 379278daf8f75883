"""The example files of docs/guides/data.md are read as the page says."""

import re
from pathlib import Path

import pytest

from rfdetr_hf import class_names, load_detection_dataset
from rfdetr_hf.data.schema import coco_segmentation, keypoint_schema

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "data.md"
FILE = re.compile(r"^<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)^```$", re.S | re.M)


@pytest.fixture
def load(tmp_path, write_image):
    for match in FILE.finditer(PAGE.read_text(encoding="utf-8")):
        (tmp_path / match["name"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / match["name"]).write_text(match["text"], encoding="utf-8")
    for folder in ("segmentation/train", "keypoints/train"):
        write_image(tmp_path / folder / "a.jpg")
    for folder in ("yolo-segmentation", "yolo-keypoints"):
        for split in ("train", "val"):
            write_image(tmp_path / folder / "images" / split / "a.jpg")
        text = (tmp_path / folder / "labels" / "train" / "a.txt").read_text()
        (tmp_path / folder / "labels" / "val").mkdir()
        (tmp_path / folder / "labels" / "val" / "a.txt").write_text(text)
    return lambda name, task: load_detection_dataset(tmp_path / name, task=task)["train"]


def test_coco_masks(load):
    objects = load("segmentation", "segmentation")["objects"][0]
    polygon, crowd = (coco_segmentation(mask, 48, 64) for mask in objects["segmentation"])
    assert polygon == [[8, 8, 28, 8, 28, 18, 8, 18]] and crowd["size"] == [48, 64]
    assert objects["iscrowd"] == [False, True]


def test_yolo_masks(load):
    train = load("yolo-segmentation", "segmentation")
    assert class_names(train) == ["leaf", "stem"] and train["objects"][0]["category"] == [0, 1]
    corners = coco_segmentation(train["objects"][0]["segmentation"][0], 48, 64)[0]
    assert corners == pytest.approx([6.4, 9.6, 25.6, 9.6, 25.6, 28.8])


@pytest.mark.parametrize(("folder", "skeleton"), [("keypoints", ((0, 1), (0, 2))), ("yolo-keypoints", ())])
def test_keypoints(load, folder, skeleton):
    train = load(folder, "keypoints")
    bird = keypoint_schema(train).classes[0]
    assert bird.names == ("beak", "left_wing", "right_wing") and bird.skeleton == skeleton
    assert bird.flip_pairs == ((1, 2),)
    points = train["objects"][0]["keypoints"][0]
    assert points[2::3] == [2, 1, 0] and points[6:8] == [0, 0]
