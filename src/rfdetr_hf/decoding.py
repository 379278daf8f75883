"""JPEG files to pixels, by the decoder that a run names.

Pillow reads every picture. Another decoder takes over the JPEG files that need no more than their pixels, 8 bits of
colour; what it does not take, or finds a fault in, is Pillow's, so that faults are found and named alike.
"""

import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .choices import IMAGE_DECODERS, install_hint

PILLOW = IMAGE_DECODERS[0]
_DISTRIBUTIONS = {PILLOW: "pillow", "simplejpeg": "simplejpeg"}


@lru_cache
def require_decoder(name: str) -> str:
    """Look whether a decoder can be used, and say which version of it is installed: "simplejpeg 1.9.0".

    Raises:
        ValueError: nobody knows it.
        ImportError: its package is not installed.
    """
    if name not in IMAGE_DECODERS:
        raise ValueError(f"image_decoder={name!r} is not known; choose one of {', '.join(IMAGE_DECODERS)}")
    distribution = _DISTRIBUTIONS[name]
    try:
        return f"{name} {version(distribution)}"
    except PackageNotFoundError as error:
        raise ImportError(
            f"image_decoder={name!r} needs the package {distribution}: {install_hint('fast-jpeg')}, "
            f"or choose image_decoder={PILLOW!r}"
        ) from error


def decode_jpeg(data: bytes, size: tuple[int, int], reduction: int, decoder: str) -> np.ndarray | None:
    """Pixels of a JPEG file of three colours by another decoder than Pillow.

    Args:
        data: the file.
        size: (width, height) of the complete picture.
        reduction: 1, 2, 4 or 8: decode at this part of the size.
        decoder: one of `IMAGE_DECODERS`.

    Returns:
        uint8 (H, W, 3), or None where the file is Pillow's: the decoder is Pillow, or finds any fault in the file.
    """
    if decoder == PILLOW:
        return None
    import simplejpeg  # pyright: ignore[reportMissingImports]

    # Rounded up, as Pillow does. The smallest scale of this size is the reduction itself.
    width, height = (-(-side // reduction) if reduction > 1 else 0 for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=reduction)
    except ValueError:  # strict: also of files that are cut, which libjpeg fills up with grey
        return None
    expected = tuple(-(-side // reduction) for side in reversed(size))
    return pixels if pixels.shape[:2] == expected else None


def open_file(path: str | os.PathLike[str], decoder: str) -> Image.Image:
    """The image of a file, decoded, of any mode and not turned; with its EXIF data."""
    require_decoder(decoder)
    with Image.open(path) as image:
        if image.format == "JPEG" and image.mode == "RGB" and decoder != PILLOW:
            pixels = decode_jpeg(Path(path).read_bytes(), image.size, 1, decoder)
            if pixels is not None:
                made = Image.fromarray(pixels)
                made.info = dict(image.info)
                return made
        image.load()
        return image


def image_tensor(image: Image.Image) -> torch.Tensor:
    """The pixels of an RGB image, without a copy where Pillow lends its memory: an Arrow array, of Pillow 11.2 on.

    Returns:
        uint8 (H, W, 3), or (H, W, 4) with bytes that mean nothing in the last channel. Not to be written to.
    """
    image.load()
    if hasattr(image, "__arrow_c_array__"):
        import pyarrow as pa

        try:
            pixels = torch.from_dlpack(pa.array(image).values)
        except (ValueError, NotImplementedError):  # a large image lies in several pieces
            pixels = torch.empty(0)
        if pixels.numel() == 4 * image.height * image.width:
            return pixels.view(image.height, image.width, 4)
    return torch.from_numpy(np.array(image))
