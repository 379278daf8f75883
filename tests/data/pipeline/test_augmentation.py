"""Presets and their transforms: pixels, boxes, masks and keypoints stay together, at random parameters.

Each object of a painted data set is a rectangle in a colour of its own, which is its class too, with a keypoint in its
middle: what a transform did to the pixels can be read off the picture.
"""

import sys

import numpy as np
import pytest
import torch
from helpers.painted import OWN, assert_together, painted, samples
from PIL import Image

from rfdetr_hf.data.pipeline.loader import DetectionDataset, LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.pipeline.view import Sample

GEOMETRIC = ("rotate", "affine")
COLOURING = ("color", "grayscale", "blur", "noise", "jpeg")


def random_parameters(name, seed):
    rng = np.random.default_rng(seed)
    values = {"probability": 1.0}
    if name == "mosaic":
        low = rng.uniform(0.3, 1)
        values["scale"] = [low, rng.uniform(low, 1)]
    if name == "copy_paste":
        values["max_objects"] = int(rng.integers(1, 6))
    if name == "rotate":
        values["degrees"] = float(rng.uniform(1, 180))
    if name == "affine":
        values |= {"degrees": float(rng.uniform(0, 90)), "translate": float(rng.uniform(0, 0.3)),
                   "shear": float(rng.uniform(0, 20)), "scale": [0.7, float(rng.uniform(0.7, 1.4))]}  # fmt: skip
    return values


@pytest.mark.parametrize("fields", [(), ("masks",), ("keypoints",), ("masks", "keypoints")], ids=lambda f: "+".join(f))
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("square", [True, False])
def test_our_transforms_keep_objects_on_their_pixels(name, fields, square):
    for seed in range(3):
        preset = {"preset": "default", name: random_parameters(name, seed)}
        moved = samples(preset, fields, count=10, seed=seed, square=square)
        plain = samples("default", fields, count=10, seed=seed, square=square)
        for sample in moved:
            # Where there are no masks the area is that of a box, of which a pasted object may cover the middle.
            assert_together(sample, area=name != "copy_paste" or "masks" in fields)
        assert any(
            a.image.shape != b.image.shape or not torch.equal(a.image, b.image)
            for a, b in zip(moved, plain, strict=True)
        )


@pytest.mark.parametrize("name", GEOMETRIC)
def test_what_torchvision_moves_stays_together(name):
    pytest.importorskip("torchvision")
    for seed in range(4):
        for sample in samples({name: random_parameters(name, seed)}, count=8, seed=seed):
            # A turned box is the box of its turned corners, so it is not tight.
            assert_together(sample, tight=False)


@pytest.mark.parametrize("name", COLOURING)
def test_colour_transforms_change_pixels_alone(name):
    pytest.importorskip("torchvision")
    changed, plain = samples({name: 1.0}), samples("default")
    assert sum(not torch.equal(a.image, b.image) for a, b in zip(changed, plain, strict=True)) >= len(plain) - 2
    for a, b in zip(changed, plain, strict=True):
        assert a.image.shape == b.image.shape
        for field in b.target:
            np.testing.assert_array_equal(a.target[field], b.target[field])


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_functions_of_seed_epoch_and_position(workers):
    """However the loader works, and whatever global generators do."""
    preset = {"mosaic": 0.5, "mixup": 0.5, "copy_paste": 0.5, "vertical_flip": 0.5, "rotate_90": 0.5}

    def epoch_of(number, workers):
        transform = build_train_transform(96, multi_scale="off", preset=preset, mask_downsample_ratio=2)
        options = LoaderOptions(batch_size=3, seed=7, num_workers=workers)
        loader = build_train_dataloader(painted(fields=("masks",)), transform, options)
        loader.batch_sampler.set_epoch(number)
        torch.manual_seed(np.random.default_rng().integers(1000))
        return list(loader)

    first, again, other = epoch_of(2, workers), epoch_of(2, 0), epoch_of(3, 0)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"])
        for name, values in a["labels"].fields.items():
            assert torch.equal(values, b["labels"].fields[name])
    assert not all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(first, other, strict=True))


def test_the_last_epochs_join_no_images():
    transform = build_train_transform(96, multi_scale="off", preset={"mosaic": 1.0})
    transform.strong_until = 3
    dataset = DetectionDataset(painted(fields=()), transform, train=True)
    plain = DetectionDataset(painted(fields=()), build_train_transform(96, multi_scale="off"), train=True)
    for epoch, same in ((0, False), (2, False), (3, True), (9, True)):
        assert torch.equal(dataset[epoch, 1, 0].image, plain[epoch, 1, 0].image) is same


def test_the_default_is_the_recipe_bit_for_bit():
    given = samples("default")
    for a, b in zip(given, samples({}), strict=True):
        assert torch.equal(a.image, b.image)
    still = samples("none")
    assert all(torch.equal(a.image, b.image) for a, b in zip(still, samples("none", seed=5), strict=True))


def test_without_torchvision_a_preset_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="blur, noise: needs torchvision; install the extra 'augment'"):
        build_train_transform(64, multi_scale="off", preset={"preset": "none", "blur": 0.5, "noise": 0.2})
    build_train_transform(64, multi_scale="off", preset={"preset": "aerial", "color": 0})


def test_a_joining_transform_needs_the_other_images():
    transform = build_train_transform(64, multi_scale="off", preset={"mixup": 1.0})
    target = {"boxes": np.zeros((0, 4), np.float32), "class_labels": np.zeros(0, np.int64),
              "area": np.zeros(0, np.float32), "iscrowd": np.zeros(0, bool)}  # fmt: skip
    with pytest.raises(ValueError, match="mixup join several images"):
        transform(Sample(Image.new("RGB", (64, 64)), target, 0, (64, 64)), np.random.default_rng(0))
