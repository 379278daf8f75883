"""Names of splits, and which of them a training takes."""

import json

import pytest
from datasets import DatasetDict

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.splits import canonical_split, choose_splits

pytestmark = pytest.mark.usefixtures("own_cache")


def test_splits_are_named_and_renamed(cppe):
    source = DatasetDict(fit=cppe(), check=cppe(), test=cppe())
    with pytest.raises(DetectionDataError, match=r"no training split among \['fit', 'check', 'test'\]"):
        load_detection_dataset(source)
    splits = load_detection_dataset(source, train_split="fit", validation_split="check")
    assert list(splits) == ["train", "validation", "test"]
    assert [str(split.split) for split in splits.values()] == ["train", "validation", "test"]
    with pytest.raises(DetectionDataError, match=r"test_split='dev' does not exist; the splits are \['fit'"):
        load_detection_dataset(source, train_split="fit", test_split="dev")
    only = load_detection_dataset(DatasetDict(test=cppe()), class_names=["glove", "mask", "goggles"])
    assert list(only) == ["test"] and only["test"][0]["objects"]["category"] == [2, 1]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (["train2017", "val2017"], {"train": "train2017", "validation": "val2017"}),
        (["train", "train_small", "dev"], {"train": "train", "validation": "dev"}),
        (["everything"], {"train": "everything"}),
    ],
)
def test_choice_of_splits(found, chosen):
    assert choose_splits(found, "x", None, None, None) == chosen


def test_ambiguous_splits_are_errors_and_odd_names_are_nothing():
    with pytest.raises(DetectionDataError, match="train_split=…"):
        choose_splits(["train2014", "train2017"], "x", None, None, None)
    assert canonical_split("test-dev2017") is None and canonical_split("constraint") is None


def test_one_coco_file_over_several_folders_is_no_training_split(tmp_path, coco_content, write_image):
    content = coco_content()
    for split, image in zip(("train", "val"), content["images"], strict=True):
        write_image(tmp_path / split / image["file_name"])
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DetectionDataError, match="none of its images.*; write one annotation file for each folder"):
        load_detection_dataset(tmp_path)
    for split, image in zip(("train", "val"), content["images"], strict=True):
        (tmp_path / split / image["file_name"]).rename(tmp_path / split / f"{split}.jpg")
        write_image(tmp_path / ("cats", "dogs")[split == "val"] / image["file_name"])
    with pytest.raises(DetectionDataError, match="write the folders into file_name, such as '(cats|dogs)/"):
        load_detection_dataset(tmp_path)
