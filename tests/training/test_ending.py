"""How a run ends: with the best weights in memory, and with what is there to go on from."""

import logging
import signal
from functools import partial

import pytest
from helpers.runs import assert_same, metrics_rows, quick_arguments, weights
from safetensors.torch import load_file

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor, RFDETRTrainer, read_status
from rfdetr_hf.training import trainer
from rfdetr_hf.training.preemption import Preempted

arguments = partial(
    quick_arguments, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=2, learning_rate=1e-3,
    learning_rate_encoder=1e-3, metric_for_best_model=None,
)  # fmt: skip


def test_the_model_in_memory_is_the_best_one(tmp_path, tiny_model, shapes, held_out, caplog):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, held_out)
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        trainer.train()
    assert_same(weights(trainer.model), load_file(tmp_path / "best" / "model.safetensors"))
    assert any("the model in memory is the best: EMA weights of step" in message for message in caplog.messages)
    scored = {row["step"]: row["eval_map"] for row in metrics_rows(tmp_path) if row["eval_map"]}
    assert float(scored[str(trainer.state.best.step)]) == max(map(float, scored.values())) == trainer.state.best_metric
    again = RFDETRForObjectDetection.from_pretrained(tmp_path / "best")
    processor = RFDETRImageProcessor.from_pretrained(tmp_path / "best")
    args = arguments(tmp_path / "other")
    metrics = RFDETRTrainer(again, args, eval_dataset=held_out, image_processor=processor).evaluate()
    assert metrics["eval_map"] == trainer.state.best_metric


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_notice_before_the_first_step_is_an_early_end_that_goes_on_under_auto(
    tmp_path, tiny_model, shapes, monkeypatch, caplog, name
):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    args = partial(quick_arguments, tmp_path, max_steps=2, eval_strategy="no")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(trainer, "audit_splits", lambda *given: signal.raise_signal(getattr(signal, name)))
        RFDETRTrainer(tiny_model(), args(), shapes).train()
    assert "preempted before the first step" in caplog.text
    assert read_status(tmp_path)["state"] == "preempted" and not list(tmp_path.glob("checkpoint-*"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    RFDETRTrainer(tiny_model(), args(resume_from_checkpoint="auto"), shapes).train()
    assert read_status(tmp_path)["state"] == "finished"
