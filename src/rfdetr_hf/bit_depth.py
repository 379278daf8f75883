"""Pictures of more than 8 bits a channel: their real range, and their pixels in it.

Files of 16 bits hold what a camera of 10, 12 or 14 bits saw, floats lie between 0 and 1 or 0 and 255: the range is in
the numbers, not in the file's type. It is the smallest usual range that holds them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Largest values of the usual ranges: 8, 10, 12, 14, 16, 24 and 32 bits.
_TOPS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0, 2.0**24 - 1, 2.0**32 - 1)


_BITS_PER_SAMPLE = 258  # tag of TIFF

HEADER = 26
"""Bytes of a file that `depth_of_header` wants at least."""
SHALLOW, DEEP, CUT = range(3)
"""8 bits a channel; more; and more of which Pillow keeps the upper 8."""


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a channel."""
    return image.mode == "F" or image.mode.startswith("I")


def depth_of_header(head: bytes, source: Callable[[], Any]) -> int:
    """How Pillow reads a picture, by the beginning of its file: `SHALLOW`, `DEEP` or `CUT`.

    Args:
        head: its first `HEADER` bytes or more.
        source: gives its file or path, for the formats whose beginning does not say it.

    Raises:
        OSError, ValueError, SyntaxError: it is no picture.
    """
    if head.startswith(b"\x89PNG") and len(head) >= HEADER:
        # Bits and colour type; of colours and of grey with transparency Pillow itself keeps 8 bits.
        return SHALLOW if head[24] != 16 else DEEP if head[25] == 0 else CUT
    if head.startswith((b"\xff\xd8", b"GIF8", b"RIFF", b"BM", b"P6", b"P4")):
        return SHALLOW
    with Image.open(source()) as image:
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
        return DEEP if is_deep(image) else CUT if max(bits) > 8 else SHALLOW


def find_range(pixels: np.ndarray) -> tuple[float, float]:
    """The range (low, high) of the numbers of a deep picture.

    Raises:
        ValueError: a number is not finite.
    """
    if not np.isfinite(pixels).all():
        raise ValueError("it holds values that are not finite")
    low, high = min(0.0, float(pixels.min(initial=0))), float(pixels.max(initial=0))
    if pixels.dtype.kind == "f" and high <= 1.0 and low >= -1.0:
        return (-1.0 if low < 0 else 0.0), 1.0
    return low, next((top for top in _TOPS if high <= top), high)


def to_bytes(pixels: np.ndarray, value_range: Sequence[float] | None = None) -> np.ndarray:
    """Numbers of a deep picture as uint8: the upper 8 bits of its range; what lies beyond it is cut off.

    Args:
        pixels: (H, W).
        value_range: (low, high); None takes the picture's own.
    """
    low, high = find_range(pixels) if value_range is None else value_range
    shifted = pixels.astype(np.float64) - low
    span = high - low
    # Integers of k bits lose the lower k - 8, as a shift would; floats are rounded.
    scaled = np.round(shifted * (255 / span)) if span <= 2 else np.floor(shifted * (256 / (span + 1)))
    return scaled.clip(0, 255).astype(np.uint8)


def upright_rgb(image: Image.Image, value_range: Sequence[float] | None = None) -> Image.Image:
    """A picture of any depth as people see it: turned as its EXIF tag says, RGB of 8 bits.

    Args:
        image: of any mode.
        value_range: as for `to_bytes`, where the picture has more than 8 bits.
    """
    image = ImageOps.exif_transpose(image)
    if is_deep(image):
        image = Image.fromarray(to_bytes(np.asarray(image), value_range))
    # Pillow warns about palettes with transparency unless they pass through RGBA.
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
