import csv
import json

import torch
from datasets import ClassLabel, List
from helpers.detectors import forgetful

from rfdetr_hf import category_ids, class_names, evaluate_detector


def test_everything_from_one_call(scored_shapes, tmp_path):
    seen = []
    done = evaluate_detector(
        forgetful(scored_shapes),
        scored_shapes,
        batch_size=4,
        output_dir=tmp_path,
        report=True,
        progress=lambda *n: seen.append(n),
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == done.metrics and 0 < metrics["map"] < 1 and 0 < metrics["recall"] < 1
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert {r["category_id"] for r in results} <= set(category_ids(scored_shapes)) and "bbox" in results[0]
    with (tmp_path / "per_class.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == class_names(scored_shapes)
    page = (tmp_path / "report.html").read_text()
    worst = done.analysis.worst_images(12)
    assert page.count("data:image/png") == 4 and page.count("data:image/jpeg") == len(worst) > 3
    assert f"Image {worst[0].image_id} (test_" in page and "missed" in page
    assert len(list((tmp_path / "worst_images").glob("*.jpg"))) == len(worst)
    for name in class_names(scored_shapes):
        assert name in done.tables() and name in page


def test_names_are_texts_everywhere(scored_shapes, tmp_path):
    names = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a\n\x1b[31mb"]
    category = List(ClassLabel(names=names))
    renamed = scored_shapes.cast_column("objects", {**scored_shapes.features["objects"], "category": category})
    done = evaluate_detector(forgetful(renamed), renamed, output_dir=tmp_path, report=True)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["'" + names[0], *names[1:]]
    assert json.loads((tmp_path / "thresholds.json").read_text()).keys() <= set(names)
    assert "\x1b" not in done.tables() and "a\n" not in done.tables()
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_notes_are_in_table_and_report(scored_shapes, tmp_path):
    def blind(images):
        return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=int), "scores": torch.zeros(0)}] * len(
            images
        )

    done = evaluate_detector(blind, scored_shapes, output_dir=tmp_path, report=True)
    assert "no best_threshold for" in done.tables()
    assert json.loads((tmp_path / "thresholds.json").read_text()) == {} and done.metrics["score_threshold"] == -1
    assert "no best_threshold for" in (tmp_path / "report.html").read_text()
