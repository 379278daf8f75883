"""The members of a preset as steps behind the recipe's resize: `presets.py` says which, this file makes them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...choices import install_hint
from .presets import STRONG, TORCHVISION
from .turns import Rotate90, VerticalFlip
from .user_augmentation import adapt_augmentation
from .view import Sample

__all__ = ["Step", "build_steps", "strong_members"]

Step = Callable[[Sample, np.random.Generator], Sample]
_NOISE_LEVELS = 5


def strong_members(members: Mapping[str, Any]) -> dict[str, Any]:
    """The members that join several images, which the last epochs of a run may leave out."""
    return {name: members[name] for name in STRONG if name in members}


def build_steps(members: Mapping[str, Any], flip_index: np.ndarray | None = None) -> list[Step]:
    """The steps on one image, in their order.

    Args:
        members: as `read_augmentation` gives them.
        flip_index: `KeypointSchema.flip_index`.

    Raises:
        ImportError: members need torchvision, and it is not installed.
    """
    steps: list[Step] = []
    if "vertical_flip" in members:
        steps.append(VerticalFlip(members["vertical_flip"]["probability"], flip_index))
    if "rotate_90" in members:
        steps.append(Rotate90(members["rotate_90"]["probability"]))
    if named := [name for name in TORCHVISION if name in members]:
        if importlib.util.find_spec("torchvision") is None:
            raise ImportError(f"augmentation: {', '.join(named)}: needs torchvision; {install_hint('augment')}")
        from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

        chain = [_from_torchvision(v2, name, members[name]) for name in named]
        steps.append(adapt_augmentation(v2.Compose([v2.ToImage(), *chain]), flip_index))
    return steps


def _from_torchvision(v2: Any, name: str, values: Mapping[str, Any]) -> Any:
    import torch

    made: Any
    if name == "rotate":
        made = v2.RandomRotation(values["degrees"], interpolation=v2.InterpolationMode.BILINEAR)
    elif name == "affine":
        shift = values["translate"]
        made = v2.RandomAffine(
            values["degrees"], translate=(shift, shift), scale=values["scale"], shear=values["shear"],
            interpolation=v2.InterpolationMode.BILINEAR,
        )  # fmt: skip
    elif name == "color":
        made = v2.ColorJitter(values["brightness"], values["contrast"], values["saturation"], values["hue"])
    elif name == "grayscale":
        made = v2.Grayscale(num_output_channels=3)
    elif name == "blur":
        # Two deviations on each side hold what the eye sees of a Gaussian.
        made = v2.GaussianBlur(2 * math.ceil(2 * values["sigma"][1]) + 1, tuple(map(float, values["sigma"])))
    elif name == "noise":
        low, high = values["sigma"]
        levels = np.linspace(low, high, _NOISE_LEVELS if low < high else 1)
        noises = v2.RandomChoice([v2.GaussianNoise(sigma=float(level)) for level in levels])
        # Older releases add noise to floats alone.
        made = v2.Compose([v2.ToDtype(torch.float32, scale=True), noises, v2.ToDtype(torch.uint8, scale=True)])
    else:
        made = v2.JPEG([int(end) for end in values["quality"]])
    return v2.RandomApply([made], values["probability"])
