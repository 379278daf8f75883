"""The data.yaml of a YOLO data set: names, ids, paths and keypoints as they are written."""

import pytest

from rfdetr_hf import category_ids, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError


def yolo(root, write_image, names, **labels):
    for split in ("train", "val"):
        write_image(root / f"images/{split}/a.jpg")
        (root / f"labels/{split}").mkdir(parents=True)
        (root / f"labels/{split}/a.txt").write_text("0 .5 .5 .25 .25\n1 .3 .3 .25 .25\n")
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\n{names}\n")
    return root


@pytest.mark.parametrize(("names", "expected"), [
    ("names: [yes, no]", ["yes", "no"]),
    ("names: {0: on, 1: off}", ["on", "off"]),
    ("names: [01, 1e3]", ["01", "1e3"]),
    ("names: [12:30, 2026-01-01]", ["12:30", "2026-01-01"]),
    ("names: {0: null, 1: dog}", ["null", "dog"]),
    ("names:\n  '0': cat\n  '1': dog", ["cat", "dog"]),
    ("names: [0x10, 1_000]", ["0x10", "1_000"]),
    ("names: [~, .nan]", ["~", ".nan"]),
])  # fmt: skip
def test_names_of_a_yaml_file_are_as_written(tmp_path, write_image, names, expected):
    splits = load_detection_dataset(yolo(tmp_path, write_image, names))
    assert class_names(splits) == expected and category_ids(splits) == [0, 1]


@pytest.mark.parametrize(("text", "message"), [
    ("names: {0: cat, 1: dog, 0: cow}", "field '0' stands twice"),
    ("names: [cat, dog]\nnames: [dog, cat]", "field 'names' stands twice"),
    ("names: [cat, dog]\ntrain: images/val", "field 'train' stands twice"),
    ("names: [cat, [dog]]", "field names: class 1 is"),
    ("names: {0: cat, 1: }", "field names: class 1 is ''"),
    ("names: [cat, dog]\nnc: '3'", "field nc is 3"),
    ("names: &a [*a, cat]", "data.yaml"),
    ("names: " + "[" * 3000 + "]" * 3000, "data.yaml"),
])  # fmt: skip
def test_yaml_files_that_say_two_things(tmp_path, write_image, text, message):
    with pytest.raises(DetectionDataError, match=message.replace("[", r"\[")):
        load_detection_dataset(yolo(tmp_path, write_image, text))


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
