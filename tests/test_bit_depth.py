"""Pictures of more than 8 bits: their real range, decided for the data set, told in the audit, equal in prediction."""

import json
import pickle
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from rfdetr_hf import (
    RFDETRImageProcessor,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    audit_dataset,
    load_detection_dataset,
)
from rfdetr_hf.bit_depth import CUT, DEEP, HEADER, SHALLOW, depth_of_header, is_deep
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import decode_image

RAMP = (np.mgrid[0:48, 0:64][1] * 4).astype(np.float64)  # 0 to 252
KINDS = {
    "16 bits": ("png", np.uint16, 257),
    "12 bits in 16": ("png", np.uint16, 16),
    "8 bits in 16": ("png", np.uint16, 1),
    "8 bits in 32": ("tif", np.int32, 1),
    "16 bits tif": ("tif", np.uint16, 257),
    "floats to 1": ("tif", np.float32, 1 / 252),
    "floats to 255": ("tif", np.float32, 1),
}


@pytest.fixture
def folder(tmp_path):
    """A data set of pictures: `folder(suffix, [arrays])`."""

    def make(suffix, pictures):
        for i, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(tmp_path / f"{i}.{suffix}")
        content = {
            "images": [{"id": i, "file_name": f"{i}.{suffix}", "width": 64, "height": 48}
                       for i in range(len(pictures))],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 20, 16]}
                            for i in range(len(pictures))],
            "categories": [{"id": 1, "name": "cat"}],
        }  # fmt: skip
        (tmp_path / "train.json").write_text(json.dumps(content))
        return load_detection_dataset(tmp_path)["train"]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_range_becomes_bytes(folder, kind):
    suffix, dtype, factor = KINDS[kind]
    train = folder(suffix, [(RAMP * factor).astype(dtype)])
    pixels = np.asarray(decode_image(train[0]))[..., 0].astype(float)
    assert np.abs(pixels - RAMP * (255 / 252 if kind == "floats to 1" else 1)).max() <= 1
    assert "more than 8 bits" in str(audit_dataset(train))


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_agrees_with_training(folder, tmp_path, kind):
    suffix, dtype, factor = KINDS[kind]
    train = folder(suffix, [(RAMP * factor).astype(dtype)])
    processor = RFDETRImageProcessor(size={"height": 48, "width": 64})
    ours = processor(images=decode_image(train[0]), return_tensors="pt")["pixel_values"]
    theirs = processor(images=Image.open(tmp_path / f"0.{suffix}"), return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().max() < 1e-6


def test_a_dark_picture_stays_dark_beside_bright_ones(folder):
    train = folder("png", [(RAMP * 16).astype(np.uint16), RAMP.astype(np.uint16)])
    assert np.asarray(decode_image(train[1])).max() == 252 // 16
    again = pickle.loads(pickle.dumps(train)).select([1])
    assert np.asarray(decode_image(again[0])).max() == 252 // 16


def test_the_audit_names_pictures_beyond_the_range(folder, monkeypatch, caplog):
    monkeypatch.setattr("rfdetr_hf.data.sense._LOOKED_AT", 1)
    train = folder("png", [(RAMP * factor).astype(np.uint16) for factor in (16, 257, 4)])
    audit_dataset(train)
    assert "1 picture has values beyond 0 to 4095, which are cut off, such as 1.png" in caplog.text


def test_eight_bits_have_no_range(folder):
    train = folder("png", [RAMP.astype(np.uint8)])
    assert "value_range" not in train.column_names and "more than 8 bits" not in str(audit_dataset(train))


def test_pictures_that_are_not_finite_are_named(folder):
    with pytest.raises(DetectionDataError, match=r"0.tif.*not finite"):
        folder("tif", [np.full((48, 64), np.nan, np.float32)])


@pytest.mark.parametrize("count", [0, "big", 1.5, True])
def test_the_limit_of_pixels_is_a_number(tmp_path, count):
    with pytest.raises(ValueError, match="max_image_pixels"):
        load_detection_dataset(tmp_path, max_image_pixels=count)


def test_the_largest_picture_is_an_option(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("RFDETR_HF_MAX_IMAGE_PIXELS", "2000")
    with pytest.raises(DetectionDataError, match=r"0.png.*max_image_pixels"):
        decode_image(folder("png", [RAMP.astype(np.uint8)])[0])
    monkeypatch.setenv("RFDETR_HF_MAX_IMAGE_PIXELS", "100000")
    assert decode_image(folder("png", [RAMP.astype(np.uint8)])[0]).size == (64, 48)


@pytest.mark.parametrize("inline", [False, True])
def test_one_deep_picture_among_many_is_seen(tmp_path, inline):
    """Its header says it, wherever it stands, in whichever split."""
    for i in range(150):
        pixels = RAMP.astype(np.uint8) if i != 101 else (RAMP * 16).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", compress_level=1)
    objects = {"bbox": [[8, 8, 20, 16]], "category": ["cat"]}
    paths = [str(tmp_path / f"{i}.png") for i in range(150)]
    images = [{"bytes": Path(path).read_bytes(), "path": None} if inline else path for path in paths]
    data = datasets.Dataset.from_dict({"image": images, "objects": [objects] * 150})
    data = data.cast_column("image", datasets.Image())
    parts = datasets.DatasetDict(train=data.select(range(100)), test=data.select(range(100, 150)))
    splits = load_detection_dataset(parts)
    for split in splits.values():
        assert split[0]["value_range"] == [0, 4095]
    assert np.asarray(decode_image(splits["test"][1])).max() == 252


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_a_header_says_how_deep_a_picture_is(tmp_path, suffix):
    kinds = {"L": False, "RGB": False, "I;16": True} if suffix != "pgm" else {"L": False, "I": True}
    kinds |= {"tif": {"F": True, "I": True}, "png": {"P": False, "LA": False, "1": False}}.get(suffix, {})
    for mode, deep in kinds.items():
        file = tmp_path / f"a.{suffix}"
        Image.new(mode, (8, 8)).save(file)
        depth = depth_of_header(file.read_bytes()[:HEADER], lambda path=file: path)
        assert depth == (DEEP if deep else SHALLOW) and deep == is_deep(Image.open(file))


def write_deep_colours(path, pixels):
    """(H, W, C) uint16 as a PNG of 16 bits a channel, or as a TIFF file, which Pillow does not write."""
    height, width, channels = pixels.shape
    if path.suffix == ".tif":
        entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8 + 2 + 12 * 8 + 4), (259, 3, 1, 1),
                   (262, 3, 1, 2), (273, 4, 1, 200), (277, 3, 1, 3), (279, 4, 1, pixels.nbytes)]  # fmt: skip
        head = struct.pack("<2sHIH", b"II", 42, 8, 8) + b"".join(struct.pack("<HHII", *each) for each in entries)
        head += struct.pack("<IHHH", 0, 16, 16, 16)
        path.write_bytes(head.ljust(200, b"\0") + pixels.astype("<u2").tobytes())
        return

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 3), ("png", 2), ("png", 4), ("tif", 3)])
def test_colours_of_fewer_bits_than_their_file_are_an_error(folder, tmp_path, caplog, suffix, channels):
    folder(suffix, [RAMP.astype(np.uint8)] * 2)
    file, pixels = tmp_path / f"1.{suffix}", np.stack([RAMP] * channels, axis=2)
    write_deep_colours(file, (pixels * 257).astype(np.uint16))
    assert depth_of_header(file.read_bytes()[:HEADER], lambda: file) == CUT
    train = load_detection_dataset(tmp_path)["train"]
    assert "of 1 picture with 16 bits a colour the upper 8 are used" in caplog.text
    assert np.abs(np.asarray(decode_image(train[1]))[..., 0] - RAMP).max() <= 1
    write_deep_colours(file, (pixels * 47).astype(np.uint16))  # of the night, or of 14 bits
    assert len(load_detection_dataset(tmp_path)["train"]) == 2
    assert "these go up to 46 of 255: numbers of 10, 12 or 14 bits become nearly black; if" in caplog.text
    write_deep_colours(file, (pixels * 16).astype(np.uint16))
    with pytest.raises(
        DetectionDataError, match=rf"has 16 bits a colour, such as 1.{suffix}.*up to 15 of 255.*with 8 bits"
    ):
        load_detection_dataset(tmp_path)


