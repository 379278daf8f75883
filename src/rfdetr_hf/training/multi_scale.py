"""The input sizes of multi-scale training, and which one a step uses."""

import hashlib
import random
from collections.abc import Sequence

OFFSETS = range(-3, 5)
EXPANDED_OFFSETS = range(-5, 6)
MIN_BLOCKS = 2


def compute_scales(resolution: int, patch_size: int, num_windows: int, expanded: bool = True) -> list[int]:
    """The square input sizes around a resolution, as in the official trainer.

    A size is a whole number of blocks of `patch_size · num_windows` pixels: that of the resolution with an offset of -5
    to 5 blocks (-3 to 4 if not `expanded`), and at least two.

    Returns:
        The sizes in pixels, ascending.

    Raises:
        ValueError: the resolution is not a positive multiple of the block.
    """
    block = patch_size * num_windows
    if resolution < block or resolution % block:
        raise ValueError(
            f"resolution={resolution} is not a positive multiple of patch_size · num_windows = {block}; "
            f"use {max(round(resolution / block), 1) * block}."
        )
    blocks = resolution // block
    offsets = EXPANDED_OFFSETS if expanded else OFFSETS
    return [(blocks + offset) * block for offset in offsets if blocks + offset >= MIN_BLOCKS]


def scale_for_step(scales: Sequence[int], seed: int, step: int, official: bool = False) -> int:
    """The size of all micro-batches of an optimizer step.

    With `official` it is the one that rfdetr draws, the same with every seed. Else a hash of (seed, step) draws it, so
    every rank, every rerun and every version of Python and NumPy gets the same one, and no random generator moves.
    """
    if official:
        return random.Random(step).choice(list(scales))
    digest = hashlib.sha256(f"scale:{seed}:{step}".encode()).digest()
    return scales[int.from_bytes(digest[:8], "big") % len(scales)]
