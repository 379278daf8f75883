import json

import pytest
import yaml


@pytest.fixture
def write_yolo(tmp_path, write_image):
    """Write a data set of 64x48 images: `write_yolo({"images/train/a.jpg": rows or None}, **fields of the yaml)`."""

    def write(images, label_dir="labels", folder="set", **fields):
        root = tmp_path / folder
        for name, rows in images.items():
            write_image(root / name)
            head, _, tail = name.rpartition("images/")
            label = (root / head / label_dir / tail if "images/" in name else root / name).with_suffix(".txt")
            if rows is not None:
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(rows)
        content = {"train": "images/train", "names": ["cat", "dog"], **fields}
        (root / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return root

    return write


@pytest.fixture
def studio(tmp_path, write_image):
    """Write an export: `studio(tasks)`."""

    def write(*tasks):
        for name in ("a.jpg", "b c.jpg"):
            write_image(tmp_path / "images" / name)
        (tmp_path / "export.json").write_text(json.dumps(list(tasks)), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def voc(tmp_path, write_image):
    """Write a classic folder: `voc({"train": {"a": text}})`."""

    def write(splits):
        for split, files in splits.items():
            for stem, text in files.items():
                write_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
                (tmp_path / "Annotations").mkdir(exist_ok=True)
                (tmp_path / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
            (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(files) + "\n")
        return tmp_path

    return write
