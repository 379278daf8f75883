import logging

import numpy as np
import pytest
import yaml

from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.keypoints import COCO_SIGMAS
from rfdetr_hf.data.schema import category_ids, class_names, decode_image, keypoint_schema
from rfdetr_hf.data.sources import load_detection_dataset

POLYGON = "0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5"


@pytest.fixture
def write_yolo(tmp_path, write_image):
    """Write a data set of 64x48 images: `write_yolo({"images/train/a.jpg": rows or None}, **fields of the yaml)`."""

    def write(images, label_dir="labels", folder="set", **fields):
        root = tmp_path / folder
        for name, rows in images.items():
            write_image(root / name)
            head, _, tail = name.rpartition("images/")
            label = (root / head / label_dir / tail if "images/" in name else root / name).with_suffix(".txt")
            if rows is not None:
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(rows)
        content = {"train": "images/train", "names": ["cat", "dog"], **fields}
        (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return root

    return write


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


@pytest.mark.parametrize(("file", "text", "said"), [
    ("dataset.yaml", "train: images/train\nnames: [dog, cat]\n", True), ("classes.txt", "dog\ncat\n", True),
    ("labels/train/classes.txt", "dog\ncat\n", True), ("labels/classes.txt", "\ufeffcat\ndog\n\n", False),
    ("dataset.yml", "names: {1: dog, 0: cat}\n", False), ("obj.names", "cat\n", True),
])  # fmt: skip
def test_other_lists_of_classes_are_compared(write_yolo, caplog, file, text, said):
    root = write_yolo({"images/train/a.jpg": "0 0.5 0.5 0.25 0.5"})
    (root / file).write_text(text, encoding="utf-8")
    load_detection_dataset(root)
    assert ("its classes are ['cat', 'dog'], which count, and those of" in caplog.text) == said
    assert not said or str(root / file) in caplog.text


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


def test_class_ids_with_gaps(write_yolo):
    images = {"images/train/a.jpg": "13 0.5 0.5 0.5 0.5\n7 0.5 0.5 0.5 0.5"}
    root = write_yolo(images, names={13: "stop sign", 7: "train", 90: "toothbrush"})
    train = load_detection_dataset(root)["train"]
    assert class_names(train) == ["train", "stop sign", "toothbrush"] and category_ids(train) == [7, 13, 90]
    assert train[0]["objects"]["category"] == [1, 0]
    ordered = load_detection_dataset(root, class_names=["stop sign", "train"])["train"]
    assert ordered[0]["objects"]["category"] == [0, 1] and category_ids(ordered) == [13, 7]
    with pytest.raises(DetectionDataError, match=r"class 7 \(train\) is not in the label table \['stop sign'\]"):
        load_detection_dataset(root, class_names=["stop sign"])


def test_label_files_without_an_image_are_told(write_yolo, caplog):
    root = write_yolo({"images/train/a.jpg": "0 0.5 0.5 0.5 0.5"})
    (root / "labels/train/gone.txt").write_text("0 0.5 0.5 0.5 0.5")
    load_detection_dataset(root)
    assert "1 label files have no image and are left out, such as" in caplog.text and "gone.txt" in caplog.text
    for folder in ("more", "val"):  # a split's labels are its own
        (root / "labels/train" / folder).mkdir()
        (root / "labels/train" / folder / "gone.txt").write_text("0 0.5 0.5 0.5 0.5")
    load_detection_dataset(root)
    assert "2 label files have no image and are left out, such as" in caplog.text


def test_images_without_a_label_file_may_be_left_out(write_yolo):
    images = {"images/train/a.jpg": None, "images/train/b.jpg": ""}
    train = load_detection_dataset(write_yolo(images, skip_if_label_file_missing=True))["train"]
    assert train["file_name"] == ["images/train/b.jpg"]


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
    with pytest.raises(DetectionDataError, match=r"a.txt:2: a box without a polygon"):
        load_detection_dataset(root, task="segmentation")
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


def test_seventeen_keypoints_of_persons_are_cocos(write_yolo):
    images = {"images/train/a.jpg": "0 0.5 0.5 0.5 0.5 " + "0.5 0.5 2 " * 17}
    train = load_detection_dataset(write_yolo(images, names=["person"], kpt_shape=[17, 3]), task="keypoints")["train"]
    schema = keypoint_schema(train).classes[0]
    assert schema.names[9] == "left_wrist" and schema.sigmas == COCO_SIGMAS and (9, 10) in schema.flip_pairs


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "images/nowhere"}, "field train: 'images/nowhere' is neither a folder"),
        ({"nc": 3}, "field nc is 3, but there are 2 names"),
        ({"nc": True}, "field nc is 'true', but there are 2 names"),
        ({"names": None}, "needs the fields names and train"),
        ({"names": {"a": "cat"}}, "names must be a list, or class ids"),
        ({"names": ["cat", "cat"]}, "the name 'cat' belongs to several"),
    ],
)
def test_broken_yaml(write_yolo, fields, message):
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(write_yolo({"images/train/a.jpg": ""}, **fields))


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
