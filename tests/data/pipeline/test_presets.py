"""Augmentation presets: what they make of samples, and what options may change."""

import math

import pytest
import torch
from helpers.painted import OWN, samples

from rfdetr_hf.choices import AUGMENTATIONS
from rfdetr_hf.data.pipeline.presets import STRONG, TRANSFORMS, read_augmentation


@pytest.mark.parametrize("preset", AUGMENTATIONS)
def test_presets_make_samples(preset):
    members = read_augmentation(preset)
    if any(name not in (*OWN, *STRONG, "scale_jitter", "horizontal_flip") for name in members):
        pytest.importorskip("torchvision")
    for sample in samples(preset, count=6):
        assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 160, 160)
        assert len({len(values) for values in sample.target.values()}) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("aerail", "preset='aerail' is not known; did you mean 'aerial'"),
        ({"preset": "no"}, "preset='no' is not known"),
        ({"mosiac": 0.5}, "'mosiac' is not known; did you mean 'mosaic'"),
        ({"mosaic": {"probabilty": 0.5}}, "mosaic has no 'probabilty'; did you mean 'probability'"),
        ({"mosaic": {"scale": 0.5}}, "mosaic needs its probability"),
        ({"mosaic": 1.5}, r"mosaic: probability=1.5 must be a number, in \[0, 1\]"),
        ({"blur": {"probability": 1, "sigma": [2, 1]}}, "blur: sigma=.* the two ends"),
        ({"copy_paste": {"probability": 1, "max_objects": 1.5}}, "max_objects=1.5 is not a whole number"),
        ({"jpeg": {"probability": 1, "quality": [0, 50]}}, "quality=0 must be a number, in"),
        ({"scale_jitter": 1}, "scale_jitter=1 is neither true nor false"),
        ({"horizontal_flip": "often"}, "horizontal_flip='often' must be a number"),
        ({"rotate": {"probability": True}}, "probability=True must be a number"),
        ({3: 0.5}, "3 is not known"),
    ],
)
def test_what_an_augmentation_cannot_hold_is_named(value, message):
    with pytest.raises(ValueError, match=f"augmentation: .*{message}"):
        read_augmentation(value)


def test_a_mapping_changes_its_preset():
    members = read_augmentation({"preset": "industrial", "blur": 0, "noise": 0.9, "mosaic": {"probability": 0.25}})
    assert "blur" not in members and members["noise"] == {"sigma": (0.01, 0.05), "probability": 0.9}
    assert members["mosaic"] == {"scale": (0.5, 1.0), "probability": 0.25} and members["horizontal_flip"] == 0.3
    assert [name for name in members if name in TRANSFORMS] == ["mosaic", "color", "noise"]
    assert math.isclose(read_augmentation({"preset": "industrial", "color": {"hue": 0.2}})["color"]["probability"], 0.5)
