"""What splits say about each other, and whether there is anything to learn and to score."""

import json
import re

import numpy as np
import pytest
from PIL import Image as PILImage

from rfdetr_hf import convert_dataset, load_detection_dataset
from rfdetr_hf.data.schema import decode_image


def turned(folder, others, orientation, size):
    """A COCO folder: six photographs of EXIF orientation 6 whose sizes are as `others`, and one that could be both."""
    pixels, images = np.zeros((48, 64, 3), np.uint8), []
    pixels[5:15, 5:25] = 255
    for i in range(7 if others else 1):
        tag, stored, frame = (6, pixels, others) if i else (orientation, pixels[: size[1], : size[0]], size)
        exif = PILImage.Exif()
        exif[0x0112] = tag
        folder.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(stored).save(folder / f"{i}.jpg", exif=exif, quality=95)
        images.append({"id": i, "file_name": f"{i}.jpg", "width": frame[0], "height": frame[1]})
    annotations = [{"id": i, "image_id": i, "bbox": [5, 5, 20, 10], "category_id": 1} for i in range(len(images))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder.parent


@pytest.mark.parametrize(("orientation", "size"), [(3, (64, 48)), (6, (48, 48))])
@pytest.mark.parametrize(("others", "frame"), [((64, 48), "stored"), ((48, 64), "shown"), (None, "shown")])
def test_photographs_whose_size_does_not_tell_are_read_as_the_others(
    tmp_path, caplog, orientation, size, others, frame
):
    splits = load_detection_dataset(turned(tmp_path / "set/train", others, orientation, size))
    told = f"1 picture with an EXIF tag and one size .* boxes are read as {frame}"
    assert bool(re.search(told, caplog.text)) == (others != (48, 64))
    mixed = load_detection_dataset(sources=[tmp_path / "set", turned(tmp_path / "other/train", (48, 64), 3, (64, 48))])
    convert_dataset(splits, tmp_path / "shards", "parquet", 1)
    for read in (splits, mixed, load_detection_dataset(tmp_path / "shards")):
        row = read["train"][0]
        inside = np.asarray(decode_image(row))[6:14, 6:24]
        assert (inside.min() > 128) == (frame == "stored") and row["objects"]["bbox"] == [[5, 5, 20, 10]]
        if "as_stored" in read["train"].column_names:
            assert list(read["train"]["as_stored"]) == [True] + [False] * (len(read["train"]) - 1)
