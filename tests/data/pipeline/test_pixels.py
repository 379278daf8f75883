"""Pixels of files and rows: decoded, turned as their size says, and errors by name."""

import numpy as np
import pytest
from PIL import Image

from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.pixels import Picture, check_image, image_size, open_image
from rfdetr_hf.data.schema import decode_image


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.pad([[65535]], (0, 3), constant_values=513).astype(np.uint16), (2, 2, 2)),
        (np.full((4, 4), 7, dtype=np.uint8), (7, 7, 7)),
        (np.full((4, 4, 4), 9, dtype=np.uint8), (9, 9, 9)),
    ],
    ids=["16-bit grey", "grey", "alpha"],
)
def test_every_mode_becomes_rgb(array, expected, tmp_path):
    Image.fromarray(array).save(tmp_path / "x.png")
    image = decode_image({"image": tmp_path / "x.png"})
    assert image.mode == "RGB" and image.getpixel((1, 1)) == expected


def tagged(path, orientation, size=(8, 6)):
    """An image whose stored top left quarter is white, with an EXIF orientation."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return {"image": str(path)}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
def test_the_annotated_size_decides_whether_exif_is_obeyed(tmp_path, suffix):
    row = tagged(tmp_path / f"x{suffix}", orientation=6)
    turned = decode_image({**row, "width": 6, "height": 8})
    assert turned.size == (6, 8) == image_size(row["image"], row)
    assert (
        turned.getpixel((5, 0))[0] > 200 and turned.getpixel((0, 0))[0] < 60
    )  # turned clockwise: white at the top right
    assert decode_image(row).size == (6, 8)
    check_image({**row, "width": 6, "height": 8}, decode=True)
    kept = decode_image({**row, "width": 8, "height": 6})
    assert kept.size == (8, 6) and kept.getpixel((0, 0))[0] > 200
    assert decode_image({"image": kept}).size == (8, 6), "an image that was left as stored must not be turned later"
    check_image({**row, "width": 8, "height": 6}, decode=True)


def test_half_turn_is_obeyed_and_another_size_is_an_error(tmp_path):
    row = tagged(tmp_path / "x.jpg", orientation=3)
    assert decode_image({**row, "width": 8, "height": 6}).getpixel((7, 5))[0] > 200
    for check in (decode_image, lambda example: check_image(example, decode=False)):
        with pytest.raises(DetectionDataError, match=r"x\.jpg: the image is 8x6 pixels .* say 9x6"):
            check({**row, "width": 9, "height": 6})


def test_open_image_leaves_plain_jpegs_undecoded_and_names_their_faults(tmp_path, write_image):
    path = write_image(tmp_path / "x.jpg", (64, 48))
    with open_image({"image": str(path), "width": 64, "height": 48}) as image:
        assert isinstance(image, Picture) and image.decode(4).to_tensor().shape[:2] == (12, 16)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DetectionDataError, match=r"x\.jpg: the image cannot be decoded"):
        with open_image({"image": str(path)}) as image:
            image.load()
    with pytest.raises(ZeroDivisionError):
        with open_image({"image": str(path)}):
            raise ZeroDivisionError


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_truncation_is_noticed_as_by_a_full_decode(tmp_path, write_image, suffix):
    data = write_image(tmp_path / f"x{suffix}", (40, 32)).read_bytes()
    noticed = 0
    for length in range(0, len(data), 37):
        row = {"image": {"bytes": data[:length], "path": "cut"}, "width": 40, "height": 32}
        try:
            decode_image(row)
            full = True
        except DetectionDataError as error:
            assert str(error).startswith("cut: ")
            full = False
        try:
            check_image(row, decode=True)
            fast = True
        except DetectionDataError:
            fast = False
        assert fast == full, f"cut at {length}"
        noticed += not fast
    assert noticed >= len(range(0, len(data) - 40, 37))


def test_missing_file_and_missing_image_say_so(tmp_path):
    with pytest.raises(DetectionDataError, match=r"gone\.jpg: the image file is missing"):
        decode_image({"image": str(tmp_path / "gone.jpg")})
    with pytest.raises(DetectionDataError, match="image_id 7: no image"):
        decode_image({"image": {"path": None, "bytes": None}, "image_id": 7})
