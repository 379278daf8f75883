"""Classes, labels and ids of annotations as every reader hands them on."""

import logging

import pytest

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError


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
