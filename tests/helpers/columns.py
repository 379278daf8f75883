"""Columns as people publish them: a small data set like CPPE-5."""

import datasets
from datasets import Dataset

NAMES = ["mask", "glove", "goggles"]


def plain(dataset, objects):
    """Replace the objects column by values whose types `datasets` guesses."""
    rest = dataset.select_columns(["image"])
    return datasets.concatenate_datasets([rest, Dataset.from_dict({"objects": objects})], axis=1)


def row(**changes):
    """One object as the lists of a row, with other values."""
    return {"id": [1], "area": [4], "bbox": [[1, 2, 3, 4]], "category": [0], **changes}
