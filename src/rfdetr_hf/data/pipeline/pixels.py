"""Pixels: decoded from files in the frame of their boxes, resized, normalised; the file's name is in every error."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from ...bit_depth import find_range, is_deep, to_bytes
from ..errors import DetectionDataError

# What Pillow's decoders raise on damaged files, as seen in its plugins.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_LIMIT_VARIABLE = "RFDETR_HF_MAX_IMAGE_PIXELS"


def set_max_image_pixels(count: int) -> None:
    """Let images have up to so many pixels, in this process and in those that it starts from now on.

    Raises:
        ValueError: the count is no positive integer.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"max_image_pixels={count!r}: give a number of pixels of at least 1")
    # Workers that are spawned know the environment alone.
    os.environ[_LIMIT_VARIABLE] = str(count)


def decode_image(example: Mapping[str, Any]) -> Image.Image:
    """Decode the image of one example, in the frame that its boxes are in.

    A photograph may carry an EXIF tag that says "show me turned". Some annotation tools obey it and some don't, so the
    annotated width and height decide: the tag is obeyed when the turned image has the annotated size, and ignored when
    only the stored pixels have it. Where both fit (square images, half turns) it is obeyed, as viewers do.

    Args:
        example: a row with ``image`` (``{"path", "bytes"}``, a path, or a PIL image), and if known ``width`` and
            ``height`` of the annotation; without them the tag is obeyed.

    Returns:
        An RGB image of size (width, height). Of pictures with more than 8 bits the upper 8 bits of ``value_range``
        stay, or of their own range where the row has none.

    Raises:
        DetectionDataError: the file is missing, damaged or truncated, or has another size than the annotation.
    """
    with open_image(example) as image:
        image.load()
        return image


@contextmanager
def open_image(example: Mapping[str, Any]) -> Iterator[Image.Image]:
    """As `decode_image`, but a JPEG that needs no turning is handed out undecoded, so that `Image.draft` can shrink it.

    Use it as ``with open_image(row) as image``. A fault that shows while the block decodes is raised with the file's
    name.
    """
    value, frame, name = example["image"], _frame(example), _name(example["image"], example)
    if isinstance(value, Image.Image):
        with _named_faults(name):
            image = _to_rgb(_turned(value, frame, name), example.get("value_range"))
        yield image
        return
    with _opened(value, name) as image:
        with _named_faults(name):
            if orientation_tag(image) != 1 or image.format != "JPEG" or image.mode != "RGB":
                image.load()
                if "objects" in example and is_deep(image) and not example.get("value_range"):
                    raise DetectionDataError(
                        f"{name}: the image has more than 8 bits, and field value_range of its data set does not say "
                        "which of its values are black and white; load its source with load_detection_dataset, which "
                        "finds that out (for shards: rfdetr-hf data convert), or write the image with 8 bits"
                    )
                image = _to_rgb(_turned(image, frame, name), example.get("value_range"))
            else:
                _must_turn(image.size, 1, frame, name)
        # Only errors of the file: others that the block raises are its own.
        with _named_faults(name, (OSError,)):
            yield image


