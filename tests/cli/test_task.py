"""The model says what the data must hold; options that say something else, or nothing, are errors."""

import json

import pytest
import yaml
from helpers.command_lines import TINY

from rfdetr_hf.cli.main import main

SEGMENTATION = {**TINY, "variant": "seg-nano", "max_steps": 1, "num_train_epochs": 1}


@pytest.fixture
def seg_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**SEGMENTATION, "output_dir": str(tmp_path / "run")}))
    return path


def test_the_variant_decides_what_is_read(seg_yaml, tmp_path):
    assert main(["fit", "--config", str(seg_yaml)]) == 0
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["architectures"] == ["RFDETRForInstanceSegmentation"]


def test_a_contradicting_task_is_an_error_before_anything_is_written(seg_yaml, tmp_path, capsys):
    assert main(["fit", "--config", str(seg_yaml), "--task", "keypoints"]) == 1
    assert "task='keypoints' contradicts the model, which is for segmentation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
