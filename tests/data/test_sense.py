"""What splits say about each other, and whether there is anything to learn and to score."""

import json
import re

import numpy as np
import pytest
from PIL import Image as PILImage

from rfdetr_hf import convert_dataset, load_detection_dataset
from rfdetr_hf.data.schema import decode_image


def turned(folder, others, orientation, size, suffix="jpg", told=6):
    """A COCO folder: photographs of EXIF orientation 6 whose sizes are as `others`, and one that could be both."""
    pixels, images = np.zeros((48, 64, 3), np.uint8), []
    pixels[5:15, 5:25] = 255
    for i in range(told + 1 if others else 1):
        tag, stored, frame = (6, pixels, others) if i else (orientation, pixels[: size[1], : size[0]], size)
        exif = PILImage.Exif()
        exif[0x0112] = tag
        folder.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(stored).save(
            folder / f"{i}.{suffix}", exif=exif, **({"quality": 95} if suffix != "tif" else {})
        )
        images.append({"id": i, "file_name": f"{i}.{suffix}", "width": frame[0], "height": frame[1]})
    annotations = [{"id": i, "image_id": i, "bbox": [5, 5, 20, 10], "category_id": 1} for i in range(len(images))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return folder.parent


@pytest.mark.parametrize(("orientation", "size"), [(3, (64, 48)), (6, (48, 48))])
@pytest.mark.parametrize(("others", "frame"), [((64, 48), "stored"), ((48, 64), "shown"), (None, "shown")])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_photographs_whose_size_does_not_tell_are_read_as_the_others(
    tmp_path, caplog, orientation, size, others, frame, suffix
):
    splits = load_detection_dataset(turned(tmp_path / "set/train", others, orientation, size, suffix))
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


WAYS = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT, 3: PILImage.Transpose.ROTATE_180, 4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE, 6: PILImage.Transpose.ROTATE_90, 7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", WAYS)
@pytest.mark.parametrize("frame", ["shown", "stored", None])
def test_boxes_lie_on_their_pixels_whatever_tag_a_format_has(tmp_path, caplog, suffix, orientation, frame):
    shown = np.zeros((48, 64, 3), np.uint8)
    shown[5:15, 10:30] = 255
    stored = PILImage.fromarray(shown).transpose(WAYS[orientation])
    pixels = np.asarray(stored if frame == "stored" else PILImage.fromarray(shown))
    rows, columns = np.flatnonzero(pixels.any(axis=(1, 2))), np.flatnonzero(pixels.any(axis=(0, 2)))
    box = [int(columns[0]), int(rows[0]), len(columns), len(rows)]
    size = {"shown": (64, 48), "stored": stored.size, None: (None, None)}[frame]
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    (tmp_path / "train").mkdir()
    stored.save(tmp_path / f"train/a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    content = {"images": [{"id": 1, "file_name": f"a.{suffix}", "width": size[0], "height": size[1]}],
               "annotations": [{"id": 1, "image_id": 1, "bbox": box, "category_id": 1}],
               "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(content))
    row = load_detection_dataset(tmp_path)["train"][0]
    # Where the sizes are equal nothing tells: the picture as it is shown, with a warning.
    doubtful = orientation < 5
    assert ("one size as stored and as shown" in caplog.text) == doubtful
    image = decode_image(row)
    bright = np.asarray(image.convert("L")) > 128
    x, y, width, height = box
    expected = frame != "stored" or not doubtful
    assert bright[y : y + height, x : x + width].all() == expected and image.size == (row["width"], row["height"])
    assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(("told", "frames"), [(1, ["stored", "shown"]), (2, ["stored", "shown"]), (3, ["stored"] * 2)])
def test_one_photograph_does_not_tell_for_many(tmp_path, told, frames):
    """One of a kind, then six of which one or two others tell nothing, and three do."""
    for squares, frame in zip((1, 6), frames, strict=True):
        folder = turned(tmp_path / f"{squares}/train", (64, 48), 3, (64, 48), told=told)
        content = json.loads((folder / "train/_annotations.coco.json").read_text())
        for i in range(100, 99 + squares):
            (folder / f"train/{i}.jpg").write_bytes((folder / "train/0.jpg").read_bytes())
            content["images"].append(content["images"][0] | {"id": i, "file_name": f"{i}.jpg"})
        (folder / "train/_annotations.coco.json").write_text(json.dumps(content))
        train = load_detection_dataset(folder)["train"]
        assert ("as_stored" in train.column_names) == (frame == "stored")
