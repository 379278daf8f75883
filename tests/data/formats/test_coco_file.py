"""One COCO annotation file: what is read, repaired, counted and refused."""

import json

import pytest

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image


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
