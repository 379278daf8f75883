"""Pictures whose objects are painted in colours of their own, to be found again behind any augmentation."""

import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from rfdetr_hf import KeypointSchema
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.data.masks import resample_masks
from rfdetr_hf.data.pipeline.loader import DetectionDataset
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import detection_features

LEVELS = np.array([60, 130, 200, 255])
COLOURS = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), -1).reshape(-1, 3)[1:]  # 63, none of them near black
OWN = ("mosaic", "copy_paste", "vertical_flip", "rotate_90")


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
    """The schema of the keypoints."""
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
