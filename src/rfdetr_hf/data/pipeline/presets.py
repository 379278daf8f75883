"""The words of an augmentation: transforms, their parameters and ranges, presets, and YAML over them.

Nothing here needs more than Python, so that a mistake is found before PyTorch is loaded. What the transforms do is in
`composition.py`, `turns.py` and `augmentation.py`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from ...choices import AUGMENTATIONS
from ...options import Range

__all__ = ["DEFAULT", "GEOMETRY", "STRONG", "TORCHVISION", "TRANSFORMS", "read_augmentation"]

DEFAULT = "default"
_SHARE, _PROBABILITY = Range(0, 1, "(]"), Range(0, 1)
# Of each transform the parameters besides its probability: default and range; two numbers are the ends of an interval.
TRANSFORMS: dict[str, dict[str, tuple[Any, Range]]] = {
    "mosaic": {"scale": ((0.5, 1.0), _SHARE)},
    "mixup": {"alpha": (32.0, Range(0, brackets="(]"))},
    "copy_paste": {"max_objects": (5, Range(1))},
    "vertical_flip": {},
    "rotate_90": {},
    "rotate": {"degrees": (15.0, Range(0, 180, "(]"))},
    "affine": {
        "degrees": (15.0, Range(0, 180)),
        "translate": (0.1, Range(0, 1, "[)")),
        "scale": ((0.8, 1.2), Range(0, 10, "(]")),
        "shear": (5.0, Range(0, 60)),
    },
    "color": {
        "brightness": (0.2, _PROBABILITY),
        "contrast": (0.2, _PROBABILITY),
        "saturation": (0.2, _PROBABILITY),
        "hue": (0.1, Range(0, 0.5)),
    },
    "grayscale": {},
    "blur": {"sigma": ((0.1, 1.5), Range(0, 20, "(]"))},
    "noise": {"sigma": ((0.01, 0.05), Range(0, 1, "(]"))},
    "jpeg": {"quality": ((40, 95), Range(1, 100))},
}
"""In the order in which they are applied."""
STRONG = ("mosaic", "mixup", "copy_paste")
TORCHVISION = ("rotate", "affine", "color", "grayscale", "blur", "noise", "jpeg")
# Of the recipe's own geometry, which resamples the pixels once; they are options of a training as well.
GEOMETRY = ("scale_jitter", "horizontal_flip")
_LIGHT = {"saturation": 0.0, "hue": 0.0}
_PRESETS: dict[str, dict[str, Any]] = {
    "none": {"scale_jitter": False, "horizontal_flip": 0.0},
    "default": {"scale_jitter": True, "horizontal_flip": 0.5},
    "conservative": {
        "scale_jitter": True,
        "horizontal_flip": 0.5,
        "color": {"probability": 0.3, "brightness": 0.1, "contrast": 0.1, **_LIGHT},
    },
    "aggressive": {
        "scale_jitter": True,
        "horizontal_flip": 0.5,
        "vertical_flip": {"probability": 0.5},
        "rotate": {"probability": 0.5, "degrees": 45.0},
        "affine": {"probability": 0.5},
        "color": {"probability": 0.5},
    },
    "aerial": {
        "scale_jitter": True,
        "horizontal_flip": 0.5,
        "vertical_flip": {"probability": 0.5},
        "rotate_90": {"probability": 0.5},
        "color": {"probability": 0.4, "brightness": 0.15, "contrast": 0.15, **_LIGHT},
    },
    "industrial": {
        "scale_jitter": True,
        "horizontal_flip": 0.3,
        "color": {"probability": 0.5, "brightness": 0.2, "contrast": 0.2, **_LIGHT},
        "blur": {"probability": 0.3, "sigma": (0.1, 0.8)},
        "noise": {"probability": 0.3},
    },
}
if tuple(_PRESETS) != AUGMENTATIONS:
    raise AssertionError("choices.AUGMENTATIONS lists the presets")


def read_augmentation(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The members of an augmentation with all their parameters.

    Args:
        value: the name of a preset; or a mapping of `preset`, of the transforms that are otherwise than in it, each a
            probability or a mapping of its parameters, and of `scale_jitter` and `horizontal_flip`.

    Returns:
        `scale_jitter`, `horizontal_flip`, and of each transform with a probability above zero its parameters, in the
        order in which they are applied.

    Raises:
        ValueError: a name is not known (the nearest is named), or a value is out of its range.
    """
    if isinstance(value, str):
        value = {"preset": value}
    name = value.get("preset", DEFAULT)
    if name not in _PRESETS:
        raise ValueError(f"augmentation: preset={name!r} is not known; {_nearest(name, _PRESETS)}")
    made = copy.deepcopy(_PRESETS[name])
    known = ["preset", *GEOMETRY, *TRANSFORMS]
    for key, given in value.items():
        if key not in known:
            raise ValueError(f"augmentation: {key!r} is not known; {_nearest(key, known)}")
        if key in TRANSFORMS:
            made[key] = _parameters(key, given, made.get(key))
    if not isinstance(jitter := value.get("scale_jitter", made["scale_jitter"]), bool):
        raise ValueError(f"augmentation: scale_jitter={jitter!r} is neither true nor false")
    flip = _number("horizontal_flip", value.get("horizontal_flip", made["horizontal_flip"]), _PROBABILITY)
    members = {key: made[key] for key in TRANSFORMS if key in made and made[key]["probability"]}
    full = {key: {name: pair[0] for name, pair in TRANSFORMS[key].items()} | members[key] for key in members}
    return {"scale_jitter": jitter, "horizontal_flip": flip, **full}


def _parameters(name: str, given: Any, before: Mapping[str, Any] | None) -> dict[str, Any]:
    ranges = {"probability": (None, _PROBABILITY), **TRANSFORMS[name]}
    if not isinstance(given, Mapping):
        given = {"probability": given}
    values = dict(before or {})
    for key, value in given.items():
        if key not in ranges:
            raise ValueError(f"augmentation: {name} has no {key!r}; {_nearest(key, ranges)}")
        default, limits = ranges[key]
        where = f"{name}: {key}"
        if isinstance(default, tuple):
            pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
            ends = tuple(_number(where, end, limits) for end in pair)
            if len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(f"augmentation: {where}={value!r}: give a number, or the two ends of an interval")
            values[key] = ends
        else:
            values[key] = _number(where, value, limits)
        if isinstance(default, int) and values[key] != int(values[key]):
            raise ValueError(f"augmentation: {where}={value!r} is not a whole number")
    if "probability" not in values:
        raise ValueError(f"augmentation: {name} needs its probability, such as {name}: 0.5")
    return values


def _number(where: str, value: Any, limits: Range) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value not in limits:
        raise ValueError(f"augmentation: {where}={value!r} must be a number, {limits}")
    return value


def _nearest(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
