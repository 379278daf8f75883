"""What is in some rows, as numbers that add up: what a run asks of its data without reading it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Features

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

# COCO's limits of small and medium objects, as areas in pixels.
_SMALL, _MEDIUM = 32**2, 96**2
# Bins of box sides, two an octave: in pixels from 1 up, in shares of the picture's side from 2^-12 up.
_PIXEL_BINS, _SHARE_BINS, _LOWEST_SHARE = 28, 24, -12


@dataclass
class Counts:
    """Crowds are left out but in `crowds`. Everything adds up over rows.

    Attributes:
        images: rows.
        background: rows without any object.
        crowds: objects that are crowds.
        small, medium, large: objects by their area, with COCO's limits 32² and 96².
        polygons, rle: objects, crowds included, with a mask of each form.
        with_keypoints: objects, crowds included, with a labelled keypoint.
        objects: of each class.
        images_with: images with an object of each class.
        labelled: class by class, how often each of its keypoints is labelled, crowds included.
        objects_per_image: number of objects -> images that have so many.
        sides: objects by the side of a square of their box's size in pixels; bin k holds [2^(k/2), 2^((k+1)/2)), the
            first what is smaller, the last what is larger too.
        side_shares: likewise as a share of the side of a square of the picture's size; bin k begins at 2^(k/2 - 12).
    """

    images: int = 0
    background: int = 0
    crowds: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    polygons: int = 0
    rle: int = 0
    with_keypoints: int = 0
    objects: list[int] = field(default_factory=list)
    images_with: list[int] = field(default_factory=list)
    labelled: list[list[int]] = field(default_factory=list)
    objects_per_image: dict[int, int] = field(default_factory=dict)
    sides: list[int] = field(default_factory=list)
    side_shares: list[int] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        """Objects."""
        return sum(self.objects)

    @property
    def max_objects(self) -> int:
        """Objects of the fullest image."""
        return max(self.objects_per_image, default=0)

    def __add__(self, other: Counts) -> Counts:
        values = {}
        for each in dataclasses.fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, dict):
                values[each.name] = dict(sorted((Counter(mine) + Counter(theirs)).items()))
            elif isinstance(mine, list) and mine and theirs:
                values[each.name] = (np.asarray(mine) + np.asarray(theirs)).tolist()
            else:
                values[each.name] = mine + theirs  # numbers, or a list beside an empty one
        return Counts(**values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, whose keys are texts."""
        return dataclasses.asdict(self) | {"objects_per_image": {str(k): v for k, v in self.objects_per_image.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """What `to_dict` gave.

        Raises:
            TypeError, ValueError, KeyError: it is something else.
        """
        per_image = {int(number): int(images) for number, images in values["objects_per_image"].items()}
        return cls(**{**values, "objects_per_image": per_image})


def count_rows(table: pa.Table, features: Features) -> Counts:
    """Count the rows of a table.

    Args:
        table: has the columns width, height and objects of `rfdetr_hf.data.schema`.
        features: of the data set.
    """
    objects = table["objects"].combine_chunks()
    fields: Any = features["objects"]
    classes = len(fields["category"].feature.names)
    counts = pc.list_value_length(pc.struct_field(objects, "category")).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = {name: pc.list_flatten(pc.struct_field(objects, name)) for name in ("category", "area", "iscrowd", "bbox")}
    category, area = (flat[name].to_numpy(zero_copy_only=False) for name in ("category", "area"))
    single = ~flat["iscrowd"].to_numpy(zero_copy_only=False).astype(bool)
    row = np.repeat(np.arange(len(counts)), counts)
    bbox = pc.list_flatten(flat["bbox"]).to_numpy(zero_copy_only=False).reshape(-1, 4)[single]  # (n, 4) x, y, w, h
    side = np.sqrt(bbox[:, 2] * bbox[:, 3])
    width, height = (table[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    share = side / np.sqrt(width * height)[row[single]]
    per_image = np.bincount(np.bincount(row[single], minlength=len(counts)))
    pairs = np.unique(np.stack([category[single], row[single]]), axis=1)[0]
    found = Counts(
        images=len(counts),
        background=int((counts == 0).sum()),
        crowds=int((~single).sum()),
        small=int((area[single] < _SMALL).sum()),
        medium=int(((area[single] >= _SMALL) & (area[single] < _MEDIUM)).sum()),
        large=int((area[single] >= _MEDIUM).sum()),
        objects=np.bincount(category[single].astype(np.int64), minlength=classes).tolist(),
        images_with=np.bincount(pairs.astype(np.int64), minlength=classes).tolist(),
        objects_per_image={int(n): int(per_image[n]) for n in np.flatnonzero(per_image)},
        sides=_histogram(side, 0, _PIXEL_BINS),
        side_shares=_histogram(share, _LOWEST_SHARE, _SHARE_BINS),
    )
    if "segmentation" in fields:
        masks = pc.list_flatten(pc.struct_field(objects, "segmentation"))
        found.polygons, found.rle = (
            len(masks) - pc.struct_field(masks, name).null_count for name in ("polygons", "rle")
        )
    if "keypoints" in fields:
        numbers = pc.list_flatten(pc.list_flatten(pc.struct_field(objects, "keypoints")))
        seen = numbers.to_numpy(zero_copy_only=False).reshape(len(category), -1, 3)[..., 2] > 0
        found.with_keypoints = int(seen.any(axis=1).sum())
        found.labelled = [seen[category == label].sum(axis=0).tolist() for label in range(classes)]
    return found


def _histogram(sides: np.ndarray, lowest: int, bins: int) -> list[int]:
    """Sides by half octaves from 2^lowest up; the outer bins take what lies beyond."""
    with np.errstate(divide="ignore"):
        place = np.floor(2 * (np.log2(sides) - lowest))
    return np.bincount(place.clip(0, bins - 1).astype(np.int64), minlength=bins).tolist()
