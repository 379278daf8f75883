"""Label Studio's JSON: tasks made by its SDK from bccd, brush strokes that it encodes, and small files by hand."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.annotation_tools import run_tools
from helpers.label_studio import BOX, FRAME, region, task

from rfdetr_hf import class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import coco_segmentation, keypoint_schema

CONVERT = """
import sys
from label_studio_sdk.converter.imports.coco import convert_coco_to_ls
convert_coco_to_ls(sys.argv[1], sys.argv[2], image_root_url=sys.argv[3])
"""


def real_coco(root, name):
    """A COCO file's content, and the folder of its pictures."""
    if name == "bccd":
        folder = root / "bccd" / "valid"
        return json.loads((folder / "_annotations.coco.json").read_text()), folder
    split = load_detection_dataset(root / "coco128")["train"].select(range(40))
    images, boxes = [], []
    for row in split:
        file = row["file_name"].rsplit("/", 1)[-1]
        images.append({"id": row["image_id"], "file_name": file, "width": row["width"], "height": row["height"]})
        for label, box in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True):
            boxes.append({"id": len(boxes), "image_id": row["image_id"], "category_id": label, "bbox": box})
    categories = [{"id": label, "name": each} for label, each in enumerate(class_names(split))]
    content = {"images": images, "annotations": boxes, "categories": categories}
    return content, Path(split[0]["image"]["path"]).parent


@pytest.mark.parametrize("address", ["/data/local-files/?d=some/images/", "s3://bucket/some/where/"])
@pytest.mark.parametrize("name", ["bccd", "coco128"])
def test_tasks_made_by_the_sdk(data_root, tmp_path, name, address):
    content, source = real_coco(data_root, name)
    (tmp_path / "source").write_text(json.dumps(content))
    run_tools(CONVERT, tmp_path / "source", tmp_path / "valid.json", address)
    (tmp_path / "images").mkdir()
    for each in content["images"]:
        shutil.copy(source / each["file_name"], tmp_path / "images")
    names = {each["id"]: each["name"] for each in content["categories"]}
    table = [each for each in names.values() if each != "cells"]
    split = load_detection_dataset(tmp_path, class_names=table)["validation"]
    expected: dict[str, list] = {each["file_name"]: [] for each in content["images"]}
    files = {each["id"]: each["file_name"] for each in content["images"]}
    for each in content["annotations"]:
        if min(each["bbox"][2:]) > 0:  # one box of bccd has no width; it is dropped
            expected[files[each["image_id"]]].append((names[each["category_id"]], each["bbox"]))
    assert len(split) == len(expected)
    for row in split:
        found = [class_names(split)[label] for label in row["objects"]["category"]]
        theirs = expected[row["file_name"].rsplit("/", 1)[-1]]
        assert found == [name for name, _ in theirs]
        np.testing.assert_allclose(row["objects"]["bbox"], [box for _, box in theirs], atol=1e-9)


def test_rectangles_in_percents(studio, caplog):
    with caplog.at_level(logging.INFO):
        train = load_detection_dataset(studio(task(BOX)))["train"]
    assert train[0]["objects"]["bbox"] == [[16, 24, 32, 12]] and class_names(train) == ["cat"]
    assert [train[0]["width"], train[0]["height"]] == [64, 48] and "Label Studio, 1 split" in caplog.text
    assert len(load_detection_dataset(studio(task(BOX)) / "export.json")["train"]) == 1


def test_polygons(studio):
    shape = region("polygonlabels", points=[[10, 10], [50, 10], [50, 75]], closed=True)
    row = load_detection_dataset(studio(task(shape)), task="segmentation")["train"][0]
    corners = coco_segmentation(row["objects"]["segmentation"][0], 48, 64)[0]
    assert corners == pytest.approx([6.4, 4.8, 32, 4.8, 32, 36])
    assert row["objects"]["bbox"][0] == pytest.approx([6.4, 4.8, 25.6, 31.2])


def test_keypoints_belong_to_their_parent(studio, caplog):
    def point(label, x, y, parent, **value):
        return region("keypointlabels", label, f"p{label}", {"parentID": parent}, x=x, y=y, width=1, **value)

    root = studio(task(BOX, point("nose", 50, 60, "r1"), point("ear", 40, 55, "r1", hidden=True)))
    train = load_detection_dataset(root, task="keypoints")["train"]
    assert keypoint_schema(train).classes[0].names == ("ear", "nose")
    assert train[0]["objects"]["keypoints"][0] == pytest.approx([25.6, 26.4, 1, 32, 28.8, 2])
    root = studio(task(BOX, point("nose", 50, 60, None)))
    assert len(load_detection_dataset(root)["train"][0]["objects"]["bbox"]) == 1
    assert "left out 1 keypoints without a region" in caplog.text
    with pytest.raises(DetectionDataError, match="task 7: 1 keypoint belongs to no region"):
        load_detection_dataset(root, task="keypoints")


