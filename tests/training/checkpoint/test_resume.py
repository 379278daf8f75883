"""What `--resume` accepts, and the checkpoint that it means."""

import shutil
from functools import partial

import pytest
from helpers.run_directories import ARGUMENTS, Run, aside, metrics, start, steps_in
from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRTrainer, read_status
from rfdetr_hf.training.checkpoint.directory import CheckpointError


def test_auto_passes_over_a_checkpoint_of_another_run(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    start(a, 20)
    start(b, 2, name="b")
    shutil.copytree(a / "checkpoint-20", b / "checkpoint-20")
    assert start(b, resume="auto").checkpoint == b / "checkpoint-2"
    assert steps_in(b) == [2] and any("checkpoint-20" in path for path in aside(b))


def test_auto_starts_over_what_had_no_checkpoint_yet(tmp_path):
    run = Run(tmp_path)
    metrics(tmp_path, 1)
    run.directory.arguments.write_text('{"seed": 1, "output_dir": "y"}')
    run.end()
    assert start(tmp_path, resume="auto").checkpoint is None
    assert aside(tmp_path) == {"started-over/metrics.csv"}


@pytest.mark.parametrize(("arguments", "message"), [({"seed": 2}, "seed 1 -> 2"), (ARGUMENTS, "finished run")])
def test_auto_does_not_start_over_another_run(tmp_path, arguments, message):
    run = Run(tmp_path)
    metrics(tmp_path, 1)
    run.directory.arguments.write_text('{"seed": 1, "output_dir": "y"}')
    if message == "finished run":
        run.directory.status.write(state="finished")
    run.end()
    with pytest.raises(FileExistsError, match=message):
        start(tmp_path, resume="auto", arguments=arguments)
    assert (tmp_path / "metrics.csv").exists()


def test_auto_refuses_where_all_is_broken(tmp_path):
    start(tmp_path, 3)
    (tmp_path / "checkpoint-3" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no valid checkpoint"):
        start(tmp_path, resume="auto")


def test_a_broken_checkpoint_by_name_is_refused(tmp_path):
    start(tmp_path, 2)
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        start(tmp_path, resume=str(tmp_path / "checkpoint-2"))
    assert read_status(tmp_path)["state"] == "failed"  # it never said how it ended


arguments = partial(
    quick_arguments, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=2, learning_rate=1e-3,
    learning_rate_encoder=1e-3, metric_for_best_model=None,
)  # fmt: skip


def test_resume_without_a_checkpoint_is_an_error(tmp_path, tiny_model, shapes):
    args = arguments(tmp_path, max_steps=1, eval_strategy="no")
    with pytest.raises(FileNotFoundError, match="no valid checkpoint"):
        RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=True)
