"""`rfdetr-hf data preview`: the picture that a run with the same options draws."""

import pytest
from PIL import Image

from rfdetr_hf import convert_dataset, make_shapes_dataset
from rfdetr_hf.cli.main import main


def test_the_command_draws_and_replaces_nothing(tmp_path, capsys):
    path = tmp_path / "a.png"
    words = ["data", "preview", "synthetic-shapes", "--model", "nano", "--resolution", "128", "--images", "6"]
    words += ["--output", str(path), "--augmentation", "{mosaic: 0.5}"]
    assert main(words) == 0
    size = Image.open(path).size
    assert f"{size[0]} x {size[1]} pixels" in capsys.readouterr().out and size[0] > size[1]
    assert main(words) == 1 and "a.png exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "--augmentation", "aerail"]) == 2 and "did you mean 'aerial'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["data", "audit", "synthetic-shapes", "--json", "{}"],
        ["data", "audit", "synthetic-shapes", "--html", "{}"],
        ["data", "preview", "synthetic-shapes", "--output", "{}.jpg"],
        ["data", "convert", "synthetic-shapes", "{}"],
        ["validate", "none", "synthetic-shapes", "--output", "{}"],
        ["export", "none", "--output", "{}.onnx"],
    ],
    ids=lambda words: " ".join(words[:-1]),
)
def test_whether_the_result_can_be_written_is_looked_at_first(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rfdetr_hf.load_detection_dataset", None)
    monkeypatch.setattr("rfdetr_hf.load_model", None)
    for name in ("taken", "taken.jpg", "taken.onnx"):
        (tmp_path / name).write_text("a")
    assert main([word.format(tmp_path / "taken") for word in words]) == 1 and "exists" in capsys.readouterr().err
    below = tmp_path / "taken" / "more" / "x"
    assert main([word.format(below) for word in words]) == 1 and "taken is no folder" in capsys.readouterr().err


def test_folders_on_the_way_to_the_result_are_made(tmp_path, capsys):
    convert_dataset({"train": make_shapes_dataset(2, image_size=64)}, tmp_path / "data", "folder", 1)
    words = [str(tmp_path / "data"), "--model", "nano", "--resolution", "128"]
    path = tmp_path / "no" / "such"
    assert main(["data", "preview", *words, "--images", "1", "--output", str(path / "a.jpg")]) == 0
    written = ["--json", str(path / "more" / "a.json"), "--html", str(path / "other" / "a.html")]
    assert main(["data", "audit", *words, "--sample", "2", *written]) == 0
    assert sorted(each.name for each in path.rglob("a.*")) == ["a.html", "a.jpg", "a.json"]
    same = ["--json", str(tmp_path / "b"), "--html", str(tmp_path / "no" / ".." / "b")]
    assert main(["data", "audit", *words, *same]) == 2 and "one would replace the other" in capsys.readouterr().err


def test_data_without_a_training_split_is_named(tmp_path, capsys):
    splits = {"train": make_shapes_dataset(1, image_size=64), "validation": make_shapes_dataset(1, image_size=64)}
    convert_dataset(splits, tmp_path / "data", "folder", 1)
    own = f"{{{tmp_path / 'data'}: {{splits: [validation]}}}}"
    words = ["--sources", own, "--model", "nano", "--output", str(tmp_path / "a.jpg")]
    assert main(["data", "preview", *words]) == 1
    assert "sources: no training split, only ['validation']" in capsys.readouterr().err
