"""Generated shapes, by the name "synthetic-shapes"."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ..annotations import ReadOptions
from ..synthetic import SYNTHETIC_NAME, make_shapes_splits
from . import Found
from .columns import normalise_splits


def find(root: Any, options: ReadOptions) -> Found | None:
    """The generated splits, when `root` is their name."""
    if not isinstance(root, str) or root != SYNTHETIC_NAME:
        return None
    options.refuse(root, "is generated, and", "image_dir", "label_dir")
    splits = make_shapes_splits(task=options.task, **options.load)
    return Found(root, "generated shapes", {str(name): split for name, split in splits.items()})


def read(found: Found, splits: Mapping[str, Any], options: ReadOptions) -> dict[str, Dataset]:
    """The splits with the label table that is asked for."""
    return normalise_splits(splits, found.source, options)


def near(folder: Any) -> str:
    """Shapes are no folder."""
    return f"only the name {SYNTHETIC_NAME!r} asks for them"
