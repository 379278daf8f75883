"""Pictures to predict on."""

import numpy as np
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture of this width and height, another for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture(height: int = 30, width: int = 41, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(height, width, channels) uint8, another for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
