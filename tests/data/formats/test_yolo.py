import logging
import os
import sys

import numpy as np
import pytest

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.keypoints import COCO_SIGMAS
from rfdetr_hf.data.schema import decode_image, keypoint_schema


def test_ultralytics_layout(write_yolo, caplog):
    images = {
        "images/train/a.jpg": "1 0.5 0.5 0.25 0.5\n\n0 0.125 0.25 0.25 0.5\n",
        "images/train/sub/b.jpg": "",
        "images/train/c.jpg": None,
        "images/val/d.jpg": "0 0.5 0.5 1 1",
    }
    with caplog.at_level(logging.INFO):
        splits = load_detection_dataset(write_yolo(images, path=".", val="images/val"))
    assert list(splits) == ["train", "validation"] and class_names(splits) == ["cat", "dog"]
    train = splits["train"]
    assert train["file_name"] == ["images/train/a.jpg", "images/train/c.jpg", "images/train/sub/b.jpg"]
    assert train["image_id"] == [0, 1, 2] and train["width"] == [64] * 3 and train["height"] == [48] * 3
    assert train[0]["objects"] == {
        "id": [1, 2],
        "bbox": [[24, 12, 16, 24], [0, 0, 16, 24]],
        "category": [1, 0],
        "area": [384, 384],
        "iscrowd": [False, False],
    }
    assert [len(objects["id"]) for objects in train["objects"]] == [2, 0, 0]
    assert decode_image(train[2]).size == (64, 48)
    assert "3 images, 1 without a label file (taken as images without objects), 1 with an empty one" in caplog.text


def test_roboflow_layout_whose_yaml_points_a_folder_too_high(write_yolo):
    images = {"train/images/a.jpg": "0 0.5 0.5 0.5 0.5", "valid/images/b.jpg": "1 0.5 0.5 0.5 0.5"}
    root = write_yolo(images, train="../train/images", val="../valid/images", nc=2)
    splits = load_detection_dataset(root)
    assert {name: split["objects"][0]["category"] for name, split in splits.items()} == {
        "train": [0],
        "validation": [1],
    }


def test_lists_of_files(write_yolo):
    images = {"images/train/a.jpg": "0 0.5 0.5 0.5 0.5", "images/train/b.jpg": "1 0.5 0.5 0.5 0.5"}
    root = write_yolo(images, train=["first.txt", "second.txt"])
    (root / "first.txt").write_text("./images/train/b.jpg\n\n")
    (root / "second.txt").write_text(f"{root}/images/train/a.jpg\n")
    assert load_detection_dataset(root)["train"]["file_name"] == ["images/train/b.jpg", "images/train/a.jpg"]
    (root / "second.txt").write_text("images/train/gone.jpg")
    with pytest.raises(DetectionDataError, match=r"second.txt:1: 'images/train/gone.jpg' is no image file"):
        load_detection_dataset(root)


def test_lists_reach_outside_only_if_the_yaml_says_so(write_yolo, tmp_path, write_image):
    root = write_yolo({"images/train/a.jpg": "0 0.5 0.5 0.5 0.5"}, train="list.txt")
    write_image(tmp_path / "elsewhere" / "images" / "x.jpg")
    (tmp_path / "elsewhere" / "labels").mkdir()
    (tmp_path / "elsewhere" / "labels" / "x.txt").write_text("0 0.5 0.5 0.5 0.5")
    for entry in ("../elsewhere/images/x.jpg", str(tmp_path / "elsewhere" / "images" / "x.jpg")):
        (root / "list.txt").write_text(entry)
        with pytest.raises(DetectionDataError, match=r"list.txt:1: .* is outside of .*\n.*set field path"):
            load_detection_dataset(root)
    (root / "data.yaml").write_text(f"{{names: [cat], train: {tmp_path}/elsewhere/images}}")
    assert len(load_detection_dataset(root)["train"][0]["objects"]["id"]) == 1
    with pytest.raises(DetectionDataError, match="label_dir='../labels'"):
        load_detection_dataset(root, label_dir="../labels")


