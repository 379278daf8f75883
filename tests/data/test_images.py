"""A picture is the one that is listed."""

import json
import logging
import os
import unicodedata

import pytest

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.images import ImageFolder


def listed(root, write_image, files, names, boxes=None, split="train"):
    """A Roboflow export with these files on disk and these names in its list; one box an image, or those given."""
    for file in files:
        write_image(root / split / file)
    content = {
        "images": [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": (boxes or {}).get(i, [8, 8, 20, 16])}
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def paths(dataset):
    return [os.path.basename(image["path"]) for image in dataset["image"]]


def test_a_base_name_in_another_folder_is_not_the_picture(tmp_path, write_image):
    root = listed(tmp_path, write_image, ["cam2/0001.jpg"], ["cam1/0001.jpg", "cam2/0001.jpg"])
    with pytest.raises(DetectionDataError, match=r"cam1/0001.jpg.*missing.*another file of this name is cam2/0001.jpg"):
        load_detection_dataset(root)


@pytest.mark.parametrize("name", ["/elsewhere/a.jpg", "C:\\x\\a.jpg", "sub/a.jpg", "http://x.org/y/a.jpg"])
def test_leading_folders_count_unless_all_names_share_them(tmp_path, write_image, name):
    root = listed(tmp_path / "mixed", write_image, ["a.jpg", "b.jpg"], [name, "b.jpg"])
    with pytest.raises(DetectionDataError, match="is missing in"):
        load_detection_dataset(root)
    root = listed(tmp_path / "shared", write_image, ["a.jpg", "b.jpg"], [name, name.replace("a.jpg", "b.jpg")])
    assert paths(load_detection_dataset(root)["train"]) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("names", "files"), [
    (["x/one/cam/1.jpg", "x/two/cam/1.jpg"], ["cam/1.jpg"]),  # one file cannot be both
    (["one/cam/1.jpg", "two/cam/2.jpg", "3.jpg"], ["cam/1.jpg", "cam/2.jpg", "3.jpg"]),
    (["one/1.jpg", "two/2.jpg"], ["1.jpg", "2.jpg"]),
])  # fmt: skip
def test_leading_folders_that_differ_count_where_little_else_would(tmp_path, write_image, names, files):
    with pytest.raises(DetectionDataError, match=r"is missing in|none of its images"):
        load_detection_dataset(listed(tmp_path, write_image, files, names))


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("a.jpg", "a.JPG", "suffix in another case"),
        ("my%20photo.jpg", "my photo.jpg", "%20"),
        ("sub\\a.jpg", "sub/a.jpg", "backslashes"),
        (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg"), "accents"),
        ("a.jpg\n", "a.jpg", "blanks"),
    ],
)
def test_what_tools_change_in_names_is_repaired_and_named(tmp_path, write_image, name, file, reason, caplog):
    root = listed(tmp_path, write_image, [file, "b.jpg"], [name, "b.jpg"])
    with caplog.at_level(logging.INFO):
        train = load_detection_dataset(root)["train"]
    assert paths(train)[0] == os.path.basename(file) and "found 1 image" in caplog.text and reason in caplog.text


@pytest.mark.parametrize(("name", "files"), [("a.jpg", ["a.png"]), ("A.jpg", ["a.jpg"]), ("a.jpg", ["a.JPG", "a.Jpg"])])
def test_other_or_several_files_are_no_repair(tmp_path, write_image, name, files):
    root = listed(tmp_path, write_image, [*files, "b.jpg"], [name, "b.jpg"])
    with pytest.raises(DetectionDataError, match="is missing in"):
        load_detection_dataset(root)


