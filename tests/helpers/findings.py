"""Audits of small data sets."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rfdetr_hf import audit_data, load_detection_dataset


def write_sound_folder(folder: Path) -> None:
    """A COCO layout of two splits with noisy pictures, no two alike, that nothing is wrong with."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("valid", 10)):
        root = folder / split
        root.mkdir(parents=True)
        annotations, images = [], []
        for index in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
            coarse.resize((160, 120), Image.Resampling.BICUBIC).save(root / f"{split}{index}.jpg")
            images.append({"id": index, "file_name": f"{split}{index}.jpg", "width": 160, "height": 120})
            for label in (1, 2):
                box = [10 + 60 * (label - 1), 20, 50, 40 + index]
                annotations.append({"id": len(annotations), "image_id": index, "category_id": label, "bbox": box,
                                    "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "_annotations.coco.json").write_text(json.dumps(content))


def audit(folder, tmp_path, **options):
    """The audit of a folder with its cache below `tmp_path`."""
    return audit_data(load_detection_dataset(folder), cache_dir=tmp_path / "cache", **options)


def kinds(found):
    """The findings by kind and split."""
    return {(each.kind, each.split): each for each in found.findings}


def edit(folder, split, change):
    """Change the content of the COCO file of a split by a function."""
    path = folder / split / "_annotations.coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
