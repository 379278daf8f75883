import pytest
import torch
import yaml
from datasets import DatasetDict
from helpers.command_lines import TINY

import rfdetr_hf
from rfdetr_hf import RFDETRImageProcessor, make_shapes_dataset
from rfdetr_hf.data.schema import keypoint_schema

MODELS = {
    "detection": "RFDETRForObjectDetection",
    "segmentation": "RFDETRForInstanceSegmentation",
    "keypoints": "RFDETRForKeypointDetection",
}


@pytest.fixture
def untrained(tmp_path, tiny_config):
    """The folders of a tiny model with random weights and of shapes for it: `untrained("segmentation")`."""

    def make(task):
        splits = {"train": 2, "validation": 6, "test": 4}
        shapes = {name: make_shapes_dataset(n, 64, seed=1, split=name, task=task) for name, n in splits.items()}
        DatasetDict(shapes).save_to_disk(tmp_path / f"shapes-{task}")
        overrides = {}
        if task == "keypoints":
            schema = keypoint_schema(shapes["train"])
            overrides = {"num_keypoints_per_class": schema.num_keypoints_per_class, "keypoint_schema": schema.to_dict()}
        torch.manual_seed(0)
        folder = tmp_path / f"model-{task}"
        getattr(rfdetr_hf, MODELS[task])(tiny_config(**overrides)).save_pretrained(folder)
        RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
        return str(folder), str(tmp_path / f"shapes-{task}")

    return make


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    splits = {"train": 16, "validation": 4, "test": 4}
    sets = {name: make_shapes_dataset(count, image_size=64, seed=count) for name, count in splits.items()}
    DatasetDict(sets).save_to_disk(folder)
    return folder


@pytest.fixture
def run_yaml(tmp_path, shapes_folder):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(shapes_folder), "output_dir": str(tmp_path / "run")}))
    return path


@pytest.fixture
def saved_model(tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"
