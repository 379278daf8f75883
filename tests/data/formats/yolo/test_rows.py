"""Rows of YOLO label files: boxes, polygons and keypoints."""

import numpy as np
import pytest

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import keypoint_schema

POLYGON = "0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5"


def test_rows_of_no_size_are_named_by_file_and_line(write_yolo, caplog):
    good, bad = "0 .5 .5 .25 .25\n", "0 .5 .5 0 0\n"
    load_detection_dataset(write_yolo({"images/train/a.jpg": good + bad}))
    assert "dropped 1 box (no width or no height): " in caplog.text and "labels/train/a.txt:2" in caplog.text
    root = write_yolo({f"images/train/{i}.jpg": good if i % 2 else bad for i in range(6)}, folder="more")
    with pytest.raises(DetectionDataError, match=r"3 of 6 boxes .* no width or no height, such as .*train/0.txt:1"):
        load_detection_dataset(root)


@pytest.mark.parametrize(
    ("dims", "fault"), [(2, r"kpt_shape: \[5, 2\]"), (3, r"kpt_shape: \[4, 3\]"), (0, "confidence")]
)
def test_rows_of_keypoints_and_predictions_are_no_polygons(write_yolo, dims, fault):
    rng = np.random.default_rng(0)
    points = {2: rng.random((8, 5, 2)), 3: np.insert(rng.random((8, 4, 2)), 2, 1, axis=2), 0: rng.random((8, 1, 2))}[
        dims
    ]
    if dims:
        points[..., :2] = 0.5 + (points[..., :2] - 0.5) * [0.4, 0.3]
    else:
        points[..., 1] = 1
    rows = [" ".join(map(str, [0, 0.5, 0.5, 0.4, 0.3, *each.ravel().round(3)])) for each in points]
    with pytest.raises(DetectionDataError, match=rf"train/0.txt:1: all 8 rows of \d+ numbers look like(.|\n)*{fault}"):
        load_detection_dataset(write_yolo({f"images/train/{i}.jpg": row for i, row in enumerate(rows)}))


@pytest.mark.parametrize("seed", range(5))
def test_small_polygons_of_as_many_corners_are_polygons(write_yolo, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.random((30, 6)) * 2 * np.pi, axis=1)
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=2) * rng.uniform(0.02, 0.08, (30, 6, 1))
    corners += rng.uniform(0.1, 0.6, (30, 1, 2))
    rows = [" ".join(map(str, [0, *each.ravel().round(4)])) for each in corners]
    assert (
        len(load_detection_dataset(write_yolo({"images/train/a.jpg": "\n".join(rows)}))["train"][0]["objects"]["id"])
        == 30
    )


def test_polygon_rows(write_yolo):
    root = write_yolo({"images/train/a.jpg": f"1 {POLYGON}\n0 0 0 0.5 0 0 0.5"}, label_dir="labels_seg")
    objects = load_detection_dataset(root, label_dir="labels_seg", task="segmentation")["train"][0]["objects"]
    assert objects["bbox"] == [[16, 12, 32, 12], [0, 0, 32, 24]] and objects["area"] == [384, 384]
    assert objects["segmentation"][0] == {"polygons": [[16, 12, 48, 12, 48, 24, 16, 24]], "rle": None}
    boxes_only = load_detection_dataset(root, label_dir="labels_seg")["train"][0]["objects"]
    assert boxes_only["bbox"] == objects["bbox"] and "segmentation" not in boxes_only
    with pytest.raises(DetectionDataError, match="none of 1 images has a label file, such as .*labels.*label_dir"):
        load_detection_dataset(root)


def test_box_rows_where_masks_are_wanted(write_yolo):
    root = write_yolo({"images/train/a.jpg": f"1 {POLYGON}\n0 0.5 0.5 0.5 0.5"})
    with pytest.raises(DetectionDataError, match=r"a.txt:2: a box without a polygon") as raised:
        load_detection_dataset(root, task="segmentation")
    assert "To repair: use boxes as masks (--missing_masks box), or take boxes alone, with a model" in str(raised.value)
    objects = load_detection_dataset(root, task="segmentation", missing_masks="box")["train"][0]["objects"]
    assert [mask["polygons"] for mask in objects["segmentation"]] == [
        [[16, 12, 48, 12, 48, 24, 16, 24]],
        [[16, 12, 48, 12, 48, 36, 16, 36]],
    ]


