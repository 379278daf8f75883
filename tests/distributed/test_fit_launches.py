"""`rfdetr-hf fit --num_processes 2` is a training on two processes without a launcher, with signals and exit code."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from datasets import DatasetDict
from helpers.models import TINY_OVERRIDES as TINY

from rfdetr_hf import make_shapes_dataset, read_status
from rfdetr_hf.training.checkpoint.reading import CheckpointFiles


@pytest.mark.timeout(600)
def test_fit_starts_two_processes_that_train_together_save_at_a_signal_and_answer_with_75(tmp_path):
    run, data = tmp_path / "run", str(tmp_path / "shapes")
    DatasetDict(train=make_shapes_dataset(8, image_size=64, seed=1)).save_to_disk(data)
    words = [
        data, "--from_scratch", "--imgsz", "64", "--config_overrides", json.dumps(TINY), "--output_dir",
        str(run), "--max_steps", "2000", "--batch_size", "1", "--grad_accum_steps", "1", "--eval_strategy", "no",
        "--save_strategy", "steps", "--save_steps", "5", "--audit", "off", "--multi_scale", "off", "--workers", "0",
        "--device", "cpu", "--num_processes", "2",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "rfdetr_hf.cli", "fit", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 400
    while not list(run.glob("checkpoint-*/manifest.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    try:
        out, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 75, out[-4000:]
    assert "2 processes on the CPU" in out and read_status(run)["state"] == "preempted"
    hint = r"Go on from there with:\n  rfdetr-hf fit \S+ .*--num_processes 2 --resume$"
    assert re.search(hint, out, re.M)
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(CheckpointFiles(newest).tree("rank_states.safetensors")) == 2
