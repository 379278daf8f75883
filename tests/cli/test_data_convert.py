"""`rfdetr-hf data convert`."""

import pytest

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.cli.main import main


@pytest.fixture
def coco_folder(tmp_path):
    splits = {"train": make_shapes_dataset(2, image_size=64, seed=1), "validation": make_shapes_dataset(2, seed=2)}
    convert_dataset(splits, tmp_path / "coco", "folder", 1)
    return tmp_path / "coco"


def test_shards_of_a_folder_and_back(coco_folder, tmp_path, capsys):
    assert main(["data", "convert", str(coco_folder), str(tmp_path / "shards")]) == 0
    assert "parquet, 2 shards; images: train 2, validation 2" in capsys.readouterr().out
    assert main(["data", "convert", str(tmp_path / "shards"), str(tmp_path / "folder"), "--format", "folder"]) == 0
    assert [len(split) for split in load_detection_dataset(tmp_path / "folder").values()] == [2, 2]
    assert main(["data", "convert", str(coco_folder), str(tmp_path / "shards")]) == 1
    assert "shards exists; give another name" in capsys.readouterr().err


def test_misuse_is_said_before_anything_is_read(tmp_path, capsys):
    assert main(["data", "convert", str(tmp_path / "none"), str(tmp_path / "new")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["data", "convert", "synthetic-shapes"]) == 2
    assert main(["data", "convert", "synthetic-shapes", str(tmp_path / "new"), "--format", "zip"]) == 2
    assert "invalid choice: 'zip'" in capsys.readouterr().err
    assert main(["data"]) == 2
    assert "rfdetr-hf data convert" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
