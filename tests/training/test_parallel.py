from functools import partial

import pytest
import torch
from helpers.runs import quick_arguments
from torch._dynamo.utils import counters

from rfdetr_hf import RFDETRTrainer

SHAPES = 12  # images of the fixture `shapes`


arguments = partial(
    quick_arguments, max_steps=4, gradient_accumulation_steps=1, logging_steps=1, eval_strategy="no",
    save_strategy="no",
)  # fmt: skip


def test_a_compiled_run_is_the_same_run_with_three_graphs(tmp_path, tiny_model, shapes):
    # Several scales, drop path from the second epoch on, and evaluations between whose last batch is smaller.
    options = {
        "max_steps": 12, "multi_scale": "per_batch", "drop_path": 0.2, "drop_path_mode": "late",
        "drop_path_cutoff_epochs": 1, "eval_strategy": "epoch", "per_device_eval_batch_size": 2, "logging_steps": 1,
        "learning_rate": 1e-4, "learning_rate_encoder": 1e-4,
    }  # fmt: skip
    small = {"decoder_layers": 1, "backbone_config": {"num_hidden_layers": 1, "out_indices": [1]}}
    runs = []
    for compile in (False, True):
        torch._dynamo.reset()
        counters["stats"].clear()
        compiled = {"torch_compile": True, "torch_compile_backend": "eager"} if compile else {}
        args = arguments(tmp_path / str(compile), **options, **compiled)
        trainer = RFDETRTrainer(tiny_model(**small), args, shapes, shapes.select(range(5)))
        trainer.train()
        logs = trainer.state.log_history
        runs.append([[log[name] for log in logs if name in log] for name in ("loss", "eval_map")])
    torch._dynamo.reset()
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4) and len(runs[0][0]) == 12
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-3) and len(runs[0][1]) == 2
    assert 1 < counters["stats"]["unique_graphs"] <= 4
