"""Runs that leave checkpoints, and checkpoints that tests change."""

import json
from functools import partial

from transformers import TrainerCallback

from helpers.runs import quick_arguments
from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.checkpoint.directory import checksum

arguments = partial(
    quick_arguments, num_train_epochs=3, gradient_accumulation_steps=2, logging_steps=1, save_total_limit=None,
)  # fmt: skip


class Stop(TrainerCallback):
    """Ends a run, or kills it, at the evaluation or saving of a step."""

    def __init__(self, stop_at=None, die_at=None, end_epoch_at=None):
        self.stop_at, self.die_at, self.end_epoch_at = stop_at, die_at, end_epoch_at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop |= state.global_step == self.end_epoch_at

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop_at

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.die_at:
            raise KeyboardInterrupt


def finish(model, args, data, resume=None, **callback):
    """Train to the end, or until `Stop` kills the run."""
    trainer = RFDETRTrainer(model, args, data, data, callbacks=[Stop(**callback)])
    try:
        trainer.train(resume)
    except KeyboardInterrupt:
        assert callback["die_at"]
    return trainer


def rewrite(checkpoint, file, change):
    """Change a JSON file of a checkpoint as if it had been saved so."""
    path = checkpoint / file
    if change is not None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][file] = {"size": path.stat().st_size, "sha256": checksum(path)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
