"""Kill a run again and again at random instants and compare what it ends with: `kill.py FOLDER WORLD KILLS STEPS`.

A run that is never disturbed comes first. Its twin is started, killed with SIGKILL after a random time, resumed, killed
again… Every fourth kill waits for a save to begin, to hit it in the middle. At the end the weights, the average, the
optimizer's state and `metrics.csv` of both have to be the same, bit for bit.
"""

import json
import random
import re
import sys
import time
from pathlib import Path

import torch
from launching import LIMIT, finish, run, start
from safetensors.torch import load_file


def job_of(folder, name, steps, async_save=False, **fields):
    options = {
        "max_steps": steps, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "eval_strategy": "steps",
        "eval_steps": 20, "logging_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
        "drop_path": 0.1, "lr_scheduler_type": "cosine", "early_stopping_patience": 50, "async_save": async_save,
    }  # fmt: skip
    job = {"output_dir": str(folder / name), "config": str(folder / "config"), "options": options}
    return job | {"images": 12, "held_out": 5, **fields}


def wait_for_save(output_dir, processes, limit=LIMIT):
    """Wait until a save has begun, or the processes are gone, or the time is over."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
        if any(Path(output_dir).glob(".tmp-checkpoint-*")):
            return True
        time.sleep(0.002)
    return False


def disturb(job, world, kills, rng, kind="ddp"):
    """Run to the end over `kills` kills at random instants; returns how many hit a save."""
    inside = 0
    for number in range(kills):
        processes = start(job | {"resume": "auto"}, world, kind)
        if number % 4 == 3:
            wait_for_save(job["output_dir"], processes)
            time.sleep(rng.uniform(0, 0.05))
        else:
            wait_for_training(job["output_dir"], processes)
            time.sleep(rng.uniform(0, 1.2))
        if any(p.poll() is not None for p in processes):
            raise AssertionError(f"ended before kill {number + 1}: {finish(processes)}")
        for process in processes:
            process.kill()
        finish(processes)
        inside += any(Path(job["output_dir"]).glob(".tmp-*"))
    run(job | {"resume": "auto"}, world, kind)
    return inside


def wait_for_training(output_dir, processes, limit=LIMIT):
    """Wait until the started processes have logged a step."""
    log, deadline = Path(output_dir) / "train.log", time.monotonic() + limit
    size = log.stat().st_size if log.exists() else 0
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
        if log.exists() and re.search(rb" step \d+/\d+ epoch ", log.read_bytes()[size:]):
            return
        time.sleep(0.01)


def differences(one, two, steps):
    """Names of what differs between two run directories."""
    one, two = Path(one), Path(two)
    found = []
    for file in (f"checkpoint-{steps}/model.safetensors", f"checkpoint-{steps}/ema.safetensors",
                 "last/model.safetensors", "best/model.safetensors"):  # fmt: skip
        ours, theirs = load_file(one / file), load_file(two / file)
        found += [f"{file}: {n}" for n in ours.keys() | theirs.keys() if not torch.equal(ours[n], theirs[n])]
    for file in sorted((one / f"checkpoint-{steps}" / "optimizer").iterdir()):
        if file.read_bytes() != (two / f"checkpoint-{steps}" / "optimizer" / file.name).read_bytes():
            found.append(f"optimizer/{file.name}")
    if (one / "metrics.csv").read_text() != (two / "metrics.csv").read_text():
        found.append("metrics.csv")
    return found


def compare(folder, world, kills, steps, kind="ddp", seed=0, async_save=False):
    """The undisturbed run, the killed one, and what differs between them; returns figures."""
    whole, killed = job_of(folder, "whole", steps), job_of(folder, "killed", steps, async_save)
    run(whole, world, kind)
    inside = disturb(killed, world, kills, random.Random(seed), kind)
    return {"kills": kills, "in a save": inside, "different": differences(folder / "whole", folder / "killed", steps)}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(json.dumps(compare(root, *map(int, sys.argv[2:5]))))
