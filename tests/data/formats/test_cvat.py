"""CVAT's XML files: exports by datumaro against what it read, and small ones by hand."""

import json
import logging
import shutil

import numpy as np
import pytest
from helpers.annotation_tools import run_tools

from rfdetr_hf import class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.masks import rasterise
from rfdetr_hf.data.schema import coco_segmentation, keypoint_schema

EXPORT = """
import sys
from datumaro.components.dataset import Dataset
Dataset.import_from(sys.argv[1], sys.argv[2]).export(sys.argv[3], "cvat", save_media=True)
"""
LABELS = "<label><name>dog</name></label><label><name>cat</name></label>"
BOX = '<box label="cat" occluded="0" xtl="4.00" ytl="6.50" xbr="30.00" ybr="40.00" z_order="0"/>'


def document(*images, labels=LABELS):
    """The text of a file; an image is its attributes and its shapes."""
    inside = "".join(f"<image {attributes}>{shapes}</image>" for attributes, shapes in images)
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{inside}</annotations>'


def image(shapes, name="a.jpg", more=""):
    return f'id="0" name="{name}" width="64" height="48"{more}', shapes


@pytest.fixture
def cvat(tmp_path, write_image):
    """Write an export of pictures a, b, c: `cvat(text)`."""

    def write(text):
        for name in "abc":
            write_image(tmp_path / "images" / f"{name}.jpg")
        (tmp_path / "annotations.xml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_exports_of_data_root(data_root, tmp_path, task):
    # Of bccd boxes, of coco128 boxes and polygons: pictures, classes and numbers as the source of the export has them.
    if task == "detection":
        kind, source = "coco", tmp_path / "coco"
        for split in ("train", "valid"):
            content = json.loads((data_root / "bccd" / split / "_annotations.coco.json").read_text())
            content["images"] = content["images"][:20]
            kept = {each["id"] for each in content["images"]}
            content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
            (source / "images" / split).mkdir(parents=True)
            (source / "annotations").mkdir(exist_ok=True)
            for each in content["images"]:
                shutil.copy(data_root / "bccd" / split / each["file_name"], source / "images" / split)
            (source / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        ours = load_detection_dataset(source)
    else:
        ours = load_detection_dataset(data_root / "coco128" / "data_seg.yaml", task=task, label_dir="labels_seg")
        ours = {"train": ours["train"].select(range(30)), "validation": ours["validation"].select(range(10))}
        kind, source = "coco", tmp_path / "coco"
        _write_coco(ours, source)
    run_tools(EXPORT, source, kind, tmp_path / "cvat")
    theirs = load_detection_dataset(tmp_path / "cvat", task=task, class_names=class_names(ours["train"]))
    boxes = 0
    for split in ("train", "validation"):
        by_name = {row["file_name"].rsplit("/", 1)[-1]: row["objects"] for row in theirs[split]}
        assert len(by_name) == len(ours[split])
        for row in ours[split]:
            objects = by_name[row["file_name"].rsplit("/", 1)[-1]]
            expected = sorted(
                zip(row["objects"]["category"], np.round(row["objects"]["bbox"], 6).tolist(), strict=True)
            )
            found = sorted(zip(objects["category"], objects["bbox"], strict=True))
            assert [label for label, _ in found] == [label for label, _ in expected]
            # The export has two digits after the point.
            np.testing.assert_allclose([b for _, b in found], [b for _, b in expected], atol=0.011)
            boxes += len(found)
    assert boxes > 200


def _write_coco(splits, folder):
    for name, split in splits.items():
        (folder / "images" / name).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for row in split:
            shutil.copy(row["image"]["path"], folder / "images" / name)
            file = row["file_name"].rsplit("/", 1)[-1]
            images.append({"id": row["image_id"], "file_name": file, "width": row["width"], "height": row["height"]})
            objects = row["objects"]
            for box, label, mask in zip(objects["bbox"], objects["category"], objects["segmentation"], strict=True):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": row["image_id"], "category_id": label + 1, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": 0, "segmentation": mask["polygons"],
                })  # fmt: skip
        categories = [{"id": i, "name": name} for i, name in enumerate(class_names(split), start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def test_boxes_and_the_label_table(cvat, caplog):
    root = cvat(document(image(BOX), image("", "b.jpg")))
    with caplog.at_level(logging.INFO):
        train = load_detection_dataset(root)["train"]
    assert class_names(train) == ["dog", "cat"]
    assert train[0]["objects"]["bbox"] == [[4, 6.5, 26, 33.5]] and train[0]["objects"]["category"] == [1]
    assert train[1]["objects"]["bbox"] == [] and "2 images, 1 of them background" in caplog.text
    assert "CVAT for images, 1 split" in caplog.text
    assert len(load_detection_dataset(root / "annotations.xml")["train"]) == 2


def test_subsets_of_a_project_are_splits(cvat):
    root = cvat(document(image(BOX, more=' subset="Train"'), image(BOX, "b.jpg", ' subset="Validation"')))
    splits = load_detection_dataset(root)
    assert {name: split["file_name"] for name, split in splits.items()} == {"train": ["a.jpg"], "validation": ["b.jpg"]}


def test_images_without_a_subset_are_a_split(cvat, caplog):
    first, more = (
        image(BOX, more=" subset='Train'"),
        [image(BOX, "b.jpg"), image(BOX, "c.jpg", ' task=">" subset="Gültig"')],
    )
    text = document(first, *more).replace('encoding="utf-8"', 'encoding="iso-8859-1"')
    root = cvat(text)
    (root / "annotations.xml").write_bytes(text.encode("iso-8859-1"))
    (root / "more").mkdir()
    (root / "more" / "annotations.xml").write_text(document(image(BOX)))
    splits = load_detection_dataset(root, validation_split="Gültig")
    assert {name: split["file_name"] for name, split in splits.items()} == {"train": ["a.jpg"], "validation": ["c.jpg"]}
    assert "1 image is in no subset and left out; that is the split 'default'" in caplog.text
    assert "1 XML file is in none of the splits ['train', 'validation'] and left out, such as more/" in caplog.text
    assert load_detection_dataset(root, validation_split="default")["validation"]["file_name"] == ["b.jpg"]


def test_turned_shapes(cvat):
    box = '<box label="cat" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/>'
    round_one = '<ellipse label="cat" cx="30" cy="20" rx="10" ry="5" rotation="90"/>'
    rows = load_detection_dataset(cvat(document(image(box + round_one))), task="segmentation", missing_masks="box")
    objects = rows["train"][0]["objects"]
    np.testing.assert_allclose(objects["bbox"], [[25, 15, 10, 20], [25, 10, 10, 20]], atol=1e-9)
    assert objects["area"] == pytest.approx([200, np.pi * 50], rel=0.01)
    # A turned shape's corners go clockwise: at 30 degrees the right end of a wide box is the lower one.
    box = '<box label="cat" xtl="10" ytl="20" xbr="50" ybr="22" rotation="30"/>'
    row = load_detection_dataset(cvat(document(image(box))), task="segmentation", missing_masks="box")["train"][0]
    corners = np.reshape(coco_segmentation(row["objects"]["segmentation"][0], 48, 64), (-1, 2))
    assert corners[corners[:, 0].argmax()][1] > corners[corners[:, 0].argmin()][1]


def test_masks(cvat):
    # Two rows of four pixels at (10, 5): row by row, background first.
    mask = '<mask label="dog" rle="1, 2, 1, 4" left="10" top="5" width="4" height="2"/>'
    polygon = '<polygon label="cat" points="1.5,2;20,2;20,12.25"/>'
    row = load_detection_dataset(cvat(document(image(mask + polygon))), task="segmentation")["train"][0]
    expected = np.zeros((48, 64), bool)
    expected[5, 11:13], expected[6, 10:14] = True, True
    column = np.empty(1, object)
    column[:] = [coco_segmentation(row["objects"]["segmentation"][0], 48, 64)]
    assert (rasterise(column, (0, 0, 64, 48), (48, 64))[0] == expected).all()
    assert row["objects"]["bbox"] == [[10, 5, 4, 2], [1.5, 2, 18.5, 10.25]] and row["objects"]["area"][0] == 6
    assert coco_segmentation(row["objects"]["segmentation"][1], 48, 64) == [[1.5, 2, 20, 2, 20, 12.25]]


def test_skeletons_are_objects_with_keypoints(cvat):
    labels = (
        "<label><name>bird</name><type>skeleton</type></label><label><name>beak</name><parent>bird</parent></label>"
        "<label><name>left_wing</name><parent>bird</parent></label>"
        "<label><name>right_wing</name><parent>bird</parent></label>"
    )
    points = (
        '<points label="right_wing" outside="0" occluded="1" points="40.0,30.5"/>'
        '<points label="beak" outside="0" occluded="0" points="10.0,8.0"/>'
        '<points label="left_wing" outside="1" occluded="0" points="1.0,1.0"/>'
    )
    root = cvat(document(image(f'<skeleton label="bird">{points}</skeleton>'), labels=labels))
    train = load_detection_dataset(root, task="keypoints")["train"]
    assert keypoint_schema(train).classes[0].names == ("beak", "left_wing", "right_wing")
    assert train[0]["objects"]["keypoints"] == [[10, 8, 2, 0, 0, 0, 40, 30.5, 1]]
    assert train[0]["objects"]["bbox"] == [[10, 8, 30, 22.5]]
    assert load_detection_dataset(root)["train"][0]["objects"]["bbox"] == [[10, 8, 30, 22.5]]


def test_what_is_no_object_is_counted(cvat, caplog):
    shapes = (
        BOX + '<polyline label="cat" points="1,1;5,5"/><tag label="cat"/><points label="cat" points="3,3"/>'
        '<box label="cat" outside="1" xtl="1" ytl="1" xbr="9" ybr="9"/><tag label="dog"/>'
    )
    assert len(load_detection_dataset(cvat(document(image(shapes))))["train"][0]["objects"]["bbox"]) == 1
    for text in ("1 polylines", "2 tags of whole pictures", "1 points without a skeleton", "1 shapes that are marked"):
        assert f"left out {text}" in caplog.text


def test_crowds_of_other_formats(cvat):
    box = BOX.replace("/>", '><attribute name="is_crowd">True</attribute></box>')
    assert load_detection_dataset(cvat(document(image(BOX + box))))["train"][0]["objects"]["iscrowd"] == [False, True]


def test_tracks_of_videos_are_refused(cvat):
    text = document().replace("</annotations>", '<track id="0" label="cat"><box frame="0"/></track></annotations>')
    with pytest.raises(DetectionDataError, match="has tracks of a video; export as 'CVAT for images 1.1'"):
        load_detection_dataset(cvat(text))