def test_validation_pictures_are_not_looked_for_among_training_pictures(tmp_path, coco_content, write_coco):
    for split, names in {"train": ("train/a.jpg", "train/b.jpg"), "val": ("val/a.jpg", "val/b.jpg")}.items():
        write_coco(tmp_path / f"annotations/{split}.json", coco_content(names), tmp_path / "images")
    (tmp_path / "images/val/a.jpg").unlink()
    with pytest.raises(DetectionDataError, match=r"val.json.*\n.*'val/a.jpg' is missing"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize(("name", "fault"), [
    ("/x/val_pictures/{}.jpg", None), ("C:\\x\\val_pictures\\{}.jpg", None),
    ("val/{}.jpg", "val/0.jpg and the 0.jpg of another split both lead to .*images/0.jpg"),
    ("/x/{}.jpg", "one of its images may be .*images/0.jpg or .*data/0.jpg; name the folder with image_dir"),
])  # fmt: skip
def test_the_folder_of_the_longest_name_counts(tmp_path, coco_content, write_coco, write_image, name, fault, caplog):
    """A name without its leading folders says less, and may be that of another split's picture."""
    write_coco(tmp_path / "annotations/train.json", coco_content(("0.jpg", "1.jpg")), tmp_path / "images")
    content = coco_content(("val_pictures/0.jpg", "val_pictures/1.jpg"))
    file = write_coco(tmp_path / "annotations/val.json", content, tmp_path)
    for i, image in enumerate(content["images"]):
        image["file_name"] = name.format(i)
        write_image(tmp_path / f"{'data' if name.startswith('/x/{') else 'other'}/{i}.jpg")
    file.write_text(json.dumps(content))
    if fault:
        with pytest.raises(DetectionDataError, match=fault):
            load_detection_dataset(tmp_path)
        return
    validation = load_detection_dataset(tmp_path)["validation"]
    assert [image["path"] for image in validation["image"]] == [
        str(tmp_path / f"val_pictures/{i}.jpg") for i in range(2)
    ]
    assert "2 image files are in no annotation file and left out, such as other/0.jpg" in caplog.text


def test_a_file_under_two_ids_is_an_error_unless_the_entries_agree(tmp_path, write_image, caplog):
    root = listed(tmp_path / "other", write_image, ["a.jpg"], ["a.jpg", "a.jpg"], {1: [30, 20, 20, 20]})
    with pytest.raises(DetectionDataError, match="a.jpg is listed as image id 0 and as image id 1"):
        load_detection_dataset(root)
    root = listed(tmp_path / "same", write_image, ["a.jpg", "b.jpg"], ["a.jpg", "b.jpg", "./a.jpg"])
    train = load_detection_dataset(root)["train"]
    assert train["image_id"] == [0, 1] and "dropped 1 entry" in caplog.text


@pytest.mark.parametrize(("where", "field", "value", "fault"), [
    ("annotations", "iscrowd", 1, "masks, keypoints or crowds"),
    ("annotations", "segmentation", [[1, 1, 9, 1, 9, 8]], "masks, keypoints or crowds"),
    ("images", "neg_category_ids", [3], "labelled classes"),
    ("images", "license", 9, None),
])  # fmt: skip
def test_entries_of_a_file_agree_in_all_that_is_taught(tmp_path, write_coco, where, field, value, fault):
    content = {
        "images": [{"id": i, "file_name": "a.jpg", "width": 64, "height": 48} for i in range(2)],
        "annotations": [{"id": i, "image_id": i, "category_id": 7, "bbox": [1, 1, 9, 9], "iscrowd": 0,
                         "segmentation": [[1, 1, 10, 1, 10, 10]]} for i in range(2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }  # fmt: skip
    content[where][1][field] = value
    write_coco(tmp_path / "train/_annotations.coco.json", content)
    if fault is None:
        assert len(load_detection_dataset(tmp_path, task="segmentation")["train"]) == 1
        return
    with pytest.raises(DetectionDataError, match=f"a.jpg is listed as image id 0 and .* 1, with different {fault}"):
        load_detection_dataset(tmp_path, task="segmentation")


@pytest.mark.parametrize("other", [None, "boxes", "categories", "masks"])
def test_a_file_in_two_splits(tmp_path, coco_content, write_coco, other, caplog):
    content = coco_content()
    for each in content["annotations"]:
        left, top, width, height = each["bbox"]
        right, bottom = left + width, top + height
        each["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    write_coco(tmp_path / "annotations/train.json", content, tmp_path / "images")
    changed = content["annotations"][0]
    if other == "boxes":
        changed["bbox"] = [1, 1, 5, 5]
    if other == "categories":
        changed["category_id"] = next(c["id"] for c in content["categories"] if c["id"] != changed["category_id"])
    if other == "masks":
        changed["segmentation"] = [changed["segmentation"][0][:6]]
    write_coco(tmp_path / "annotations/val.json", content, tmp_path / "images")
    if other is None:
        load_detection_dataset(tmp_path, task="segmentation")
        assert "2 images are in the splits train and validation" in caplog.text
    else:
        with pytest.raises(DetectionDataError, match=f"in the splits train and validation with different {other}"):
            load_detection_dataset(tmp_path, task="segmentation" if other == "masks" else "detection")


def test_an_unreadable_folder_is_named(tmp_path, write_image, monkeypatch):
    root = listed(tmp_path, write_image, ["a.jpg", "sub/b.jpg"], ["a.jpg"])
    real = os.scandir

    def refuse(path):
        if os.path.basename(os.fspath(path)) == "sub":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DetectionDataError, match="sub: cannot be read"):
        load_detection_dataset(root)


@pytest.mark.timeout(60)
def test_links_that_lead_in_circles_end(tmp_path, write_image):
    root = listed(tmp_path, write_image, ["a.jpg"], ["a.jpg"])
    (root / "train/loop").symlink_to(root / "train", target_is_directory=True)
    (root / "train/up").symlink_to(root, target_is_directory=True)
    assert len(load_detection_dataset(root)["train"]) == 1


def test_image_folder_finds_names_of_any_style(tmp_path, write_image):
    for name in ("train/a.jpg", "train/b.PNG", "val/b.PNG", "sub/deep/é c.webp"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    folder = ImageFolder(tmp_path)
    assert len(folder.paths) == 4
    for name in (
        "train/a.jpg",
        "./train/a.jpg",
        str(tmp_path / "train/a.jpg"),
    ):
        assert folder.find(name) == str(tmp_path / "train/a.jpg"), name
    assert folder.resolve(["train\\a.jpg", "train/b.png"]).missing == 0
    assert folder.resolve(["/elsewhere/data/train/a.jpg", "/elsewhere/data/val/b.PNG"]).missing == 0
    for name in ("a.jpg", "é c.webp", "b.PNG", "/elsewhere/data/a.jpg"):
        assert folder.find(name) is None and folder.resolve([name, "train/b.PNG"]).missing == 1, name
    assert ImageFolder(tmp_path / "val").find("../train/a.jpg") is not None
    assert folder.unlisted([folder.find("train/a.jpg")]) == ["sub/deep/é c.webp", "train/b.PNG", "val/b.PNG"]