def test_a_run_goes_by_the_range_of_a_processor_that_is_given(folder, caplog, tmp_path, tiny_model):
    train = folder("png", [(RAMP * 16).astype(np.uint16)] * 2)
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64}, value_range=[0, 1023])
    args = RFDETRTrainingArguments(str(tmp_path / "run"), dataloader_num_workers=0, per_device_train_batch_size=1,
                                   multi_scale="off", augmentation="none")  # fmt: skip
    model = tiny_model(names=("cat",))
    trainer = RFDETRTrainer(model, args, train_dataset=train, eval_dataset=train, image_processor=processor)
    assert "has value_range=[0, 1023], and the training pictures have [0.0, 4095.0]" in caplog.text
    expected = processor(images=Image.open(tmp_path / "0.png"), return_tensors="pt")["pixel_values"]
    found = trainer.to_device(next(iter(trainer.get_eval_dataloader())))["pixel_values"]
    assert (found - expected).abs().max() < 1e-6
    mean = trainer.to_device(next(iter(trainer.get_train_dataloader())))["pixel_values"].mean()
    assert abs(mean - expected.mean()) < 0.02


def test_a_deep_picture_of_a_data_set_without_a_range_is_an_error(folder):
    row = folder("png", [(RAMP * 16).astype(np.uint16)])[0]
    row = {name: value for name, value in row.items() if name != "value_range"}
    with pytest.raises(DetectionDataError, match=r"0.png: the image has more than 8 bits, and field value_range"):
        decode_image(row)
