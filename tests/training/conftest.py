import json

import pytest
from helpers.hostile import write_coco
from helpers.models import TINY_OVERRIDES as TINY

from rfdetr_hf import make_shapes_dataset
from rfdetr_hf.cli import fit


@pytest.fixture(scope="module")
def held_out():
    return make_shapes_dataset(6, image_size=64, seed=2)


@pytest.fixture(scope="session")
def hostile_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, {"train": 8, "valid": 5, "test": 3})
    return folder


@pytest.fixture(scope="session")
def hostile_run(hostile_data, tmp_path_factory):
    """A run of the command with all its pictures."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    words = ["--model_name_or_path", "nano", "--from_scratch", "--config_overrides", json.dumps(TINY)]
    words += ["--resolution", "64", "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2"]
    words += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--logging_steps", "1"]
    words += ["--dataset_name", str(hostile_data), "--output_dir", str(folder), "--dataloader_num_workers", "0"]
    assert fit.main([*words, "--disable_tqdm", "--save_strategy", "no", "--learning_rate", "1e-3"]) == 0
    return folder