def test_annotators(studio, caplog):
    other = region(x=1, y=50, width=50, height=25)
    two = {"id": 8, "data": {"image": "/data/local-files/?d=images/a.jpg"}}
    cancelled = {"result": [other], "was_cancelled": True}
    both = [{"result": [BOX], "completed_by": {"email": "a@b.c"}}, {"result": [other], "completed_by": 4}]
    assert len(load_detection_dataset(studio({**two, "annotations": [cancelled, {"result": [BOX]}]}))["train"]) == 1
    with pytest.raises(DetectionDataError, match=r"task 8: has 2 annotations that differ \(by a@b.c, 4\)"):
        load_detection_dataset(studio({**two, "annotations": both}))
    both[1]["ground_truth"] = True
    objects = load_detection_dataset(studio({**two, "annotations": both}))["train"][0]["objects"]
    assert objects["bbox"][0][0] == pytest.approx(0.64)
    same = [{"result": [BOX]}, {"result": [{**BOX, "id": "other"}]}]
    assert len(load_detection_dataset(studio({**two, "annotations": same}))["train"][0]["objects"]["bbox"]) == 1
    # Nobody has looked at a task without annotation; a person has looked at one whose annotation is empty.
    none = [{**two, "annotations": [], "predictions": [{"result": [BOX]}]}, {**two, "annotations": [cancelled]}]
    empty = task(image="/data/upload/3/0123abcd-b%20c.jpg")
    train = load_detection_dataset(studio(task(BOX), *none, empty))["train"]
    assert [len(row["objects"]["bbox"]) for row in train] == [1, 0]
    assert "left out 2 tasks that nobody has annotated" in caplog.text
    with pytest.raises(DetectionDataError, match="no task has an annotation"):
        load_detection_dataset(studio(*none))


@pytest.mark.parametrize("address", [
    "/data/local-files/?d=images%2Fb%20c.jpg",
    "/data/upload/12/0123abcd-b c.jpg",
    "https://studio.example/data/upload/1/b%20c.jpg?token=1",
    "s3://bucket/images/b c.jpg",
    "/tasks/5/presign/?fileuri=czM6Ly9idWNrZXQvaW1hZ2VzL2IgYy5qcGc=",
    "b c.jpg",
])  # fmt: skip
def test_addresses_of_pictures(studio, address):
    assert load_detection_dataset(studio(task(BOX, image=address)))["train"][0]["image"]["path"].endswith("b c.jpg")


def test_shape_and_label_as_two_results(studio):
    shape = region("rectangle", None, x=25, y=50, width=50, height=25)
    label = {"id": "r1", "type": "labels", "value": {**shape["value"], "labels": ["dog"]}, **FRAME}
    choice = {"id": "c", "type": "choices", "value": {"choices": ["good"]}}
    train = load_detection_dataset(studio(task(shape, label, choice)))["train"]
    assert class_names(train) == ["dog"] and train[0]["objects"]["bbox"] == [[16, 24, 32, 12]]


def test_several_pictures_in_a_task(studio):
    second = {**region(name="r2", x=1, y=1, width=9, height=9), "to_name": "image2"}
    first, other = {**BOX, "to_name": "image"}, {**BOX, "to_name": "picture"}
    both = {"image": "/data/local-files/?d=images/a.jpg", "image2": "/data/local-files/?d=images/b c.jpg"}

    def tasks(*results):
        return [{**task(*each), "data": both} for each in results]

    with pytest.raises(DetectionDataError, match=r"task 7: its regions lie on 2 pictures \(image, image2\)"):
        load_detection_dataset(studio(*tasks([first, second])))
    train = load_detection_dataset(studio(*tasks([second])))["train"]
    assert train["file_name"] == ["b c.jpg"]
    assert load_detection_dataset(studio(*tasks([other])))["train"]["file_name"] == ["a.jpg"]
    with pytest.raises(DetectionDataError, match=r"task 7: field data: names 2 pictures \(image, image2\)"):
        load_detection_dataset(studio(*tasks([first], [second], [])))


@pytest.mark.parametrize("label", ["", None, " "])
def test_a_label_without_a_name_is_none(studio, label):
    with pytest.raises(DetectionDataError, match="task 7, region r1: has no label"):
        load_detection_dataset(studio(task({**BOX, "value": {**BOX["value"], "rectanglelabels": [label]}})))


def test_regions_without_an_id(studio, caplog):
    nose = region("keypointlabels", "nose", "p", x=50, y=60, width=1)
    boxes = [{key: value for key, value in BOX.items() if key != "id"}, {**BOX, "id": None}]
    boxes[1] = {**boxes[1], "value": {**BOX["value"], "x": 1}}
    objects = load_detection_dataset(studio(task(*boxes, nose)))["train"][0]["objects"]
    assert len(objects["bbox"]) == 2 and "left out 1 keypoints without a region" in caplog.text


def test_exports_that_no_split_has_are_counted(studio, caplog):
    root = studio(task(BOX))
    (root / "more").mkdir()
    (root / "more" / "project.JSON").write_text(json.dumps([task(BOX, image="b c.jpg")]))
    assert len(load_detection_dataset(root)["train"]) == 1
    assert "1 JSON file is in none of the splits ['train'] and left out, such as more/project.JSON" in caplog.text
    (root / "more" / "project.JSON").rename(root / "valid.JSON")
    (root / "export.json").rename(root / "train.json")
    assert list(load_detection_dataset(root)) == ["train", "validation"]
