import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.command_lines import scores_of
from PIL import Image

from rfdetr_hf import RFDETRForObjectDetection, load_model
from rfdetr_hf.cli.main import main

OTHER = {"segmentation": ("segm", "segm_"), "keypoints": ("keypoints", "keypoint_")}


@pytest.mark.parametrize("task", ["detection", "segmentation", "keypoints"])
def test_every_task_is_evaluated_as_the_trainer_does(untrained, tmp_path, capsys, task):
    pytest.importorskip("matplotlib")
    model, data = untrained(task)
    out = tmp_path / "out"
    assert main(["evaluate", model, data, "--split", "test", "--output_dir", str(out), "--report"]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    by_trainer = scores_of(["test", model, data, "--num_workers", "0"], capsys)
    for name, value in by_trainer.items():
        if "_ma" in name:
            assert metrics[name.removeprefix("test_")] == pytest.approx(value, abs=1e-3), name
    results = json.loads((out / "predictions.json").read_text())
    page = (out / "report.html").read_text()
    assert {"image_id", "category_id", "bbox", "score"} <= results[0].keys() and "<h2>Scores</h2>" in page
    if task in OTHER:
        folder, prefix = OTHER[task]
        assert f"{prefix}f1" in metrics and f"{prefix}map" in printed
        with (out / folder / "per_class.csv").open() as file:
            assert [row["name"] for row in csv.DictReader(file)] == ["circle", "square", "triangle"]
        assert (out / folder / "errors.txt").is_file() and (out / folder / "confusion_matrix.png").is_file()
        assert ("segmentation" if task == "segmentation" else "keypoints") in results[0]
        assert page.count("data:image/png") == 8 and page.count("<h2>Errors</h2>") == 2


@pytest.mark.parametrize("words", [("evaluate",), ("test", "--num_workers", "0")])
def test_keypoints_that_the_model_describes_otherwise_are_named(untrained, caplog, words):
    model, data = untrained("keypoints")
    warning = "keypoint scores go by the data"
    assert main([words[0], model, data, *words[1:]]) == 0
    assert warning not in caplog.text
    config = json.loads(Path(model, "config.json").read_text())
    of_triangles = config["keypoint_schema"]["classes"][2]
    of_triangles["sigmas"] = [0.01] * len(of_triangles["names"])
    of_triangles["skeleton"] = []
    Path(model, "config.json").write_text(json.dumps(config))
    assert main([words[0], model, data, *words[1:]]) == 0
    assert caplog.text.count(warning) == 1 and "the keypoints of triangle have the sigmas [" in caplog.text


@pytest.mark.parametrize("task", ["segmentation", "keypoints"])
@pytest.mark.parametrize("option", [["--flip"], ["--tile", "48"], ["--scales", "1", "2"]])
def test_views_of_more_than_boxes_are_refused(untrained, tmp_path, capsys, task, option):
    model, data = untrained(task)
    assert main(["evaluate", model, data, *option]) == 1
    wanted = f"{option[0]}: only boxes are merged, and this model gives {'masks' if task[0] == 's' else 'keypoints'}"
    assert wanted in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    assert main(["predict", "--model_name_or_path", model, "--images", str(tmp_path / "image.png"), *option]) == 1
    assert wanted in capsys.readouterr().err


def test_views_change_the_scores_of_boxes(untrained, tmp_path):
    model, data = untrained("detection")
    looks = {"plain": [], "flip": ["--flip"], "scales": ["--scales", "1", "1.5"], "tile": ["--tile", "48"]}
    found = {}
    for name, options in looks.items():
        out = tmp_path / name
        assert main(["evaluate", model, data, *options, "--output_dir", str(out), "--backend", "pycocotools"]) == 0
        found[name] = json.loads((out / "predictions.json").read_text())
    assert all(found[name] != found["plain"] for name in ("flip", "scales", "tile"))


def test_options_are_checked_before_the_model_is_read(untrained, tmp_path, capsys):
    for option in (["--tile", "8"], ["--scales", "0"], ["--tile_overlap", "1"], ["--report"], ["--backend", "x"]):
        assert main(["evaluate", "no/model", "no/data", *option]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    assert main(["evaluate", "no/model", "no/data", "--output_dir", str(tmp_path / "full")]) == 1
    assert "has files" in capsys.readouterr().err
    model, data = untrained("detection")
    assert main(["evaluate", model, data, "--split", "testing"]) == 1
    assert "has no split 'testing'; it has train, validation, test" in capsys.readouterr().err


def test_a_limit_beside_the_standard(untrained, tmp_path, capsys):
    model, data = untrained("detection")
    assert main(["evaluate", "--model_name_or_path", model, "--dataset_name", data, "--max_dets", "3", "--bf16"]) == 0
    assert "map_at_3" in capsys.readouterr().out


@pytest.mark.parametrize("names", [["circle", "square", "triangle"], ["circle", "N/A", "square", "triangle"]])
def test_official_files_need_no_processor_and_no_rows_without_a_class(untrained, tiny_config, tmp_path, names):
    _, data = untrained("detection")
    torch.manual_seed(0)
    RFDETRForObjectDetection(tiny_config(names)).save_pretrained(tmp_path / "rows")
    assert main(["convert", str(tmp_path / "rows"), str(tmp_path / "model.pth")]) == 0
    for source in (tmp_path / "model.pth", tmp_path / "rows"):
        loaded = load_model(str(source), drop_unused_rows=True)
        assert list(loaded.config.id2label.values()) == [
            "circle",
            "square",
            "triangle",
        ]
        for verb in ("evaluate", "validate"):
            assert main([verb, str(source), data, "--device", "cpu"]) == 0
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "a.png")
    predict = ["predict", "--images", str(images), "--output_dir", str(tmp_path / "out"), "--model_name_or_path"]
    assert main([*predict, str(tmp_path / "model.pth")]) == 0
    assert (tmp_path / "out" / "a.png").is_file()
