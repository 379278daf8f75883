"""`per_device_train_batch_size: auto` on two processes of different memory."""

from pathlib import Path

import pytest
import yaml
from launching import run

NAMES = ("per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size")
GB, MB = 2**30, 2**20
OPTIONS = {
    "per_device_train_batch_size": "auto", "gradient_accumulation_steps": None, "total_train_batch_size": 8,
    "multi_scale": "off", "max_steps": 1,
}  # fmt: skip


def sizes(job):
    recorded = yaml.safe_load((Path(job["output_dir"]) / "args.yaml").read_text())
    return tuple(recorded[name] for name in NAMES)


@pytest.mark.slow
def test_all_processes_take_what_the_least_memory_holds(job):
    # Four images need 5.8 MB, two 3.7; each of the two processes may use a half of its half of the free memory.
    made = job("run", options=OPTIONS, free_memory=[GB, 19 * MB])
    run(made, world=2)
    assert sizes(made) == (2, 2, 8)
