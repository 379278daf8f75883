import json
import logging

import numpy as np
import pytest

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.formats.coco import find_coco, find_roboflow


def test_missing_images_are_named_and_unlisted_ones_counted(tmp_path, load_file, coco_content, write_image, caplog):
    write_image(tmp_path / "set" / "extra.png")
    with caplog.at_level(logging.WARNING):
        assert len(load_file(coco_content())) == 2
    assert "1 image file is in no annotation file" in caplog.text and "extra.png" in caplog.text
    (tmp_path / "set" / "b.jpg").unlink()
    with pytest.raises(DetectionDataError, match=r"image id 1: file_name 'b\.jpg' is missing"):
        load_detection_dataset(tmp_path / "set" / "train.json")


LAYOUTS = {
    "coco": ("annotations/instances_train2017.json", "train2017", "annotations/instances_val2017.json", "val2017"),
    "images folder": ("annotations/train.json", "images/train", "annotations/val.json", "images/val"),
    "one image folder": ("annotations/instances_train.json", "images", "annotations/instances_val.json", "images"),
    "files at the top": ("train.json", "train", "valid.json", "valid"),
    "split first": ("annotations_train.json", "train/images", "annotations_val.json", "val/images"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_coco(tmp_path, coco_content, write_coco, layout, caplog):
    train, train_images, val, val_images = LAYOUTS[layout]
    write_coco(tmp_path / train, coco_content(("a.jpg", "b.jpg")), tmp_path / train_images)
    write_coco(tmp_path / val, coco_content(("c.jpg", "d.jpg")), tmp_path / val_images)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    if "annotations/" in train:
        (tmp_path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    else:
        (tmp_path / "annotations").rmdir()
    splits = load_detection_dataset(tmp_path)
    assert list(splits) == ["train", "validation"]
    assert splits["train"][0]["image"]["path"] == str(tmp_path / train_images / "a.jpg")
    assert splits["validation"][1]["image"]["path"] == str(tmp_path / val_images / "d.jpg")
    assert "no annotation file" not in caplog.text


@pytest.mark.parametrize(("file", "names", "folder"), [
    ("result.json", ("images/a.jpg", "images/b.jpg"), ""),  # of Label Studio
    ("annotations/train.json", ("train/a.jpg", "train/b.jpg"), "images"),
    ("annotations/instances_train2017.json", ("train2017/a.jpg", "train2017/b.jpg"), ""),
])  # fmt: skip
def test_names_that_are_right_as_they_are_written_are_no_repair(
    tmp_path, coco_content, write_coco, file, names, folder, caplog
):
    write_coco(tmp_path / file, coco_content(names), tmp_path / folder)
    (row, _) = load_detection_dataset(tmp_path)["train"]
    assert row["image"]["path"] == str(tmp_path / folder / names[0]) and "without the leading" not in caplog.text


@pytest.mark.parametrize(("annotations", "pictures", "cut"), [
    ("zhiyuan_objv2_{}.json", "", 0), ("{0}/zhiyuan_objv2_{0}.json", "{}", 0),
    ("annotations/zhiyuan_objv2_{}.json", "{}", 2), ("annotations/zhiyuan_objv2_{}.json", "images/{}", 2),
])  # fmt: skip
def test_layouts_of_objects365(tmp_path, coco_content, write_coco, annotations, pictures, cut, caplog):
    """The names in its files begin with images/v1 or images/v2, which some copies of the pictures lack."""
    folders = "images/v1/patch0", "images/v2/patch16"
    names = {split: [f"{folder}/{split}_{i}.jpg" for i, folder in enumerate(folders)] for split in ("train", "val")}
    files = {split: annotations.format(split) for split in names}
    for split, listed in names.items():
        content = coco_content(tuple("/".join(name.split("/")[cut:]) for name in listed))
        file = write_coco(tmp_path / files[split], content, tmp_path / pictures.format(split))
        for image, name in zip(content["images"], listed, strict=True):
            image["file_name"] = name
        file.write_text(json.dumps(content))
    splits = load_detection_dataset(tmp_path, **({"data_files": files} if annotations.startswith("{") else {}))
    found = [image["path"].rsplit("/", 1)[-1] for split in splits.values() for image in split["image"]]
    assert found == ["train_0.jpg", "train_1.jpg", "val_0.jpg", "val_1.jpg"]
    assert ("found 2 images without the leading 'images/v1' or 'images/v2'" in caplog.text) == bool(cut)


def test_file_names_with_folders_and_files_given_by_hand(tmp_path, coco_content, write_coco):
    write_coco(tmp_path / "labels" / "x.json", coco_content(("p/q/a.jpg", "p/b.jpg")), tmp_path / "pixels")
    write_coco(tmp_path / "labels" / "y.json", coco_content(("a.jpg", "b.jpg")), tmp_path / "more")
    files = {"train": "labels/x.json", "validation": "labels/y.json"}
    splits = load_detection_dataset(tmp_path, data_files=files, image_dir={"train": "pixels", "validation": "more"})
    assert splits["train"][0]["image"]["path"] == str(tmp_path / "pixels/p/q/a.jpg")
    assert splits["validation"][0]["image"]["path"] == str(tmp_path / "more/a.jpg")
    with pytest.raises(DetectionDataError, match=r"none of its images .*elsewhere.*image_dir"):
        load_detection_dataset(tmp_path, data_files=files, image_dir="elsewhere")


def test_other_folders_are_no_coco(tmp_path, write_image):
    write_image(tmp_path / "train" / "a.jpg")
    (tmp_path / "package.json").write_text("{}")
    assert find_roboflow(tmp_path) == {} and find_coco(tmp_path) == {}


def test_bccd_counts(data_root):
    splits = load_detection_dataset(data_root / "bccd")
    assert class_names(splits) == ["Platelets", "RBC", "WBC"] and category_ids(splits) == [1, 2, 3]
    counts = {
        name: np.bincount(np.concatenate([o["category"] for o in split["objects"]])).tolist()
        for name, split in splits.items()
    }
    assert counts == {"train": [209, 2381, 214], "validation": [83, 967, 87], "test": [69, 805, 71]}
    assert {name: len(split) for name, split in splits.items()} == {"train": 205, "validation": 87, "test": 72}


def test_keypoint_file_loads_as_boxes(data_root):
    splits = load_detection_dataset(data_root / "coco_person")
    assert list(splits) == ["train"] and len(splits["train"]) == 4
    assert sum(len(o["id"]) for o in splits["train"]["objects"]) == 14
    assert class_names(splits) == ["person"]


def test_annotation_files_that_no_split_has_are_counted(tmp_path, coco_content, write_coco, caplog):
    write_coco(tmp_path / "annotations" / "instances_train.json", coco_content(), tmp_path / "train")
    for name in ("annotations/captions_train.json", "annotations/more/instances_train.json", "custom.json"):
        write_coco(tmp_path / name, coco_content(), tmp_path / "train")
    assert list(load_detection_dataset(tmp_path)) == ["train"]
    listed = "such as annotations/more/instances_train.json, custom.json"
    assert f"2 JSON files are in none of the splits ['train'] and left out, {listed}" in caplog.text
