"""Segmentation and keypoints through the whole trainer: what it logs, splits of a step, and resuming."""

from functools import partial

import pytest
import torch
from helpers.runs import assert_same, metrics_rows, quick_arguments
from safetensors.torch import load_file
from transformers import TrainerCallback

from rfdetr_hf import (
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRTrainer,
    make_shapes_dataset,
)

SCHEMA = [1, 4, 3]  # keypoints of circles, squares and triangles
PREFIX = {"segmentation": "segm_", "keypoints": "keypoint_"}
TERMS = {
    "segmentation": {"loss_mask_ce", "loss_mask_dice"},
    "keypoints": {f"loss_keypoints_{term}" for term in ("l1", "findable", "visible", "nll")},
}


@pytest.fixture(scope="module", params=["segmentation", "keypoints"])
def task(request):
    return request.param


@pytest.fixture(scope="module")
def data(task):
    return [make_shapes_dataset(count, 64, seed, task=task) for count, seed in ((16, 1), (5, 2))]


@pytest.fixture
def build(task, tiny_config):
    """Builds a tiny model of the task: `build(seed)`."""

    def model(seed=0):
        torch.manual_seed(seed)
        if task == "segmentation":
            return RFDETRForInstanceSegmentation(tiny_config())
        return RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=SCHEMA))

    return model


arguments = partial(
    quick_arguments, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=2, learning_rate=1e-3,
    learning_rate_encoder=1e-3,
)  # fmt: skip


def test_a_run_scores_the_task(tmp_path, task, build, data):
    """EMA and raw weights are evaluated each by itself; the best model is that of the best task score."""
    metric = f"{PREFIX[task]}map"
    args = arguments(tmp_path, eval_raw_weights=True, eval_loss=True, eval_per_class=True,
                     metric_for_best_model=f"{metric},raw_{metric}")  # fmt: skip
    trainer = RFDETRTrainer(build(), args, *data)
    trainer.train()
    logged = {key: value for row in trainer.state.log_history for key, value in row.items()}
    for weights in ("", "raw_"):
        for name in ("map", "map_50", "map_75", "map_class_square"):
            assert -1 <= logged[f"eval_{weights}{PREFIX[task]}{name}"] <= 1
            assert f"eval_{weights}{name}" in logged
    assert TERMS[task] <= logged.keys() and {f"{name}_enc" for name in TERMS[task]} <= logged.keys()
    assert logged["eval_loss"] != logged["eval_raw_loss"]
    names = [f"eval_{weights}{metric}" for weights in ("", "raw_")]
    scored = [row[name] for row in trainer.state.log_history for name in names if name in row]
    assert len(scored) == 4 and trainer.state.best_metric == max(scored)
    best = type(build()).from_pretrained(tmp_path / "best")
    assert_same(best.state_dict(), trainer.model.state_dict())


def test_each_class_is_scored_with_its_own_sigmas(tmp_path, task, build, data):
    evaluator = RFDETRTrainer(build(), arguments(tmp_path, eval_strategy="no")).validation.create_evaluator(data[1])
    counts = {label: len(sigmas) for label, sigmas in (evaluator.sigmas or {}).items()}
    assert counts == (dict(enumerate(SCHEMA)) if task == "keypoints" else {})


def test_predictions_have_masks_or_keypoints(tmp_path, task, build, data):
    output = RFDETRTrainer(build(), arguments(tmp_path, eval_strategy="no")).predict(data[1])
    assert f"test_{PREFIX[task]}map" in output.metrics
    first = output.predictions[0]
    if task == "segmentation":
        assert len(first["masks"]) == len(first["scores"]) and set(first["masks"][0]) == {"size", "counts"}
    else:
        assert first["keypoints"].shape == (len(first["scores"]), max(SCHEMA), 3)


def test_one_batch_of_four_equals_four_batches_of_one(tmp_path, build, data):
    """In float64, to rounding: losses of each step and all weights at the end."""
    runs = []
    for name, batch, accumulation in (("large", 4, 1), ("small", 1, 4)):
        args = arguments(
            tmp_path / name, max_steps=5, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            eval_strategy="no", save_strategy="no", logging_steps=1,
        )  # fmt: skip
        trainer = RFDETRTrainer(build().double(), args, data[0])
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        terms = [{k: v for k, v in row.items() if k.startswith("loss")} for row in rows]
        runs.append((terms, load_file(tmp_path / name / "last" / "model.safetensors")))
    assert len(runs[0][0]) == 5
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
    for name, tensor in runs[0][1].items():
        torch.testing.assert_close(tensor, runs[1][1][name], rtol=1e-8, atol=1e-9, msg=name)


class Killer(TrainerCallback):
    """Stops the process as a power cut would, at the end of one step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("killed_at", [3, 6])
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(tmp_path, build, data, killed_at):
    options = {
        "save_strategy": "steps", "save_steps": 2, "multi_scale": "per_batch", "drop_path": 0.2, "logging_steps": 3,
        "save_total_limit": None, "eval_loss": True,
    }  # fmt: skip
    RFDETRTrainer(build(), arguments(tmp_path / "whole", **options), *data).train()
    args = arguments(tmp_path / "cut", **options)
    with pytest.raises(KeyboardInterrupt):
        RFDETRTrainer(build(), args, *data, callbacks=[Killer(killed_at)]).train()
    RFDETRTrainer(build(seed=5), args, *data).train(resume_from_checkpoint=True)
    for file in ("best/model.safetensors", "last/model.safetensors", "checkpoint-8/ema.safetensors"):
        assert_same(load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file))
    assert metrics_rows(tmp_path / "whole") == metrics_rows(tmp_path / "cut")
