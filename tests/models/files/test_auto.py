import json

import pytest
import torch
from helpers.models import load_detector

from rfdetr_hf import RFDETRForInstanceSegmentation, RFDETRImageProcessor, load_model, load_processor


@pytest.mark.parametrize("size", ["5GB", "100KB"])
def test_variant_of_the_files(saved, size):
    model, folder = saved
    plain = model.query_feat.weight.clone()
    with torch.no_grad():
        model.query_feat.weight += 1
    model.save_pretrained(folder, variant="ema", max_shard_size=size)
    assert torch.equal(load_detector(folder, variant="ema").query_feat.weight, model.query_feat.weight)
    assert torch.equal(load_detector(folder).query_feat.weight, plain)
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_model(folder, variant="ema").query_feat.weight, model.query_feat.weight)
    with pytest.raises(FileNotFoundError, match=r"neither model.old.safetensors nor model.safetensors.index.old.json"):
        load_detector(folder, variant="old")


def test_processor_that_is_damaged_is_not_replaced_by_the_standard_one(model_folder):
    assert load_processor(model_folder, 64).size["height"] == 64
    (model_folder / "preprocessor_config.json").write_text("{")
    with pytest.raises((ValueError, OSError), match="preprocessor_config.json"):
        load_processor(model_folder, 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"image_std": [0.1, 0.0, 0.1]},
        {"image_std": -1},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": None},
        {"image_mean": "grey"},
        {"rescale_factor": float("nan")},
        {"rescale_factor": 0},
        {"do_normalize": "yes"},
        {"size": {"height": -4, "width": 64}},
        {"size": {"height": 0, "width": 0}},
        {"size": {"height": 10**9, "width": 64}},
        {"size": True},
        {"rescale_factor": [1]},
        {"image_std": [True] * 3},
        {"resample": 99},
    ],
)
def test_fields_of_a_processor_that_are_wrong(model_folder, fields):
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(model_folder)
    file = model_folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(ValueError) as caught:
        load_processor(model_folder, 64)
    assert "preprocessor_config.json" in str(caught.value) and str(model_folder) in str(caught.value)


def test_model_of_another_task(model_folder):
    with pytest.raises(ValueError, match="use RFDETRForObjectDetection"):
        RFDETRForInstanceSegmentation.from_pretrained(model_folder)
