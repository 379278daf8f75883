import json
import logging

import numpy as np
import pytest

from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.formats.coco import find_coco, find_roboflow
from rfdetr_hf.data.schema import category_ids, class_names, decode_image
from rfdetr_hf.data.sources import load_detection_dataset


@pytest.fixture
def load_file(tmp_path, write_coco):
    """Load one COCO file beside its images, and return its only split."""

    def load(content, **options):
        return load_detection_dataset(write_coco(tmp_path / "set" / "train.json", content), **options)["train"]

    return load


def test_rows_hold_what_the_file_says(load_file, coco_content):
    content = coco_content()
    content["annotations"][2]["iscrowd"] = 1
    del content["annotations"][0]["area"], content["annotations"][2]["iscrowd"]
    content["annotations"][1]["iscrowd"] = True
    rows = load_file(content)
    assert rows["image_id"] == [0, 1] and rows["width"] == [64, 64] and rows["height"] == [48, 48]
    assert rows["file_name"] == ["a.jpg", "b.jpg"]
    assert rows[0]["objects"] == {
        "id": [10, 11],
        "bbox": [[4, 5, 20, 10], [1.25, 2.5, 30.1, 20.2]],
        "category": [1, 0],
        "area": [200, 50.5],
        "iscrowd": [False, True],
    }
    assert class_names(rows) == ["cat", "dog"] and category_ids(rows) == [3, 7]
    assert decode_image(rows[1]).size == (64, 48)
    assert rows[1]["image"]["bytes"] is None, "pixels stay in their files"


def test_boxes_in_any_order_go_to_their_images_and_empty_images_stay(load_file, coco_content):
    content = coco_content(("a.jpg", "empty.jpg", "b.jpg"))
    content["annotations"] = [
        {"id": i, "image_id": image, "category_id": 3, "bbox": [i, 0, 5, 5]} for i, image in enumerate([2, 0, 2, 0, 2])
    ]
    assert [objects["id"] for objects in load_file(content)["objects"]] == [[1, 3], [], [0, 2, 4]]


def test_boxes_are_clamped_dropped_and_counted(load_file, coco_content, caplog):
    content = coco_content()
    boxes = {
        1: [-5, -5, 20, 20],  # over the corner
        2: [60, 40, 20, 20],
        3: [5, 5, 0, 10],  # degenerate
        4: [5, 5, 10, -1],
        5: [64, 0, 10, 10],  # outside
        6: [0, -20, 10, 20],
        7: [0.1, 0.2, 63.9000001, 40],  # over by rounding
    }
    content["annotations"] = [
        {"id": i, "image_id": 0, "category_id": 3, "bbox": box, "area": 7.0 if i == 2 else None}
        for i, box in boxes.items()
    ]
    with caplog.at_level(logging.WARNING):
        objects = load_file(content)[0]["objects"]
    assert objects["id"] == [1, 2, 7]
    assert objects["bbox"][:2] == [[0, 0, 15, 15], [60, 40, 4, 8]]
    assert objects["area"][:2] == [225, 7], "a given area stays, a missing one is that of the clamped box"
    assert sum(objects["bbox"][2][::2]) <= 64
    messages = [record.getMessage() for record in caplog.records]
    assert any("dropped 1 box (no width or no height): annotation id 3 (image id 0)" in m for m in messages)
    assert any("dropped 1 box (a negative width or height): annotation id 4 (image id 0)" in m for m in messages)
    assert any("dropped 2 boxes (lie outside their image): annotation id 5" in m for m in messages)
    assert any("clamped 2 boxes" in m and "annotation id 7" not in m for m in messages)


