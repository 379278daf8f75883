"""A data set as a folder in the layout of COCO exports."""

from pathlib import Path

import pytest
from datasets import Dataset
from helpers.real_data import REAL, assert_equal_splits, load_real

from rfdetr_hf import convert_dataset, load_detection_dataset


@pytest.mark.parametrize("name", REAL)
def test_rows_come_back_from_a_folder_as_they_were(data_root, tmp_path, name):
    splits = load_real(data_root, name)
    assert convert_dataset(splits, tmp_path / "folder", "folder", 1) == 0
    again = load_detection_dataset(tmp_path / "folder", task=REAL[name].get("task", "detection"))
    assert_equal_splits(again, splits)


def test_names_that_lead_elsewhere_do_not_leave_the_folder(written_splits, tmp_path):
    rows = [dict(row) for row in written_splits["train"].select(range(4))]
    for row, name in zip(rows, ["../out.png", "/etc/out.png", "a/b.png", "A/B.png"], strict=True):
        row["file_name"] = name
    data = Dataset.from_list(rows, features=written_splits["train"].features)
    convert_dataset({"train": data}, tmp_path / "folder", "folder", 1)
    written = sorted(p.relative_to(tmp_path / "folder").as_posix() for p in tmp_path.rglob("*.png"))
    ids = [row["image_id"] for row in rows]
    assert written == sorted(["train/a/b.png", *(f"train/{ids[i]:012d}.png" for i in (0, 1, 3))])
    assert len(load_detection_dataset(tmp_path / "folder")["train"]) == 4


def test_no_picture_of_a_folder_takes_the_place_of_another(written_splits, tmp_path):
    rows = written_splits["train"].select(range(7))
    names = ["000000000001.png", "../x.png", "000000000001_1.PNG", "a.png", "a.png/b.png", "A.PNG", "ü" * 130 + ".png"]
    ids = [7, 1, 2, 3, 4, 5, 6]
    renamed = rows.remove_columns(["file_name", "image_id"]).add_column("file_name", names).add_column("image_id", ids)
    convert_dataset({"train": renamed}, tmp_path / "folder", "folder", 1)
    again = load_detection_dataset(tmp_path / "folder")["train"]
    pictures = {row["image_id"]: Path(row["image"]["path"]).read_bytes() for row in again}
    assert pictures == {each: row["image"]["bytes"] for each, row in zip(ids, rows, strict=True)}
