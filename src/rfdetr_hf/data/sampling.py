"""How often the images of a training split are drawn in an epoch, by the classes that are in them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from .schema import class_names

# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute


def repeat_factors(dataset: Dataset, threshold: float = 0.001) -> np.ndarray:
    """The repeat factors of LVIS (A. Gupta, P. Dollár, R. Girshick, LVIS, CVPR 2019, appendix).

    With f(c) the share of images that show a class, r(c) = max(1, sqrt(threshold / f(c))), and an image has the
    largest r(c) of its classes; one without objects has 1.

    Args:
        dataset: in the schema.
        threshold: the share of images below which a class is drawn more often.

    Returns:
        (images,) float64, at least 1.
    """
    present = _present(dataset)
    share = np.bincount(present[:, 1], minlength=len(class_names(dataset))) / max(len(dataset), 1)
    factor = np.maximum(1, np.sqrt(threshold / np.maximum(share, np.finfo(float).tiny)))
    factors = np.ones(len(dataset))
    np.maximum.at(factors, present[:, 0], factor[present[:, 1]])
    return factors


def class_balanced(dataset: Dataset) -> np.ndarray:
    """Weights by which all classes are drawn equally often: a class at random, then one of the images that show it.

    Images without objects are a class of their own.

    Args:
        dataset: in the schema.

    Returns:
        (images,) float64: the sum of 1 / (images that show the class) over the classes of an image.
    """
    present = _present(dataset)
    counts = np.bincount(present[:, 1], minlength=len(class_names(dataset)))
    weights = np.bincount(present[:, 0], 1 / counts[present[:, 1]], minlength=len(dataset))
    empty = weights == 0
    return np.where(empty, 1 / max(empty.sum(), 1), weights)


def _present(dataset: Dataset) -> np.ndarray:
    """(n, 2) distinct pairs of row and class, crowds left out."""
    objects = pa.concat_arrays(dataset.select_columns(["objects"]).with_format("arrow")[:]["objects"].chunks)
    counts = pc.list_value_length(pc.struct_field(objects, "category")).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(dataset)), counts.astype(np.int64))
    category, crowd = (
        pc.list_flatten(pc.struct_field(objects, name)).to_numpy(zero_copy_only=False)
        for name in ("category", "iscrowd")
    )
    pairs = np.stack([row, category.astype(np.int64)], axis=1)[~crowd.astype(bool)]
    return np.unique(pairs, axis=0)
