"""What a run leaves besides models: the arguments that repeat it, its pictures and its report."""

import itertools
import logging
from types import SimpleNamespace

from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRTrainer, make_shapes_dataset
from rfdetr_hf.training import state


def test_files_of_the_user_are_set_aside(tmp_path, tiny_model, shapes):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("args.yaml", "labels.jpg", "report.html"):
        (folder / name).write_text("mine")
    args = quick_arguments(folder, max_steps=1, eval_strategy="no", save_strategy="no")
    RFDETRTrainer(tiny_model(), args, shapes).train()
    aside = {path.name: path.read_text() for path in (folder / "set-aside").rglob("*") if path.is_file()}
    assert aside == dict.fromkeys(("args.yaml", "labels.jpg", "report.html"), "mine")


def test_a_finished_run_that_is_resumed_keeps_the_time_of_its_report(tmp_path, tiny_model, monkeypatch, caplog):
    data, options = make_shapes_dataset(4, image_size=64), {"gradient_accumulation_steps": 1, "max_steps": 2}

    def report(**more):
        RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **options, **more), data, data).train()
        return (tmp_path / "report.html").read_text()

    hours = itertools.count(step=3600)
    with monkeypatch.context() as patched:
        patched.setattr(state, "time", SimpleNamespace(perf_counter=lambda: next(hours)))
        assert "took 2:00:00 (h:mm:ss)" in report()
    with caplog.at_level(logging.INFO):
        # The second hour came after the last checkpoint.
        assert "ended at step 2 of 2 (epoch 0.4) and took 1:00:00 (h:mm:ss)" in report(resume_from_checkpoint="true")
    assert "the run has all its 2 steps, and nothing is left to train" in caplog.text
    assert "end, without a step" in caplog.text and "mean loss 0" not in caplog.text
