"""Presets and their transforms: pixels, boxes, masks and keypoints stay together, at random parameters.

Each object of a painted data set is a rectangle in a colour of its own, which is its class too, with a keypoint in its
middle: what a transform did to the pixels can be read off the picture.
"""

import io
import math
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from rfdetr_hf.choices import AUGMENTATIONS
from rfdetr_hf.data.keypoints import ClassKeypoints, KeypointSchema
from rfdetr_hf.data.masks import resample_masks
from rfdetr_hf.data.pipeline.composition import mixup
from rfdetr_hf.data.pipeline.loader import DetectionDataset, LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.presets import STRONG, TRANSFORMS, read_augmentation
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.pipeline.turns import Rotate90, VerticalFlip
from rfdetr_hf.data.pipeline.view import Sample
from rfdetr_hf.data.schema import detection_features

LEVELS = np.array([60, 130, 200, 255])
COLOURS = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), -1).reshape(-1, 3)[1:]  # 63, none of them near black
OWN = ("mosaic", "copy_paste", "vertical_flip", "rotate_90")
GEOMETRIC = ("rotate", "affine")
COLOURING = ("color", "grayscale", "blur", "noise", "jpeg")


def painted(images=6, fields=("masks", "keypoints"), seed=0):
    """Images of different sizes on black, each with a few rectangles that do not touch."""
    rng, rows, free = np.random.default_rng(seed), [], list(range(len(COLOURS)))
    for index in range(images):
        width, height = (int(side) for side in rng.integers(90, 200, 2))
        pixels, objects = (
            np.zeros((height, width, 3), np.uint8),
            {name: [] for name in ("id", "bbox", "category", "area", "iscrowd", "segmentation", "keypoints")},
        )
        for place in rng.permutation(9)[: rng.integers(1, 6)]:
            left, top = (place % 3) * width // 3 + 3, (place // 3) * height // 3 + 3
            wide, high = int(rng.integers(14, width // 3 - 6)), int(rng.integers(14, height // 3 - 6))
            label = free.pop(0)
            pixels[top : top + high, left : left + wide] = COLOURS[label]
            corners = [left, top, left + wide, top, left + wide, top + high, left, top + high]
            values = {
                "id": len(objects["id"]), "bbox": [left, top, wide, high], "category": label, "area": wide * high,
                "iscrowd": False, "segmentation": {"polygons": [corners], "rle": None},
                "keypoints": [left + wide / 2, top + high / 2, 2],
            }  # fmt: skip
            for name, value in values.items():
                objects[name].append(value)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        for name, wanted in (("segmentation", "masks"), ("keypoints", "keypoints")):
            if wanted not in fields:
                objects.pop(name)
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "image_id": index, "width": width,
                     "height": height, "file_name": f"{index}.png", "objects": objects})  # fmt: skip
    keypoints = schema() if "keypoints" in fields else None
    names = [str(label) for label in range(len(COLOURS))]
    return Dataset.from_list(rows, features=detection_features(names, masks="masks" in fields, keypoints=keypoints))


def schema():
    return KeypointSchema((ClassKeypoints.of(["middle"], flip_pairs=()),) * len(COLOURS))


def samples(preset, fields=("masks", "keypoints"), count=24, side=160, seed=0, **options):
    """Samples of the loader's data set, positions 0 to count of the first epoch."""
    transform = build_train_transform(
        side, multi_scale="off", preset=preset, mask_downsample_ratio=1 if "masks" in fields else None,
        keypoint_schema=schema() if "keypoints" in fields else None, **options,
    )  # fmt: skip
    dataset = DetectionDataset(painted(fields=fields), transform, seed, train=True)
    return [dataset[0, position, position % len(dataset)] for position in range(count)]


def owner_of_pixels(sample):
    """(h, w) the label whose colour a pixel has; -1 for black, -2 for a blend."""
    pixels = sample.image.permute(1, 2, 0).numpy().astype(int)
    distance = np.abs(pixels[:, :, None] - COLOURS).max(axis=-1)
    owner = np.where(distance.min(axis=-1) <= 20, distance.argmin(axis=-1), -2)
    return np.where(pixels.max(axis=-1) < 20, -1, owner)


def assert_together(sample, tight=True, area=True):
    """Every object is where its colour is, and every colour has its object.

    An image may come twice into a picture; of the objects that are there twice only the colour is looked for.
    """
    owner, target = owner_of_pixels(sample), sample.target
    height, width = owner.shape
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    explained, inner = owner < 0, maximum_filter(owner, 3) == minimum_filter(owner, 3)
    for index, (label, (left, top, right, bottom)) in enumerate(
        zip(target["class_labels"], target["boxes"].tolist(), strict=True)
    ):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        inside = (columns > left - 1) & (columns < right + 1) & (rows > top - 1) & (rows < bottom + 1)
        mine = inside & (owner == label)
        explained |= mine
        if min(right - left, bottom - top) < 4:
            continue  # of slivers nothing but a blend is left
        assert mine.any(), (label, left, top, right, bottom)
        if (target["class_labels"] == label).sum() > 1:
            continue
        if tight:
            places = np.stack([columns[mine], rows[mine]])
            found = [*(places.min(axis=1) - 0.5), *(places.max(axis=1) + 0.5)]
            np.testing.assert_allclose([left, top, right, bottom], found, atol=2.1)
        if area and tight:
            assert target["area"][index] == pytest.approx(mine.sum(), rel=0.25, abs=2.5 * (right - left + bottom - top))
        if "masks" in target:
            region = (0, 0, *target["masks"].shape[:0:-1])
            mask = resample_masks(target["masks"][[index]], region, owner.shape)[0]
            assert mask[mine].mean() > 0.9, "the mask has the object's pixels"
            assert np.isin(owner[mask & inner], (label, -2)).all(), "and no others"
        if "keypoints" in target:
            x, y, visible = target["keypoints"][index, 0]
            if visible == 2 and min(right - left, bottom - top) > 8:
                near = owner[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2]
                assert (near == label).any(), "the middle of the object is on it"
    # What no object explains is a border that is blended to another colour by chance; the inside of none is.
    assert explained[inner].all()


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


