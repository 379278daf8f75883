"""Predictions as a YOLO data set."""

import tracemalloc

import numpy as np
import torch
from helpers.pictures import noise
from PIL import Image
from pycocotools import mask as mask_utils

from rfdetr_hf import NamedImage, load_detection_dataset
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.inference.yolo import YoloDataset, outline


def test_masks_become_polygons_that_are_read_as_the_masks(tmp_path):
    y, x = np.mgrid[:60, :80]
    masks = [(x - 30) ** 2 + (y - 25) ** 2 < 400, (x < 10) & (y > 40), np.zeros((60, 80), bool)]
    masks[0][25:28, 28:31] = False  # a hole, which a polygon does not have
    rles = [mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    found = {
        "scores": torch.ones(3),
        "labels": torch.tensor([0, 1, 1]),
        "boxes": torch.tensor([[10.0, 5.0, 50.0, 45.0], [0.0, 41.0, 10.0, 60.0], [1.0, 1.0, 2.0, 2.0]]),
        "masks": rles,
    }
    noise(5).save(tmp_path / "x.png")
    with YoloDataset(tmp_path / "out", {0: "disc", 1: "corner"}, [], 0.3) as yolo:
        yolo.add(NamedImage("x", tmp_path / "x.png", noise(5)), found, [])
    (row,) = load_detection_dataset(tmp_path / "out", task="segmentation")["train"]
    assert row["objects"]["category"] == [0, 1], "an empty mask has no polygon"
    np.testing.assert_allclose(row["objects"]["bbox"], [[11, 6, 39, 39], [0, 41, 10, 19]], atol=0.01)
    polygon = outline(masks[0])
    drawn = mask_utils.decode(mask_utils.frPyObjects([polygon.ravel().tolist()], 60, 80))[..., 0].astype(bool)
    filled = masks[0] | ((x - 30) ** 2 + (y - 25) ** 2 < 100)
    assert (drawn & filled).sum() / (drawn | filled).sum() > 0.98
    assert outline(rles[1]).tolist() == outline(masks[1]).tolist() and len(outline(masks[2])) == 0


def test_keypoints_become_rows_of_one_length(tmp_path):
    classes = [ClassKeypoints.of(["l", "r"], flip_pairs=[(0, 1)]), ClassKeypoints()]
    found = {
        "scores": torch.ones(2),
        "labels": torch.tensor([0, 1]),
        "boxes": torch.tensor([[10.0, 10.0, 30.0, 30.0], [40.0, 10.0, 60.0, 30.0]]),
        "keypoints": torch.tensor([[[12.0, 12.0, 0.9], [20.0, 20.0, 0.1]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]),
    }
    item = NamedImage("train-000001", tmp_path / "set", noise(6), row=1)
    with YoloDataset(tmp_path / "out", {0: "pair", 1: "none"}, classes, 0.3) as yolo:
        yolo.add(item, found, [])
    assert Image.open(tmp_path / "out" / "images" / "train-000001.png").tobytes() == item.image.tobytes()
    assert not (tmp_path / "out" / "images" / "train-000001.png").is_symlink()
    (row,) = load_detection_dataset(tmp_path / "out", task="keypoints")["train"]
    np.testing.assert_allclose(row["objects"]["keypoints"][0], [12, 12, 2, 0, 0, 0], atol=1e-3)
    assert row["objects"]["keypoints"][1] == [0] * 6


def test_an_outline_takes_the_memory_of_its_object():
    mask = np.zeros((2000, 1500), np.uint8)
    mask[700:740, 900:950] = 1
    mask[720:725, 910:915] = 0
    rle = mask_utils.encode(np.asfortranarray(mask))
    tracemalloc.start()
    found = outline(rle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * mask.size, "not the numbers of all pixels in 64 bits"
    corners = {(900, 700.5), (900, 739.5), (950, 700.5), (950, 739.5), (900.5, 700), (949.5, 700), (900.5, 740)}
    assert {*map(tuple, found.tolist())} == corners | {(949.5, 740)}
    whole = outline(np.ones((5, 7), bool))
    assert whole.min() == 0 and whole[:, 0].max() == 7 and whole[:, 1].max() == 5
    assert outline(np.eye(1)).tolist() == outline([[1]]).tolist() and len(outline(np.full((3, 3), 0.2))) == 0