def image_size(value: Any, example: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height as shown (EXIF obeyed), read from the file's header without decoding.

    Args:
        value: as ``image`` of `decode_image`.
        example: names the image in errors, by its ``file_name`` or ``image_id``.
    """
    if isinstance(value, Image.Image):
        return value.size
    name = _name(value, example)
    with _opened(value, name) as image, _named_faults(name):
        return _shown(image.size, orientation_tag(image))


def check_image(example: Mapping[str, Any], *, decode: bool) -> bool:
    """Raise `DetectionDataError` when `decode_image` would, at a third of its cost for JPEG files.

    Returns:
        Whether the picture has more than 8 bits, and numbers beyond the example's ``value_range``, which are cut off.

    Args:
        example: as for `decode_image`.
        decode: also decode the pixels; without it only the header is read, which misses truncated files.
    """
    value, name = example["image"], _name(example["image"], example)
    with _opened(value, name) as image, _named_faults(name):
        _must_turn(image.size, orientation_tag(image), _frame(example), name)
        if decode:
            # An eighth of the size in grey: libjpeg still walks through the whole stream, so a cut is noticed.
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
        value_range = example.get("value_range")
        if not decode or value_range is None or not is_deep(image):
            return False
        pixels = np.asarray(image)
        find_range(pixels)  # raises where they are not finite
        return bool(pixels.min() < value_range[0] or pixels.max() > value_range[1])


@contextmanager
def _opened(value: Any, name: str) -> Iterator[Image.Image]:
    limit = os.environ.get(_LIMIT_VARIABLE)
    if limit is not None:
        # Pillow warns at its limit and raises at twice that.
        Image.MAX_IMAGE_PIXELS = max(1, (int(limit) + 1) // 2)
    with _named_faults(name):
        image = Image.open(_source(value, name))
    with image:
        yield image


@contextmanager
def _named_faults(name: str, kinds: tuple[type[BaseException], ...] = DECODE_ERRORS) -> Iterator[None]:
    """Turn the decoder's errors into a `DetectionDataError` that names the image."""
    try:
        yield
    except DetectionDataError:
        raise
    except FileNotFoundError as error:
        raise DetectionDataError(
            f"{name}: the image file is missing; restore it or take the image out of the annotations"
        ) from error
    except Image.DecompressionBombError as error:
        raise DetectionDataError(
            f"{name}: the image has too many pixels ({error}); pass max_image_pixels=… to load_detection_dataset, or "
            "make the image smaller"
        ) from error
    except kinds as error:
        raise DetectionDataError(
            f"{name}: the image cannot be decoded ({error or type(error).__name__}); "
            "replace the file or take the image out of the annotations"
        ) from error


def _source(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return io.BytesIO(value["bytes"])
        value = value.get("path")
    if isinstance(value, (str, os.PathLike)):
        return value
    raise DetectionDataError(f"{name}: no image, neither bytes nor path (field 'image' is {type(value).__name__})")


def _name(value: Any, example: Mapping[str, Any]) -> str:
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, (str, os.PathLike)):
        path = getattr(value, "filename", None) or example.get("file_name")
    if path:
        return os.fspath(path)
    return f"image with image_id {example.get('image_id', '(unknown)')}"


def _frame(example: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = example.get("width"), example.get("height")
    return None if width is None or height is None else (int(width), int(height))


def _shown(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation in _SIDEWAYS else size


def orientation_tag(image: Image.Image) -> int:
    """The EXIF orientation of an image that is not decoded, and stays so; 1 for as stored."""
    # Asking a PNG without an EXIF chunk decodes it all, and Pillow turns TIFF images by itself when it loads them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    return image.getexif().get(_ORIENTATION_TAG, 1)


def _must_turn(size: tuple[int, int], orientation: int, frame: tuple[int, int] | None, name: str) -> bool:
    if frame is None or _shown(size, orientation) == frame:
        return orientation != 1
    if size == frame:
        return False
    raise DetectionDataError(
        f"{name}: the image is {size[0]}x{size[1]} pixels (EXIF orientation {orientation}) but fields width and height "
        f"of its annotation say {frame[0]}x{frame[1]}; correct them, or restore the image that was annotated"
    )


def _turned(image: Image.Image, frame: tuple[int, int] | None, name: str) -> Image.Image:
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    if _must_turn(image.size, orientation, frame, name):
        return ImageOps.exif_transpose(image)
    if orientation != 1:
        # Whoever gets this image must not turn it by its tag later on.
        image = image.copy()
        for key in ("exif", "xmp", "XML:com.adobe.xmp"):
            image.info.pop(key, None)
    return image


def _to_rgb(image: Image.Image, value_range: Sequence[float] | None = None) -> Image.Image:
    if is_deep(image):
        # Pillow's own conversion cuts values off at 255, which leaves a white image.
        image = Image.fromarray(to_bytes(np.asarray(image), value_range))
    return image if image.mode == "RGB" else image.convert("RGB")


def find_value_range(images: Iterable[Any]) -> tuple[float, float] | None:
    """The range of the numbers in the pictures of more than 8 bits among some, None where there are none.

    Args:
        images: examples as for `decode_image`.
    """
    ranges: list[tuple[float, float]] = []
    for example in images:
        value, pixels = example["image"], None
        name = _name(value, example)
        # The audit names files that cannot be decoded.
        with suppress(DetectionDataError), _opened(value, name) as image, _named_faults(name):
            pixels = np.asarray(image) if is_deep(image) else None
        if pixels is not None:
            with _named_faults(name):
                ranges.append(find_range(pixels))
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def resample(image: Image.Image, box: tuple[float, float, float, float], width: int, height: int) -> torch.Tensor:
    """The part `box` (left, top, right, bottom) of an RGB image with an antialiased bilinear filter.

    Returns:
        uint8 (3, height, width).
    """
    if not all(float(edge).is_integer() for edge in box):
        return pixels_from_pil(image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    left, top, right, bottom = map(int, box)
    pixels = pixels_from_pil(image)[:, top:bottom, left:right]
    if pixels.shape[1:] == (height, width):
        return pixels
    # The same filter, vectorised: a third of Pillow's time, and at most one grey level away from it.
    size = (height, width)
    return F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def pixels_from_pil(image: Image.Image) -> torch.Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pil_from_pixels(pixels: torch.Tensor) -> Image.Image:
    """uint8 (3, H, W) as an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def prepare_pixels(
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor | None,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    size: int | tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Turn a batch that is on the device into the model's input.

    Bytes become float, are divided by 255 and normalised; padding becomes zero, the mean colour; then the batch is
    resized to the scale of the step: bilinear without antialiasing (the official per-batch rule), the mask to its
    nearest value. Float batches are normalised already and are only resized.

    Args:
        pixel_values: (B, 3, H, W), uint8 or float.
        pixel_mask: (B, H, W), true or 1 on the image, or None for a batch without padding.
        image_mean: per channel, for values in [0, 1].
        image_std: likewise.
        size: side of a square or (height, width) to resize to; None keeps the size.

    Returns:
        `pixel_values` float32 (float batches keep their dtype) and `pixel_mask` bool, or None as given.
    """
    if pixel_values.dtype == torch.uint8:
        pixel_values = pixel_values.to(torch.float32).div_(255)
        mean = _per_channel(tuple(image_mean), pixel_values.device)
        std = _per_channel(tuple(image_std), pixel_values.device)
        pixel_values.sub_(mean).div_(std)
        if pixel_mask is not None:
            pixel_values.masked_fill_(~pixel_mask[:, None].bool(), 0.0)
    sides = (size, size) if isinstance(size, int) else size and tuple(size)
    if sides is not None and sides != tuple(pixel_values.shape[-2:]):
        pixel_values = F.interpolate(pixel_values, size=sides, mode="bilinear", align_corners=False)
        if pixel_mask is not None:
            pixel_mask = F.interpolate(pixel_mask[:, None].float(), size=sides, mode="nearest")[:, 0]
    return pixel_values, None if pixel_mask is None else pixel_mask.bool()


# Kept per device: building a tensor on a GPU from host numbers in every step would make the host wait.
@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
