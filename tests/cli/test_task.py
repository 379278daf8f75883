"""The model says what the data must hold; options that say something else, or nothing, are errors."""

import json

import pytest
import yaml

from rfdetr_hf import DataArguments, ModelArguments
from rfdetr_hf.cli.main import main

from .test_main import TINY

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


def test_a_checkpoint_decides_what_is_read(tiny_config, tmp_path):
    from rfdetr_hf import RFDETRForInstanceSegmentation

    RFDETRForInstanceSegmentation(tiny_config()).save_pretrained(tmp_path / "model")
    assert ModelArguments(str(tmp_path / "model")).task == "segmentation"
    with pytest.raises(ValueError, match="variant='tiny' is not known; choose one of nano"):
        ModelArguments(variant="tiny")


def test_a_contradicting_task_is_an_error_before_anything_is_written(seg_yaml, tmp_path, capsys):
    assert main(["fit", "--config", str(seg_yaml), "--task", "keypoints"]) == 1
    assert "task='keypoints' contradicts the model, which is for segmentation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_of_other_data_and_tasks():
    with pytest.raises(ValueError, match="repeat_threshold=0.5 has no effect with sampling=None"):
        DataArguments(repeat_threshold=0.5)
    with pytest.raises(ValueError, match="missing_masks is for segmentation models"):
        DataArguments(missing_masks="box").load_options("detection")
    with pytest.raises(ValueError, match="keypoint_schema is for keypoint models"):
        DataArguments(keypoint_schema={"classes": []}).load_options("detection")
    assert DataArguments(keypoint_schema={"classes": []}).load_options("keypoints")["task"] == "keypoints"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": "m", "variant": "nano"}, "variant='nano' and model_name_or_path='m' exclude"),
        ({"model_name_or_path": "m", "from_scratch": True}, "model_name_or_path='m' is none; choose from nano"),
        (
            {"model_name_or_path": "m", "init_backbone_from": "d"},
            "init_backbone_from='d' has no effect with from_scratch=F",
        ),
        (
            {"model_name_or_path": "m.pth", "revision": "v1"},
            "revision='v1' has no effect with model_name_or_path='m.pth'",
        ),
        ({"revision": "v1", "from_scratch": True}, "revision='v1' has no effect with from_scratch"),
        ({"class_init": "tile", "from_scratch": True}, "class_init='tile' has no effect with from_scratch"),
        ({"rename_classes": {"a": "b"}, "class_init": "new"}, "has no effect with class_init='new'"),
        ({"model_name_or_path": ".", "revision": "v1"}, "revision='v1' has no effect with model_name_or_path='.'"),
    ],
)
def test_options_without_effect_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**options)
    assert ModelArguments().model_name_or_path == ModelArguments(variant="nano").variant == "nano"
    assert ModelArguments("m").variant is None
