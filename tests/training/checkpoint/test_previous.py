"""Checkpoints of earlier formats."""

import shutil

from helpers.checkpoints import arguments, rewrite
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.checkpoint.previous import with_present_names


def test_scores_of_earlier_checkpoints_get_their_present_names(tmp_path, caplog):
    """Raw and EMA weights, two data sets: the best of both competed under the name of the raw ones."""
    arguments = {"use_ema": True, "eval_raw_weights": True, "metric_for_best_model": "map"}
    row = {"eval_map": 0.1, "eval_ema_map": 0.2, "eval_day_map": 0.3, "eval_day_ema_map": 0.4, "eval_runtime": 5.0}
    stopping = {"args": {"metric": "ema_map", "patience": 1}, "attributes": {"best": 0.2}}
    callbacks = {"log_history": [{"loss": 1.0, "step": 1}, row], "stateful_callbacks": {"EarlyStopping": stopping}}
    progress, now = with_present_names(tmp_path, {"format": 2, "arguments": arguments}, callbacks)
    assert progress["arguments"]["metric_for_best_model"] == "map,raw_map"
    assert now["log_history"] == [
        {"loss": 1.0, "step": 1},
        {"eval_raw_map": 0.1, "eval_map": 0.2, "eval_day_raw_map": 0.3, "eval_day_map": 0.4, "eval_runtime": 5.0},
    ]
    assert now["stateful_callbacks"]["EarlyStopping"]["args"]["metric"] == "map"
    assert "is called eval_map now" in caplog.text
    for version, use_ema in ((3, True), (2, False)):
        kept = {"format": version, "arguments": arguments | {"use_ema": use_ema}}
        assert with_present_names(tmp_path, kept, callbacks) == (kept, callbacks)


class Counting(ExportableState, TrainerCallback):
    """A user's callback; earlier versions saved states without "args"."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


def test_states_of_callbacks_without_arguments_are_taken_from_earlier_checkpoints(
    tmp_path, two_checkpoints, tiny_model, shapes, caplog
):
    root, counting = tmp_path / "run", Counting()
    shutil.copytree(two_checkpoints, root)
    earlier = {"Counting": {"attributes": {"steps": 40}}, "Gone": {"attributes": {"a": 1}}}
    rewrite(root / "checkpoint-2", "trainer_state.json", lambda content: content.update(stateful_callbacks=earlier))
    args = arguments(root, max_steps=3, eval_strategy="no")
    RFDETRTrainer(tiny_model(), args, shapes, callbacks=[counting]).train(resume_from_checkpoint=True)
    assert counting.steps == 41
    assert "has a state of Counting without its arguments: the attributes are restored" in caplog.text
    assert "has a state of Gone, and this run has no such callback" in caplog.text
