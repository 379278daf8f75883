"""Which pictures and label files of a YOLO folder belong together, and what is no training picture."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError

ROW = "0 0.5 0.5 0.25 0.25\n"


@pytest.fixture
def folder(tmp_path, write_image):
    """A YOLO folder: `folder({path: rows, or None for a picture}, **fields of the yaml)`."""

    def make(files, root="set", train="images/train", **fields):
        base = tmp_path / root
        for name, rows in files.items():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            if rows is None:
                write_image(base / name)
            else:
                (base / name).write_text(rows)
        lines = [f"{key}: {value}" for key, value in {"train": train, "names": "[cat, dog]", **fields}.items()]
        (base / "data.yaml").write_text("\n".join(lines) + "\n")
        return base

    return make


def names(dataset):
    return sorted(os.path.basename(name) for name in dataset["file_name"])


PAIR = {"images/train/a.jpg": None, "labels/train/a.txt": ROW}


@pytest.mark.parametrize("extra", [
    "images/train/.hidden/b.jpg", "images/train/__MACOSX/b.jpg", "images/train/._a.jpg", "images/train/.b.jpg",
    "images/train/@eaDir/a.jpg", "images/train/.ipynb_checkpoints/a-checkpoint.jpg", "images/train/$RECYCLE.BIN/b.jpg",
])  # fmt: skip
def test_hidden_and_system_files_are_no_pictures(folder, extra):
    assert names(load_detection_dataset(folder({**PAIR, extra: None}))["train"]) == ["a.jpg"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/content/set", "field path: '/content/set' is not there; its folders are looked for beside the file"),
        ("../other", "'images/train' is not in {}/other, which field path names; {}/set/images/train beside the file"),
        ("..", "'images/train' is not in {}, which field path names; {}/set/images/train beside the file is taken"),
        (".", ""),
        ("../set", ""),
    ],
)
def test_another_folder_than_field_path_names_is_told(tmp_path, folder, caplog, path, said):
    (tmp_path / "other" / "images").mkdir(parents=True)
    assert names(load_detection_dataset(folder(PAIR, path=path))["train"]) == ["a.jpg"]
    assert said.format(tmp_path, tmp_path) in caplog.text and ("field path" in caplog.text) == bool(said)


def test_masks_beside_images_are_no_pictures(folder, caplog):
    files = {
        "train/images/a.jpg": None,
        "train/labels/a.txt": ROW,
        "train/masks/a.png": None,
        "train/masks/b.png": None,
    }
    assert names(load_detection_dataset(folder(files, train="train"))["train"]) == ["a.jpg"]
    assert "left out 2 pictures" in caplog.text


def test_pictures_of_annotations_under_any_folder_name(folder, caplog):
    files = {"d/images/a.jpg": None, "d/labels/a.txt": ROW, "d/images/b.jpg": None, "d/labels/b.txt": ROW}
    files |= {"d/colour/a.png": None, "d/colour/b.png": None, "d/images/a_mask.png": None}
    assert names(load_detection_dataset(folder(files, train="d"))["train"]) == ["a.jpg", "b.jpg"]
    assert "left out" in caplog.text


def test_a_second_camera_is_background_and_masks_of_its_names_are_not(folder, tmp_path, caplog):
    files = {**PAIR, "images/train/cam2/a.jpg": None}
    assert len(load_detection_dataset(folder(files))["train"]) == 2 and "left out" not in caplog.text
    assert "none of 1 picture of" in caplog.text and "cam2 has a label file; all are background" in caplog.text
    for colours in (np.zeros((48, 64), np.uint8), np.full((48, 64, 3), 7, np.uint8)):
        Image.fromarray(colours).save(tmp_path / "set/images/train/cam2/a.jpg")
        assert names(load_detection_dataset(tmp_path / "set")["train"]) == ["a.jpg"] and "left out 1" in caplog.text


def test_a_folder_without_labels_is_background_and_said(folder, caplog):
    files = {**PAIR, "images/train/street/x.jpg": None, "images/train/street/y.jpg": None}
    assert len(load_detection_dataset(folder(files))["train"]) == 3
    assert "none of 2 pictures" in caplog.text and "street" in caplog.text


def test_labels_with_their_suffix_in_capitals(folder, caplog):
    train = load_detection_dataset(folder({"images/train/a.jpg": None, "labels/train/a.TXT": ROW}))["train"]
    assert len(train[0]["objects"]["id"]) == 1 and "under a name in another case" in caplog.text


def test_labels_beside_the_pictures(folder, caplog):
    train = load_detection_dataset(folder({"images/train/a.jpg": None, "images/train/a.txt": ROW}))["train"]
    assert len(train[0]["objects"]["id"]) == 1 and "label files are not where" in caplog.text


@pytest.mark.parametrize("other", ["images/train/b.txt", "labels/b.txt", "images/train/labels/b.txt"])
def test_labels_in_two_layouts(folder, other):
    with pytest.raises(DetectionDataError, match=r"b.jpg: has no rows in .*but may have in .*b.txt"):
        load_detection_dataset(folder({**PAIR, "images/train/b.jpg": None, other: ROW}))


def test_a_text_beside_a_picture_that_is_no_label_file(folder):
    train = load_detection_dataset(folder({**PAIR, "images/train/b.jpg": None, "images/train/b.txt": "a caption"}))
    assert len(train["train"]) == 2


def test_links_to_one_picture_are_one_picture(folder, caplog):
    """As a COCO file that lists a picture twice: once where the rows agree, an error where they do not."""
    files = {**PAIR, "labels/train/b.txt": ROW, "labels/train/c.txt": ROW}
    root = folder(files)
    for name in ("b", "c"):
        (root / f"images/train/{name}.jpg").symlink_to(root / "images/train/a.jpg")
    assert len(load_detection_dataset(root)["train"]) == 1
    assert "dropped 2 entries of files that are listed twice with the same boxes" in caplog.text
    (root / "labels/train/c.txt").write_text("0 0.3 0.3 0.2 0.2")
    with pytest.raises(DetectionDataError, match="c.jpg is listed as image id .*with different boxes"):
        load_detection_dataset(root)


def test_two_pictures_of_one_label_file(folder):
    with pytest.raises(DetectionDataError, match=r"a.txt: belongs to .*a.jpg and to .*a.png"):
        load_detection_dataset(folder({**PAIR, "images/train/a.png": None}))


@pytest.mark.parametrize("count", [1, 9])
def test_background_is_counted_with_its_reason(folder, caplog, count):
    files = {**PAIR, "images/train/empty.jpg": None, "labels/train/empty.txt": ""}
    files |= {f"images/train/b{i}.jpg": None for i in range(count)}
    with caplog.at_level(logging.INFO):
        load_detection_dataset(folder(files))
    line = next(record for record in caplog.records if "of them background" in record.getMessage())
    text = f"{count + 2} images, {count + 1} of them background: {count} without a label file, 1 with an empty one"
    assert text in line.getMessage()
    assert line.levelno == logging.WARNING


@pytest.mark.timeout(60)
def test_links_pipes_and_dangling_links(folder):
    root = folder(PAIR)
    (root / "images/train/loop").symlink_to(root / "images", target_is_directory=True)
    assert names(load_detection_dataset(root)["train"]) == ["a.jpg"]
    (root / "images/train/gone.jpg").symlink_to(root / "nowhere.jpg")
    with pytest.raises(DetectionDataError, match="gone.jpg: is no file"):
        load_detection_dataset(root)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["images/train/p.jpg", "labels/train/a.txt"])
def test_a_pipe_stops_nothing(folder, name):
    root = folder(PAIR)
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    with pytest.raises(DetectionDataError, match="is no file"):
        load_detection_dataset(root)


@pytest.mark.timeout(120)
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_system_tree_is_refused(tmp_path):
    (tmp_path / "data.yaml").write_text("path: /\ntrain: proc\nnames: [cat]\n")
    with pytest.raises(DetectionDataError, match="proc"):
        load_detection_dataset(tmp_path)


def test_rows_written_twice_are_dropped_and_counted(folder, caplog):
    files = {**PAIR, "labels/train/a.txt": ROW + "1 0.5 0.5 0.25 0.25\n" + ROW}
    train = load_detection_dataset(folder(files))["train"]
    assert train[0]["objects"]["category"] == [0, 1] and "dropped 1 box (written twice)" in caplog.text


def test_neighbours_are_not_ours(folder):
    inner = {"ds/train/images/a.jpg": None, "ds/train/labels/a.txt": ROW}
    outer = {
        "train/images/n.jpg": None,
        "train/labels/n.txt": ROW,
        "valid/images/m.jpg": None,
        "valid/labels/m.txt": ROW,
    }
    root = folder({**inner, **outer})
    (root / "ds/data.yaml").write_text("train: ../train/images\ntest: ../valid/images\nnames: [cat, dog]\n")
    splits = load_detection_dataset(root / "ds")
    assert names(splits["train"]) == ["a.jpg"] and "test" not in splits


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_or_unlabelled_test_split_stops_no_training(folder, there, caplog):
    root = folder({**PAIR, **({"images/test/t.jpg": None} if there else {})}, test="images/test")
    assert list(load_detection_dataset(root)) == ["train"] and "the test split is left out" in caplog.text
    with pytest.raises(DetectionDataError, match="test"):
        load_detection_dataset(root, test_split="test")


def test_a_missing_validation_split_is_an_error(folder):
    with pytest.raises(DetectionDataError, match="field val"):
        load_detection_dataset(folder(PAIR, val="images/val"))


def test_val_and_valid_that_say_the_same(folder):
    files = {**PAIR, "images/v/b.jpg": None, "labels/v/b.txt": ROW}
    assert list(load_detection_dataset(folder(files, val="images/v", valid="images/v"))) == ["train", "validation"]


def test_the_picture_of_every_path(folder):
    root = folder({**PAIR, "images/train/sub/a.jpg": None, "labels/train/sub/a.txt": "1 0.5 0.5 0.5 0.5\n"})
    for row in load_detection_dataset(root)["train"]:
        pixels = np.asarray(Image.open(root / row["file_name"]))
        assert (np.asarray(Image.open(row["image"]["path"])) == pixels).all()
        assert row["objects"]["category"] == [int("sub" in row["file_name"])]
