"""Augmentations of users: keypoints stay on their pixels whatever the libraries' conventions; lambdas and workers."""

import multiprocessing

import numpy as np
import pytest
from PIL import Image

from rfdetr_hf import adapt_augmentation, make_shapes_dataset
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.pixels import pixels_from_pil
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.pipeline.view import Sample

RESIZES = ("resize", "half", "flip and resize", "resize and flip", "crop and resize", "rotate by 90", "affine")


def transforms_of(library, name):
    if library == "albumentations":
        a = pytest.importorskip("albumentations")
        return {
            "resize": a.Resize(192, 256, p=1),
            "half": a.Resize(48, 64, p=1),
            "flip and resize": a.Compose([a.HorizontalFlip(p=1), a.Resize(192, 256, p=1)]),
            "resize and flip": a.Compose([a.Resize(192, 256, p=1), a.HorizontalFlip(p=1)]),
            "crop and resize": a.Compose([a.Crop(10, 10, 110, 90, p=1), a.Resize(160, 200, p=1)]),
            "rotate by 90": a.Compose([a.Rotate((90, 90), p=1), a.Resize(192, 256, p=1)]),
            "affine": a.Affine(scale=1.5, p=1),
        }[name]
    v2 = pytest.importorskip("torchvision").transforms.v2
    return {
        "resize": v2.Resize((192, 256)),
        "half": v2.Resize((48, 64)),
        "flip and resize": v2.Compose([v2.RandomHorizontalFlip(1), v2.Resize((192, 256))]),
        "resize and flip": v2.Compose([v2.Resize((192, 256)), v2.RandomHorizontalFlip(1)]),
        "crop and resize": v2.Compose([v2.CenterCrop((80, 100)), v2.Resize((160, 200))]),
        "rotate by 90": v2.Compose([v2.RandomRotation((90, 90)), v2.Resize((192, 256))]),
        "affine": v2.RandomAffine(0, scale=(1.5, 1.5)),
    }[name]


@pytest.mark.parametrize("library", ["albumentations", "torchvision"])
@pytest.mark.parametrize("name", RESIZES)
def test_keypoints_stay_on_their_pixels_when_the_image_is_scaled(library, name):
    """A white square of 4 x 4 pixels around each keypoint: its centre of mass is where the keypoint is."""
    points = np.array([[50.0, 40.0], [70.0, 50.0]])
    pixels = np.zeros((96, 128, 3), np.uint8)
    boxes = np.array([[30, 24, 90, 72]], np.float32)
    for index in range(2):
        each = pixels.copy()
        x, y = points[index].astype(int)
        each[y - 2 : y + 2, x - 2 : x + 2] = 255
        target = {
            "boxes": boxes.copy(),
            "class_labels": np.zeros(1, np.int64),
            "area": np.array([60.0 * 48], np.float32),
            "iscrowd": np.zeros(1, bool),
            "keypoints": np.array([[[*points[index], 2]]], np.float32),
        }
        sample = Sample(pixels_from_pil(Image.fromarray(each)), target, 0, (96, 128))
        augment = adapt_augmentation(transforms_of(library, name), np.zeros((1, 1), np.int64))
        moved = augment(sample, np.random.default_rng(0))
        grey = moved.image.float().mean(0).numpy()
        ys, xs = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]] + 0.5
        centre = np.array([(xs * grey).sum(), (ys * grey).sum()]) / grey.sum()
        np.testing.assert_allclose(moved.target["keypoints"][0, 0, :2], centre, atol=0.12)


def test_a_lambda_under_spawn_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "spawn")
    transform = build_train_transform(32, multi_scale="off", augmentation=lambda image, target: (image, target))
    with pytest.raises(TypeError, match="top of a module.*num_workers=0"):
        build_train_dataloader(make_shapes_dataset(4), transform, LoaderOptions(batch_size=2, num_workers=1))
    build_train_dataloader(make_shapes_dataset(4), transform, LoaderOptions(batch_size=2, num_workers=0))


def test_boxes_of_another_convention_are_refused():
    def as_sizes(image, target):
        boxes = np.array(target["boxes"], np.float32)
        boxes[:, 2:] -= boxes[:, :2]
        return image, {**target, "boxes": boxes}

    target = {"boxes": np.array([[30, 30, 40, 40]], np.float32), "class_labels": np.zeros(1, np.int64),
              "area": np.array([100], np.float32), "iscrowd": np.zeros(1, bool)}  # fmt: skip
    sample = Sample(pixels_from_pil(Image.new("RGB", (64, 64))), target, 0, (64, 64))
    with pytest.raises(ValueError, match="boxes that end before they begin"):
        adapt_augmentation(as_sizes)(sample, np.random.default_rng(0))
