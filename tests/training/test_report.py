"""`report.html`: what a run was, on one page without a network."""

import re

import pytest
import torch
from datasets import ClassLabel, List
from helpers.browser import chromium, look_at
from helpers.hostile import HOSTILE

from rfdetr_hf import CocoEvaluator, load_detection_dataset
from rfdetr_hf.evaluation.report import write_report


def test_the_report_tells_the_run_and_lets_no_name_in(hostile_run):
    page = (hostile_run / "report.html").read_text()
    for text in ("8 images", "of 3 classes", "The training ended at step 4 of 4", "EMA weights of step",
                 "load_detector", "args.yaml", "learning_rate_encoder", "validation (5 images)", "transformers", "AP50",
                 "On the 3 images of the test split"):  # fmt: skip
        assert text in page, text
    assert HOSTILE not in page and "&lt;img src=x onerror=alert(1)&gt; &amp; $x$" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png") >= 5 and page.count("data:image/jpeg") >= 5
    assert page.count("<!-- best model -->") == page.count("<!-- end of best model -->") == 1


@pytest.mark.browser
@pytest.mark.timeout(900)
def test_the_reports_in_a_browser(hostile_run, tmp_path):
    """Nothing is wider than its window, nothing is loaded, nothing runs; the page follows the colours of the system."""
    shapes = load_detection_dataset("synthetic-shapes")["test"].select(range(6))
    names = [HOSTILE, "a" * 150, "\u202eright to left \u5186 <b>" + "<!-- end of best model -->"]
    category = List(ClassLabel(names=names))
    renamed = shapes.cast_column("objects", {**shapes.features["objects"], "category": category})
    evaluator = CocoEvaluator(renamed)
    found = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    ] * 6
    evaluator.update(renamed["image_id"], found)
    write_report(evaluator, tmp_path, renamed, title=HOSTILE)
    with chromium() as browser:
        windows = {
            hostile_run: ((360, "light"), (1440, "dark")),
            tmp_path: ((360, "dark"), (900, "dark"), (1440, "light")),
        }
        for folder, seen_in in windows.items():
            page = folder / "report.html"
            for width, scheme in seen_in:
                seen = look_at(browser, page, width, scheme)
                assert seen["width"] <= width and seen["too_wide"] == [], (page, width)
                assert seen["requests"] == seen["said"] == seen["broken"] == []
                dark, light = (sum(map(int, re.findall(r"\d+", seen[part])[:3])) for part in ("background", "text"))
                assert (dark < 150 and light > 500) if scheme == "dark" else (dark > 700 and light < 200)