def test_folders_above_the_data_set_that_are_called_images(write_yolo):
    root = write_yolo({"train/a.jpg": "0 0.5 0.5 0.5 0.5"}, folder="images/set", train="train")
    assert len(load_detection_dataset(root)["train"][0]["objects"]["id"]) == 1, "labels beside the image"


def test_label_files_without_an_image_are_told(write_yolo, caplog):
    root = write_yolo({"images/train/a.jpg": "0 0.5 0.5 0.5 0.5"})
    (root / "labels/train/gone.txt").write_text("0 0.5 0.5 0.5 0.5")
    load_detection_dataset(root)
    assert "1 label file is left out, without an image, such as" in caplog.text and "gone.txt" in caplog.text
    for folder in ("more", "val"):  # a split's labels are its own
        (root / "labels/train" / folder).mkdir()
        (root / "labels/train" / folder / "gone.txt").write_text("0 0.5 0.5 0.5 0.5")
    load_detection_dataset(root)
    assert "2 label files are left out, without an image, such as" in caplog.text


def test_images_without_a_label_file_may_be_left_out(write_yolo):
    images = {"images/train/a.jpg": None, "images/train/b.jpg": ""}
    train = load_detection_dataset(write_yolo(images, skip_if_label_file_missing=True))["train"]
    assert train["file_name"] == ["images/train/b.jpg"]


def test_seventeen_keypoints_of_persons_are_cocos(write_yolo):
    images = {"images/train/a.jpg": "0 0.5 0.5 0.5 0.5 " + "0.5 0.5 2 " * 17}
    train = load_detection_dataset(write_yolo(images, names=["person"], kpt_shape=[17, 3]), task="keypoints")["train"]
    schema = keypoint_schema(train).classes[0]
    assert schema.names[9] == "left_wrist" and schema.sigmas == COCO_SIGMAS and (9, 10) in schema.flip_pairs


def test_options_of_other_sources_are_refused(write_yolo):
    root = write_yolo({"images/train/a.jpg": ""})
    with pytest.raises(TypeError, match="revision"):
        load_detection_dataset(root, revision="main")
    with pytest.raises(TypeError, match="image_dir is an option of COCO"):
        load_detection_dataset(root, image_dir="images")
    with pytest.raises(TypeError, match="label_dir is an option of YOLO"):
        load_detection_dataset("synthetic-shapes", label_dir="labels")
    with pytest.raises(ValueError, match="task='masks'"):
        load_detection_dataset(root, task="masks")


def count_rows(folder, names):
    """Rows per class id, counted without the reader."""
    rows = [line.split()[0] for name in names for line in (folder / name).read_text().splitlines() if line.strip()]
    return {int(i): rows.count(i) for i in set(rows)}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_coco128(data_root, task):
    root = data_root / "coco128"
    file, folder = ("data.yaml", "labels") if task == "detection" else ("data_seg.yaml", "labels_seg")
    splits = load_detection_dataset(root / file, task=task, label_dir=folder)
    for split, theirs in (("train", "train2017"), ("validation", "val2017")):
        images = sorted((root / "images" / theirs).glob("*.jpg"))
        names = [f"{path.stem}.txt" for path in images if (root / folder / theirs / f"{path.stem}.txt").exists()]
        ids = np.array(category_ids(splits))
        found = [int(ids[label]) for objects in splits[split]["objects"] for label in objects["category"]]
        assert {i: found.count(i) for i in set(found)} == count_rows(root / folder / theirs, names)
        assert len(splits[split]) == (128 if task == "detection" else len(names))
    table = dict(zip(class_names(splits), ids.tolist(), strict=True))
    assert table["toothbrush"] == (79 if task == "detection" else 90)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_an_error_that_shows_it(write_yolo):
    root = write_yolo({"images/train/a.jpg": "0 0.5 0.5 0.5 0.5", "images/train/b.jpg": ""})
    picture = next(root.rglob("b.jpg"))
    picture.rename(picture.with_name(os.fsdecode(b"caf\xe9.jpg")))
    with pytest.raises(DetectionDataError, match=r"caf.*\.jpg.*the name is not UTF-8; rename the file"):
        load_detection_dataset(root)