BROKEN = {
    "0 0.5 0.5 0.5": "4 numbers; a box has 5",
    "0 0.5 0.5 0.5 0.5 0.5": "6 numbers",
    "0 0.5 0.5 0.5 0.5 0.5 0.5 0.5": "8 numbers",
    "0 0.5 0.5 x 0.5": "could not convert string to float: 'x'",
    "0 0.5 0.5 nan 0.5": "a number is not finite",
    "2 0.5 0.5 0.5 0.5": "class 2 is not among the names of data.yaml",
    "0.5 0.5 0.5 0.5 0.5": "class 0.5 is not among",
    "-1 0.5 0.5 0.5 0.5": "class -1 is not among",
    "0 32 24 16 16": "coordinates from 16 to 32; they are relative",
    "0 0.5 0.5 -0.5 0.5": "coordinates from -0.5 to 0.5",
}


@pytest.mark.parametrize("row", BROKEN)
def test_malformed_rows_are_named_by_file_and_line(write_yolo, row):
    root = write_yolo({"images/train/a.jpg": f"0 0.5 0.5 0.5 0.5\n{row}"})
    with pytest.raises(DetectionDataError) as error:
        load_detection_dataset(root)
    assert "labels/train/a.txt:2: " in str(error.value) and BROKEN[row] in str(error.value)


def test_boxes_over_the_border_by_rounding_are_clamped(write_yolo):
    root = write_yolo({"images/train/a.jpg": "0 0.9 0.5 0.2002 0.5"})
    x, y, width, height = load_detection_dataset(root)["train"][0]["objects"]["bbox"][0]
    assert x + width == 64 and (y, height) == (12, 24)


POSE = "0 0.5 0.5 0.5 0.5 0.25 0.5 2 0.75 0.5 1 0.9 0.9 0"


def test_pose_rows(write_yolo):
    images = {"images/train/a.jpg": f"{POSE}\n1 0.5 0.5 0.25 0.25"}
    root = write_yolo(images, kpt_shape=[3, 3], flip_idx=[1, 0, 2])
    train = load_detection_dataset(root, task="keypoints")["train"]
    assert train[0]["objects"]["keypoints"] == [[16, 24, 2, 48, 24, 1, 0, 0, 0], [0] * 9]
    schema = keypoint_schema(train)
    assert schema.flip_index.tolist() == [[1, 0, 2]] * 2 and schema.num_keypoints_per_class == [3, 3]
    assert schema.classes[0].names == ("keypoint_0", "keypoint_1", "keypoint_2") and set(schema.sigmas.flat) == {0.1}
    assert "keypoints" not in load_detection_dataset(root)["train"][0]["objects"]


def test_pose_rows_without_visibility_and_with_names(write_yolo):
    images = {"images/train/a.jpg": "0 0.5 0.5 0.5 0.5 0.25 0.5 0 0"}
    names = {0: ["left_ear", "right_ear"]}
    root = write_yolo(images, names=["cat"], kpt_shape=[2, 2], kpt_names=names)
    train = load_detection_dataset(root, task="keypoints")["train"]
    assert train[0]["objects"]["keypoints"] == [[16, 24, 2, 0, 0, 0]]
    assert keypoint_schema(train).flip_index.tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("fields", "row", "message"),
    [
        ({"kpt_shape": [3, 3]}, "0 0.5 0.5 0.5 0.5 0.5 0.5 2", "8 numbers; kpt_shape asks for 5 or 14"),
        ({"kpt_shape": [1, 3]}, "0 0.5 0.5 0.5 0.5 0.5 0.5 3", "visibility 3 of keypoint 0"),
        ({"kpt_shape": [1, 3]}, "0 0.5 0.5 0.5 0.5 7 0.5 2", "coordinates from 0.5 to 7"),
        ({"kpt_shape": [3, 4]}, POSE, "kpt_shape is .*2 or 3"),
        ({"kpt_shape": [3, 3], "flip_idx": [1, 2, 0]}, POSE, "flip_idx.*partners"),
        ({"kpt_shape": [3, 3], "kpt_names": ["a"]}, POSE, "kpt_names has 1 names"),
        ({}, "0 0.5 0.5 0.5 0.5", "there are no keypoints"),
    ],
)
def test_broken_keypoints(write_yolo, fields, row, message):
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(write_yolo({"images/train/a.jpg": row}, **fields), task="keypoints")
