"""The optimizer's state in a checkpoint."""

import numpy as np
import pytest
import torch
from helpers.checkpoints import arguments
from helpers.runs import assert_same, weights

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.checkpoint.directory import CheckpointError


def test_a_run_whose_optimizer_makes_nan_ends_with_the_names(tmp_path, tiny_model, shapes):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=0.0)  # divides 0 by 0
    args = arguments(tmp_path, max_steps=1, eval_strategy="no", use_ema=False)
    with pytest.raises(CheckpointError, match="NaN or infinite numbers in "):
        RFDETRTrainer(model, args, shapes, optimizers=(optimizer, None)).train()
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "last").exists()


class OwnOptimizer(RFDETRTrainer):
    """Names no parameters, has states of other shapes than theirs, and logs what a loss is."""

    def create_optimizer(self):
        return torch.optim.Adafactor(self.model.parameters(), lr=1e-3)

    def compute_loss(self, *args, **kwargs):
        self.log({"mine": torch.tensor(1.5), "array": np.ones(1, np.float32)})
        return super().compute_loss(*args, **kwargs)


def test_an_optimizer_of_another_make_and_logs_of_tensors_are_saved_and_taken_up(tmp_path, tiny_model, shapes):
    options = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    straight = OwnOptimizer(tiny_model(), arguments(tmp_path / "straight", max_steps=2, **options), shapes)
    straight.train()
    OwnOptimizer(tiny_model(), arguments(tmp_path / "run", max_steps=1, **options), shapes).train()
    trainer = OwnOptimizer(tiny_model(), arguments(tmp_path / "run", max_steps=2, **options), shapes)
    assert trainer.train(resume_from_checkpoint=True).global_step == 2
    assert_same(weights(straight.model), weights(trainer.model))
    assert {row["mine"] for row in trainer.state.log_history if "mine" in row} == {1.5}
    with pytest.raises(TypeError, match=r"log\(\): mine is a Tensor: give a number or a text"):
        trainer.log({"mine": torch.ones(2)})
