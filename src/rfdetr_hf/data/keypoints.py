"""What the keypoints of each class are: names, skeleton, mirror pairs and OKS sigmas."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np

from ..values import as_integer, is_number

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
# From the COCO keypoint evaluation: how far annotators stray, relative to the square root of the object's area.
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
DEFAULT_SIGMA = 0.1
_MIRRORED = {"left": "right", "right": "left"}

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ClassKeypoints:
    """The keypoints of one class; none for a class that has no keypoints.

    Attributes:
        names: one per keypoint, distinct.
        skeleton: pairs of positions, from 0, between which lines are drawn.
        flip_pairs: pairs of positions that change places in a mirror image. Empty when none do; None when it is not
            known, and then images are not mirrored.
        sigmas: one per keypoint, for OKS.
    """

    names: tuple[str, ...] = ()
    skeleton: Pairs = ()
    flip_pairs: Pairs | None = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(set(self.names)) != count:
            raise ValueError(f"keypoint names {list(self.names)} are not distinct: give each keypoint one name")
        if len(self.sigmas) != count or not all(sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"sigmas {list(self.sigmas)}: give one positive number for each of {count} keypoints")
        swapped = [index for pair in self.flip_pairs or () for index in pair]
        for field, indices in (("skeleton", [i for pair in self.skeleton for i in pair]), ("flip_pairs", swapped)):
            if not all(0 <= index < count for index in indices):
                raise ValueError(f"{field} {list(getattr(self, field))} points beyond the {count} keypoints")
        if len(set(swapped)) != len(swapped):
            raise ValueError(f"flip_pairs {list(self.flip_pairs or ())} name a keypoint twice")

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        skeleton: Sequence[Sequence[int]] = (),
        flip_pairs: Sequence[Sequence[int]] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> "ClassKeypoints":
        """The keypoints of a class, with what is left out inferred.

        Args:
            names: one per keypoint.
            skeleton: pairs of positions from 0.
            flip_pairs: pairs of positions; None takes them from the words left and right in the names.
            sigmas: for OKS; None takes COCO's for COCO's 17 names, otherwise `DEFAULT_SIGMA` for each keypoint.
        """
        if sigmas is None:
            known = tuple(names) == COCO_KEYPOINTS
            sigmas = COCO_SIGMAS if known else (DEFAULT_SIGMA,) * len(names)
        pairs = infer_flip_pairs(names) if flip_pairs is None else _as_pairs(flip_pairs)
        if not all(is_number(sigma) and 0 < sigma < math.inf for sigma in sigmas):
            raise ValueError(f"sigmas {list(sigmas)} must be positive numbers, one for each keypoint")
        return cls(tuple(names), _as_pairs(skeleton), pairs, tuple(float(sigma) for sigma in sigmas))


@dataclass(frozen=True)
class KeypointSchema:
    """The keypoints of all classes, in the order of the labels.

    Objects hold as many keypoints as the class with most of them has; those of other classes are filled with zeros.
    """

    classes: tuple[ClassKeypoints, ...]

    @property
    def num_keypoints_per_class(self) -> list[int]:
        """How many keypoints each label has."""
        return [len(each.names) for each in self.classes]

    @property
    def num_keypoints(self) -> int:
        """Keypoints that every object holds, K."""
        return max(self.num_keypoints_per_class, default=0)

    @cached_property
    def flip_index(self) -> np.ndarray | None:
        """int64 (labels, K): where each keypoint of a mirrored object comes from; None when it is not known."""
        if any(each.flip_pairs is None for each in self.classes):
            return None
        index = np.tile(np.arange(self.num_keypoints), (len(self.classes), 1))
        for row, each in zip(index, self.classes, strict=True):
            for a, b in each.flip_pairs or ():
                row[[a, b]] = b, a
        return index

    @property
    def sigmas(self) -> np.ndarray:
        """float64 (labels, K); `DEFAULT_SIGMA` where a label has no such keypoint."""
        sigmas = np.full((len(self.classes), self.num_keypoints), DEFAULT_SIGMA)
        for row, each in zip(sigmas, self.classes, strict=True):
            row[: len(each.sigmas)] = each.sigmas
        return sigmas

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {
            "classes": [
                {
                    "names": list(each.names),
                    "skeleton": [list(pair) for pair in each.skeleton],
                    "flip_pairs": None if each.flip_pairs is None else [list(pair) for pair in each.flip_pairs],
                    "sigmas": list(each.sigmas),
                }
                for each in self.classes
            ]
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "KeypointSchema":
        """What `to_dict` wrote, or a person, who may leave out all but the names, see `ClassKeypoints.of`.

        Args:
            content: `classes`, one entry per label with `names`, `skeleton`, `flip_pairs` and `sigmas`. A class without
                keypoints has no names. `flip_pairs` null says that they are not known; left out they are inferred.

        Raises:
            ValueError: names are missing, a field is unknown or does not fit the others.
        """
        classes = content.get("classes")
        if not isinstance(classes, Sequence) or not classes or isinstance(classes, str):
            raise ValueError("keypoint schema: field classes is missing or empty; give one entry per label")
        if unknown := sorted(set(content) - {"classes"}):
            raise ValueError(f"keypoint schema: fields {unknown} are unknown; it has the field classes alone")
        return cls(tuple(_read_class(label, each) for label, each in enumerate(classes)))


def _read_class(label: int, content: Any) -> ClassKeypoints:
    fields = ("names", "skeleton", "flip_pairs", "sigmas")
    if not isinstance(content, Mapping) or not {"names"} <= set(content) <= set(fields):
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"keypoint schema, label {label}: has {found}, needs names and may have {list(fields[1:])}")
    names, skeleton = [str(name) for name in content["names"]], content.get("skeleton") or ()
    try:
        keypoints = ClassKeypoints.of(names, skeleton, content.get("flip_pairs"), content.get("sigmas"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"keypoint schema, label {label}: {error}") from error
    unknown_pairs = "flip_pairs" in content and content["flip_pairs"] is None
    return replace(keypoints, flip_pairs=None) if unknown_pairs else keypoints


def infer_flip_pairs(names: Sequence[str]) -> Pairs | None:
    """Pairs of names that differ in left and right alone; None when the names do not tell.

    "left_eye" and "right_eye", "LeftEye" and "RightEye", "eye-left" and "eye-right" are pairs. Names without a side
    stay in place. The names do not tell when no name has a side, when one has both, or when a partner is missing; a
    single keypoint has nobody to change places with.
    """
    words = [[word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)] for name in names]
    sides = [[word for word in each if word in _MIRRORED] for each in words]
    if len(names) <= 1:
        return ()
    if not any(sides) or any(len(each) > 1 for each in sides) or len(set(map(tuple, words))) < len(words):
        return None
    position = {tuple(each): index for index, each in enumerate(words)}
    pairs = []
    for index, each in enumerate(words):
        if not sides[index]:
            continue
        partner = position.get(tuple(_MIRRORED.get(word, word) for word in each))
        if partner is None:
            return None
        if index < partner:
            pairs.append((index, partner))
    return tuple(pairs)


def pairs_of_permutation(index: Sequence[int], count: int) -> Pairs:
    """The flip pairs of a YOLO `flip_idx`.

    Raises:
        ValueError: it is no permutation of `count` keypoints that undoes itself.
    """
    if (
        any(i is None for i in index)
        or sorted(index) != list(range(count))
        or any(index[index[i]] != i for i in range(count))
    ):
        raise ValueError(f"{list(index)} is no list of {count} positions in which partners point at each other")
    return tuple((i, j) for i, j in enumerate(index) if i < j)


def _as_pairs(pairs: Sequence[Sequence[int]]) -> Pairs:
    found = tuple(tuple(map(as_integer, pair)) for pair in pairs)
    if any(len(pair) != 2 or None in pair for pair in found):
        raise ValueError(f"skeleton or flip_pairs {[list(pair) for pair in pairs]} are not pairs of positions from 0")
    return cast(Pairs, found)
