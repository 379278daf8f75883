"""The run-length encoding of Label Studio's brush, that of the package rle-pack of thi.ng."""

from typing import Any

import numpy as np

from ...values import as_integer, shown

_CHANNELS = 4  # red, green, blue and how opaque


def decode_brush(values: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a brush stroke.

    The bits are, highest first: the number of words (32 bits), the bits of a word less one (5), and four lengths of
    counts, each less one (4 bits each). Then come runs: a flag, which of the four lengths its count has (2 bits), the
    count less one, and, where the flag is set, the one word that is repeated, otherwise that many words. The words are
    red, green, blue and opacity of each pixel, row by row; what is not transparent is the stroke.

    Args:
        values: bytes as a list of integers.
        size: width and height of the picture.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: it is no such encoding of a picture of this size; starts with "field".
    """
    numbers = [as_integer(value) for value in values] if isinstance(values, list) else [None]
    if any(number is None or not 0 <= number < 256 for number in numbers):
        raise ValueError(f"field rle is {shown(values)}, no list of bytes")
    bits = np.unpackbits(np.array(numbers, np.uint8))
    position = 0

    def take(count: int, words: int = 1) -> np.ndarray:
        nonlocal position
        if position + count * words > len(bits):
            raise ValueError("field rle ends too early")
        part = bits[position : position + count * words].reshape(words, count)
        position += count * words
        return part.astype(np.int64) @ (1 << np.arange(count - 1, -1, -1, dtype=np.int64))

    total = int(take(32)[0])
    if total != size[0] * size[1] * _CHANNELS:
        raise ValueError(f"field rle is of {total / _CHANNELS:g} pixels, but the picture has {size[0]} x {size[1]}")
    word = int(take(5)[0]) + 1
    lengths = [int(length) + 1 for length in take(4, 4)]
    out = np.zeros(total, np.int64)
    start = 0
    while start < total:
        same = bool(take(1)[0])
        end = start + int(take(lengths[int(take(2)[0])])[0]) + 1
        if end > total:
            raise ValueError("field rle has more pixels than the picture")
        out[start:end] = take(word, 1 if same else end - start)
        start = end
    return out.reshape(size[1], size[0], _CHANNELS)[..., 3] > 0