def spoil(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


NAN = float("nan")
BROKEN = {
    "NaN box": (
        ("annotations", 0, "bbox"),
        [NAN, 1, 2, 3],
        r"annotation id 10 \(image id 0\): field bbox .*not finite",
    ),
    "infinite box": (("annotations", 0, "bbox"), [0, 1, float("inf"), 3], "annotation id 10.*not finite"),
    "three numbers": (("annotations", 1, "bbox"), [1, 2, 3], r"annotation id 11: field bbox is \[1, 2, 3\], not four"),
    "text in a box": (("annotations", 1, "bbox"), [1, 2, "3", 4], "annotation id 11: field bbox"),
    "no box": (("annotations", 1, "bbox"), None, "annotation id 11: field bbox is None"),
    "area text": (("annotations", 1, "area"), "big", "annotation id 11: field area is 'big'"),
    "negative area": (("annotations", 1, "area"), -2, "annotation id 11.*field area is -2"),
    "unknown image": (("annotations", 2, "image_id"), 99, "annotation id 12: field image_id is 99"),
    "unknown category": (("annotations", 2, "category_id"), 4, "annotation id 12.*field category_id is 4.*7: 'dog'"),
    "category text": (("annotations", 2, "category_id"), "dog", "annotation id 12: field category_id is 'dog'"),
    "image id twice": (
        ("images",),
        [
            {"id": i, "file_name": name, "width": 64, "height": 48}
            for i, name in ((0, "a.jpg"), (0, "b.jpg"), (1, "b.jpg"))
        ],
        "image id 0: used by 2 images",
    ),
    "image id text": (("images", 1, "id"), "0001", "image id 0001: field id is '0001', not an integer"),
    "size zero": (("images", 1, "width"), 0, r"image id 1: fields width and height are \[0, 48\]"),
    "no file name": (("images", 1, "file_name"), "", "image id 1: field file_name"),
    "names shared": (("categories", 1, "name"), "dog", "'dog' belongs to several categories"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_annotations_are_errors_with_file_and_id(tmp_path, write_image, coco_content, fault):
    path, value, message = BROKEN[fault]
    content = coco_content()
    for image in content["images"]:
        write_image(tmp_path / image["file_name"])
    spoil(content, path, value)
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DetectionDataError, match=message) as error:
        load_detection_dataset(tmp_path / "train.json")
    assert str(tmp_path / "train.json") in str(error.value)


def test_several_faults_come_in_one_message(tmp_path, load_file, coco_content):
    content = coco_content()
    content["annotations"][0]["bbox"] = [NAN, 0, 1, 1]
    content["annotations"][1]["category_id"] = 1
    with pytest.raises(DetectionDataError, match="2 problems") as error:
        load_file(content)
    assert "annotation id 10" in str(error.value) and "annotation id 11" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "'images' is missing"),
        ('{"images": [], "annotations": {}}', "'annotations'"),
    ],
)
def test_files_that_are_no_coco_files(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(tmp_path / "train.json")


def test_missing_images_are_named_and_unlisted_ones_counted(tmp_path, load_file, coco_content, write_image, caplog):
    write_image(tmp_path / "set" / "extra.png")
    with caplog.at_level(logging.WARNING):
        assert len(load_file(coco_content())) == 2
    assert "1 image files are in no annotation file" in caplog.text and "extra.png" in caplog.text
    (tmp_path / "set" / "b.jpg").unlink()
    with pytest.raises(DetectionDataError, match=r"image id 1: file_name 'b\.jpg' is missing"):
        load_detection_dataset(tmp_path / "set" / "train.json")


def test_sizes_that_the_file_lacks_come_from_the_images(load_file, coco_content):
    content = coco_content()
    for image in content["images"]:
        del image["width"], image["height"]
    rows = load_file(content)
    assert rows["width"] == [64, 64] and rows["height"] == [48, 48]


def test_annotation_ids_that_are_missing_or_repeated_are_made_distinct(load_file, coco_content, caplog):
    content = coco_content()
    for annotation in content["annotations"]:
        del annotation["id"]
    assert sum((o["id"] for o in load_file(content)["objects"]), []) == [0, 1, 2]
    for annotation in content["annotations"]:
        annotation["id"] = 5
    assert sum((o["id"] for o in load_file(content)["objects"]), []) == [1, 2, 3]
    assert "not distinct" in caplog.text


def test_only_grouping_categories_without_annotations_are_dropped(tmp_path, coco_content, write_coco, caplog):
    phantom = {"id": 0, "name": "animal", "supercategory": "none"}
    unused = {"id": 9, "name": "bird", "supercategory": "animal"}
    content = coco_content()
    content["categories"] += [phantom, unused]
    for split in ("train", "valid"):
        write_coco(tmp_path / split / "_annotations.coco.json", content)
    with caplog.at_level(logging.INFO):
        splits = load_detection_dataset(tmp_path)
    assert "categories that only group others are no classes: 'animal' (id 0)" in caplog.text
    assert class_names(splits["train"]) == class_names(splits["validation"]) == ["cat", "dog", "bird"]
    assert category_ids(splits["validation"]) == [3, 7, 9]
    content["annotations"][0]["category_id"] = 0
    write_coco(tmp_path / "valid" / "_annotations.coco.json", content)
    splits = load_detection_dataset(tmp_path)
    assert class_names(splits["train"]) == ["animal", "cat", "dog", "bird"], (
        "one annotation in any split makes it a class"
    )


def test_a_category_that_is_its_own_supercategory_is_a_class(load_file, coco_content):
    content = coco_content()
    content["categories"].append({"id": 1, "name": "person", "supercategory": "person"})
    content["categories"].append({"id": 2, "name": "thing", "supercategory": None})
    assert class_names(load_file(content)) == ["person", "thing", "cat", "dog"]


def test_validation_uses_the_training_table(tmp_path, coco_content, write_coco):
    write_coco(tmp_path / "train" / "_annotations.coco.json", coco_content())
    other = coco_content()
    other["categories"].append({"id": 8, "name": "bird", "supercategory": "animal"})
    file = write_coco(tmp_path / "valid" / "_annotations.coco.json", other)
    assert class_names(load_detection_dataset(tmp_path)) == ["cat", "dog"]
    other["annotations"][2]["category_id"] = 8
    write_coco(file, other)
    with pytest.raises(DetectionDataError, match=r"annotation id 12 \(image id 1\): field category_id is 8") as error:
        load_detection_dataset(tmp_path)
    assert str(file) in str(error.value)
    other["annotations"][2]["category_id"] = 7
    other["categories"][0]["name"] = "wolf"
    write_coco(file, other)
    with pytest.raises(DetectionDataError, match="category id 7: is named 'wolf' here but 'dog'"):
        load_detection_dataset(tmp_path)


def test_class_names_choose_the_label_order(load_file, coco_content):
    rows = load_file(coco_content(), class_names=["dog", "cat"])
    assert rows[0]["objects"]["category"] == [0, 1] and category_ids(rows) == [7, 3]
    rows = load_file(coco_content(), class_names=["dog", "bird", "cat"])
    assert rows[0]["objects"]["category"] == [0, 2] and category_ids(rows) == [7, 8, 3], "no object is a bird"
    with pytest.raises(DetectionDataError, match="category_id is 3"):
        load_file(coco_content(), class_names=["dog"])


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
    assert f"2 JSON files are in none of the splits ['train'] and are left out, {listed}" in caplog.text


@pytest.mark.parametrize("name", ["", "  ", None, True, []])
def test_categories_without_a_name_are_errors(load_file, coco_content, name):
    content = coco_content()
    content["categories"][1]["name"] = name
    with pytest.raises(
        DetectionDataError, match=r"category id 3: field name is .*, no name(.|\n)*give each category a name"
    ):
        load_file(content)


def test_categories_without_the_field_name_are_called_by_their_ids(load_file, coco_content, caplog):
    content = coco_content()
    del content["categories"][1]["name"]
    assert class_names(load_file(content)) == ["3", "dog"]
    assert "categories without a name are called by their ids: [3]" in caplog.text
