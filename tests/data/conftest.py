import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from helpers.columns import NAMES
from helpers.shards import FORMATS
from PIL import Image

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.shards import writer


@pytest.fixture
def write_image():
    """Write a noisy image and return its path: `write_image(path, (width, height), **save options)`."""

    def write(path: Path, size: tuple[int, int] = (64, 48), **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def coco_content():
    """Two images of 64x48, three boxes, categories 3 and 7: the content of a COCO file that tests may spoil."""

    def content(names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> dict[str, Any]:
        boxes = [(10, 0, 7, [4, 5, 20, 10]), (11, 0, 3, [1.25, 2.5, 30.1, 20.2]), (12, 1, 7, [0, 0, 64, 48])]
        return {
            "images": [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": 50.5, "iscrowd": 0}
                for i, image, category, box in boxes
            ],
            "categories": [
                {"id": 7, "name": "dog", "supercategory": "animal"},
                {"id": 3, "name": "cat", "supercategory": "animal"},
            ],
        }

    return content


@pytest.fixture
def write_coco(write_image):
    """Write an annotation file and its images: `write_coco(file, content, image_folder)`."""

    def write(file: Path, content: dict[str, Any], images: Path | None = None) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
        for image in content["images"]:
            write_image((images or file.parent) / image["file_name"])
        return file

    return write


@pytest.fixture
def load_file(tmp_path, write_coco):
    """Load one COCO file beside its images, and return its only split."""

    def load(content, **options):
        return load_detection_dataset(write_coco(tmp_path / "set" / "train.json", content), **options)["train"]

    return load


@pytest.fixture
def coco_points(tmp_path, write_coco, coco_content):
    """Load the COCO example with keypoints: dogs (category 7) have three, cats none."""

    def load(*keypoints, change=None, **options):
        content = coco_content()
        content["categories"][0] |= {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}
        for annotation, value in zip(content["annotations"], keypoints, strict=True):
            if value is not None:
                annotation["keypoints"] = value
        if change:
            change(content)
        file = write_coco(tmp_path / "set" / "train.json", content)
        return load_detection_dataset(file, **{"task": "keypoints", **options})["train"]

    return load


@pytest.fixture
def cppe(write_image, tmp_path):
    """A data set with the columns of CPPE-5, and options to spoil it."""

    def build(rows=None, category=None, **drop):
        if rows is None:
            rows = [
                {"id": [1, 2], "area": [200, 99], "bbox": [[4, 5, 20, 10], [0, 0, 9, 11]], "category": [2, 0]},
                {"id": [], "area": [], "bbox": [], "category": []},
                {"id": [7], "area": [16], "bbox": [[60, 40, 4, 4]], "category": [1]},
            ]
        features = Features(
            {
                "image_id": Value("int64"),
                "image": datasets.Image(),
                "width": Value("int32"),
                "height": Value("int32"),
                "objects": {
                    "id": List(Value("int64")),
                    "area": List(Value("int64")),
                    "bbox": List(List(Value("float32"), length=4)),
                    "category": List(category or ClassLabel(names=NAMES)),
                },
            }
        )
        sizes = {"width": 64, "height": 48}
        name = "cppe" if category is None else "other"  # one picture in two splits has the same labels in both
        paths = [str(write_image(tmp_path / f"{name}{i}.png", (64, 48))) for i in range(len(rows))]
        records = [{"image_id": 10 + i, "image": paths[i], **sizes, "objects": o} for i, o in enumerate(rows)]
        return Dataset.from_list(records, features)

    return build


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of `datasets` of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def street(tmp_path, write_coco):
    """Two COCO folders: "a" with pedestrian, rider and car in four images, "b" with person and dog in two."""

    def content(names, boxes, images):
        return {
            "images": [{"id": 5 + i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(images)],
            "annotations": [
                {"id": n, "image_id": 5 + image, "category_id": category, "bbox": [x, 2, 10, 12], "area": 100.5,
                 "iscrowd": 0, "segmentation": [[x, 2, x + 10, 2, x + 10, 14]]}
                for n, (image, category, x) in enumerate(boxes, start=1)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=3)],
        }  # fmt: skip

    a = content(("pedestrian", "rider", "car"), [(0, 3, 1), (0, 4, 20), (1, 5, 3), (2, 4, 30)], 4)
    b = content(("person", "dog"), [(0, 3, 7), (1, 4, 9), (1, 3, 25)], 2)
    for split in ("train", "valid"):
        write_coco(tmp_path / "a" / split / "_annotations.coco.json", a)
        write_coco(tmp_path / "b" / split / "_annotations.coco.json", b)
    return tmp_path


@pytest.fixture(scope="module")
def shapes_splits():
    return {"train": make_shapes_dataset(60, image_size=48, seed=1), "validation": make_shapes_dataset(9, seed=2)}


@pytest.fixture(scope="module", params=FORMATS)
def shards_folder(request, shapes_splits, tmp_path_factory):
    """Seven shards of nine rows, the last with six, and one of validation."""
    path = tmp_path_factory.mktemp("shards") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", 9)
        convert_dataset(shapes_splits, path, request.param, 1)
    return path


@pytest.fixture
def sharded_train(shards_folder):
    return load_detection_dataset(shards_folder)["train"]
