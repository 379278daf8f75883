import pytest
import torch
from datasets import DatasetDict

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
