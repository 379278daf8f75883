"""Mirrors and quarter turns."""

import numpy as np
import pytest
import torch

from rfdetr_hf.data.pipeline.turns import Rotate90, VerticalFlip
from rfdetr_hf.data.pipeline.view import Sample


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
