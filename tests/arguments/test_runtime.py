"""What callbacks read of the process in the arguments."""

import torch
from helpers.runs import quick_arguments
from transformers import TrainerCallback

from rfdetr_hf import RFDETRTrainer

SHAPES = 8  # images of the fixture `shapes`
SHORT = {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "no", "save_strategy": "no"}


def test_callbacks_find_the_facts_of_the_process_in_the_arguments(tmp_path, tiny_model, shapes):
    seen = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            names = ("device", "n_gpu", "world_size", "process_index", "local_process_index", "local_rank",
                     "train_batch_size", "eval_batch_size", "should_save", "should_log", "logging_dir")  # fmt: skip
            seen.update({name: getattr(args, name) for name in names})

    RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), shapes, callbacks=[Look()]).train()
    assert isinstance(seen.pop("device"), torch.device) and seen.pop("n_gpu") in (0, 1)
    assert seen == {
        "world_size": 1, "process_index": 0, "local_process_index": 0, "local_rank": 0, "train_batch_size": 2,
        "eval_batch_size": 2, "should_save": True, "should_log": True, "logging_dir": str(tmp_path / "runs"),
    }  # fmt: skip
