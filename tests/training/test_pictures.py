"""The pictures of a run."""

import logging

from helpers.runs import metrics_rows, quick_arguments
from PIL import Image

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training import pictures
from rfdetr_hf.training.checkpoint.run_directory import OF_THE_BEST, PICTURES


def test_pictures_lie_at_the_top_of_the_run(hostile_run):
    for name in PICTURES:
        assert (hostile_run / name).is_file(), name
    assert not list(hostile_run.glob(".*"))
    # 4 images of 480 pixels in a row, and gaps; 4 steps of 4 images.
    assert Image.open(hostile_run / "train_batch.jpg").size == (4 * 484 - 4, 4 * 484 - 4)
    sizes = [Image.open(hostile_run / f"val_{name}.jpg").size for name in ("labels", "pred")]
    assert sizes == [(4 * 484 - 4, 2 * 484 - 4)] * 2
    for name in OF_THE_BEST:
        if name.endswith(".png"):
            assert (hostile_run / name).read_bytes() in [
                path.read_bytes() for path in hostile_run.glob(f"eval/*/*/{name}")
            ]


def test_a_failing_picture_costs_a_line_of_the_log(tmp_path, tiny_model, shapes, monkeypatch, caplog):
    def fail(*_args, **_options):
        raise RuntimeError("no ink")

    for name in ("save_labels", "draw_batch", "save_curves", "evaluation_part", "draw_labels_and_detections"):
        monkeypatch.setattr(pictures, name, fail)
    args = quick_arguments(tmp_path / "run", plots=True, max_steps=1, eval_strategy="steps", eval_steps=1)
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        RFDETRTrainer(tiny_model(), args, shapes.select(range(4)), shapes.select(range(3))).train()
    warned = [record.getMessage() for record in caplog.records if "no ink" in record.getMessage()]
    for name in ("labels.jpg", "train_batch.jpg", "results.png", "val_pred.jpg"):
        assert any(name in line and "RuntimeError" in line for line in warned), name
    assert len(metrics_rows(tmp_path / "run")) == 2 and not list((tmp_path / "run").glob(".*"))
    assert "ended at step 1 of 1" in (tmp_path / "run" / "report.html").read_text()
