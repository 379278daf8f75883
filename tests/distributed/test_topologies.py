"""The same training on one process and on two, in every way of spreading it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import run
from safetensors.torch import load_file

from rfdetr_hf import RFDETRForObjectDetection

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or not (shutil.which("g++") and shutil.which("ninja")),
    reason="needs deepspeed, g++ and ninja",
)
ZERO = [pytest.param(f"zero{stage}", marks=[pytest.mark.slow, needs_deepspeed]) for stage in range(4)]
# Eight images a step on any number of processes. Both rates at 1e-4: rounding differs from one way of adding up to
# another, and a large rate lets the trainings drift apart.
ONE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CURVE = {"save_strategy": "steps", "save_steps": 20, "learning_rate": 1e-4, "learning_rate_encoder": 1e-4}


def record(job):
    return json.loads(Path(job["record"]).read_text())


@pytest.fixture
def reference(job, tmp_path):
    """The run of one process."""
    one = job("one", record=str(tmp_path / "one.json"), options=CURVE | ONE)
    run(one)
    return one


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", *ZERO])
def test_two_processes_train_as_one(job, reference, tmp_path, kind):
    two = job(kind, record=str(tmp_path / "two.json"), rank_seeds=True, options=CURVE | TWO)
    run(two, world=2, kind=kind)
    one, other = record(reference), record(two)
    assert len(one["losses"]) == 20
    torch.testing.assert_close(torch.tensor(other["losses"]), torch.tensor(one["losses"]), rtol=1e-5, atol=0)
    assert one["rates"] == other["rates"] and len(set(one["rates"].values())) > 3
    for file in ("checkpoint-20/ema.safetensors", "checkpoint-20/model.safetensors", "last/model.safetensors"):
        ours, theirs = (load_file(Path(each["output_dir"]) / file) for each in (reference, two))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{file} {name}")
    RFDETRForObjectDetection.from_pretrained(Path(two["output_dir"]) / "last")
