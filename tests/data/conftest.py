import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


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