def test_mixup_blends_pictures_and_has_the_objects_of_both():
    def picture(value, label):
        target = {"boxes": np.array([[label, 1, 5, 6]], np.float32), "class_labels": np.array([label]),
                  "area": np.ones(1, np.float32), "iscrowd": np.zeros(1, bool)}  # fmt: skip
        return Sample(torch.full((3, 8, 8), value, dtype=torch.uint8), target, label, (8, 8))

    rng, shares = np.random.default_rng(0), []
    for _ in range(30):
        mixed = mixup(picture(0, 1), lambda other: other, lambda see: see(picture(200, 2)), rng, alpha=2.0)
        assert mixed.target["class_labels"].tolist() == [1, 2] and mixed.target["boxes"][:, 0].tolist() == [1, 2]
        assert mixed.image_id == 1 and len(mixed.image.unique()) == 1
        shares.append(mixed.image[0, 0, 0].item() / 200)
    assert 0 < min(shares) < 0.3 and 0.7 < max(shares) < 1


def test_mixup_of_the_loader_has_both_objects_and_both_pictures():
    both = samples({"preset": "none", "mixup": 1.0}, count=12)
    alone = samples("none", count=12)
    for a, b in zip(both, alone, strict=True):
        n = len(b.target["boxes"])
        assert len(a.target["boxes"]) > n
        np.testing.assert_array_equal(a.target["boxes"][:n], b.target["boxes"])
        own = b.image.amax(0) > 60
        assert (a.image.amax(0)[own] > 15).all(), "the picture shows through"


def test_a_pasted_object_hides_what_is_below_it():
    """A rectangle that the pasted one covers is gone; one that is half covered ends at its border."""
    seen = samples({"preset": "none", "copy_paste": {"probability": 1.0, "max_objects": 5}}, count=60)
    alone = samples("none", count=60)
    dropped = shrunk = hidden = 0
    for a, b in zip(seen, alone, strict=True):
        left = dict(zip(a.target["class_labels"].tolist(), a.target["boxes"], strict=True))
        for label, box in zip(b.target["class_labels"].tolist(), b.target["boxes"], strict=True):
            dropped += label not in left
            shrunk += label in left and bool((left[label] != box).any())
        hidden += int((a.target["keypoints"][..., 2] == 1).sum())
        assert_together(a)
    assert shrunk and hidden, (dropped, shrunk, hidden)


def test_mirrors_swap_left_and_right_and_turns_do_not():
    """The left half is red, the right half green; a mirrored person's left hand is on the other half."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 10:30, 0] = pixels[10:30, 30:50, 1] = 255
    target = {"boxes": np.array([[10, 10, 50, 30]], np.float32), "class_labels": np.zeros(1, np.int64),
              "area": np.array([800], np.float32), "iscrowd": np.zeros(1, bool),
              "keypoints": np.array([[[20, 20, 2], [40, 20, 2], [0, 0, 0]]], np.float32)}  # fmt: skip
    sample = Sample(torch.from_numpy(pixels).permute(2, 0, 1), target, 0, (40, 60))
    swap = np.array([[1, 0, 2]])
    for seed in range(12):
        for step, first in ((VerticalFlip(1.0, swap), 1), (Rotate90(1.0), 0)):
            moved = step(sample, np.random.default_rng(seed))
            for point, channel in ((0, first), (1, 1 - first)):
                x, y, _ = moved.target["keypoints"][0, point]
                assert moved.image[channel, int(y), int(x)] == 255
            assert moved.target["keypoints"][0, 2].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="flip pairs"):
        VerticalFlip(1.0)(sample, np.random.default_rng(0))


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


@pytest.mark.parametrize("preset", AUGMENTATIONS)
def test_presets_make_samples(preset):
    members = read_augmentation(preset)
    if any(name not in (*OWN, *STRONG, "scale_jitter", "horizontal_flip") for name in members):
        pytest.importorskip("torchvision")
    for sample in samples(preset, count=6):
        assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, 160, 160)
        assert len({len(values) for values in sample.target.values()}) == 1


def test_without_torchvision_a_preset_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="blur, noise: needs torchvision; install the extra 'augment'"):
        build_train_transform(64, multi_scale="off", preset={"preset": "none", "blur": 0.5, "noise": 0.2})
    build_train_transform(64, multi_scale="off", preset={"preset": "aerial", "color": 0})


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


def test_a_joining_transform_needs_the_other_images():
    transform = build_train_transform(64, multi_scale="off", preset={"mixup": 1.0})
    target = {"boxes": np.zeros((0, 4), np.float32), "class_labels": np.zeros(0, np.int64),
              "area": np.zeros(0, np.float32), "iscrowd": np.zeros(0, bool)}  # fmt: skip
    with pytest.raises(ValueError, match="mixup join several images"):
        transform(Sample(Image.new("RGB", (64, 64)), target, 0, (64, 64)), np.random.default_rng(0))
