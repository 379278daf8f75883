"""Segmentation and keypoints on one process and on two: the same training to rounding, the same scores."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import jobs_in
from launching import run, slow
from safetensors.torch import load_file

STEPS = 6
OPTIONS = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS, "eval_strategy": "steps", "eval_steps": STEPS,
    "learning_rate": 1e-4, "learning_rate_encoder": 1e-4, "per_device_train_batch_size": 1,
}  # fmt: skip
SCORES = {"segmentation": "eval_segm_map", "keypoints": "eval_keypoint_map"}


def options(accumulation):
    return OPTIONS | {"gradient_accumulation_steps": accumulation}


@pytest.fixture(scope="module", params=["segmentation", slow("keypoints")])
def reference(request, tmp_path_factory, tiny_config):
    """Builds jobs of a task, and the job of one process after its run."""
    schema = {"num_keypoints_per_class": [1, 4, 3]} if request.param == "keypoints" else {}
    build = jobs_in(tmp_path_factory.mktemp(request.param), tiny_config(**schema))

    def job(name, accumulation, **fields):
        made = build(name, task=request.param, double=True, held_out=5, options=options(accumulation), **fields)
        return made | {"record": made["output_dir"] + ".json"}

    one = job("one", 4)
    run(one)
    return job, one


def scores(job):
    with open(Path(job["output_dir"]) / "metrics.csv", newline="") as file:
        last = [row for row in csv.DictReader(file) if row[SCORES[job["task"]]]][-1]
    return {name: float(value) for name, value in last.items() if name.startswith("eval_") and value}


@pytest.mark.parametrize("kind", [slow("ddp"), "fsdp2"])
def test_two_processes_train_as_one(reference, kind):
    job, one = reference
    two = job(kind, 2, rank_seeds=True)
    run(two, world=2, kind=kind)
    losses = [json.loads(Path(each["record"]).read_text())["losses"] for each in (one, two)]
    assert len(losses[0]) == STEPS
    ours, theirs = (torch.tensor(each, dtype=torch.float64) for each in losses)
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=0)
    for file in (f"checkpoint-{STEPS}/ema.safetensors", "last/model.safetensors"):
        first, second = (load_file(Path(each["output_dir"]) / file) for each in (one, two))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, rtol=1e-8, atol=1e-9, msg=f"{file} {name}")
    assert scores(two) == pytest.approx(scores(one), abs=1e-3)
