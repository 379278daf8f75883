"""Other decoders of JPEG files: where they come in, that faults are told alike, and that their pixels are Pillow's."""

import io
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import tiny_model
from helpers.runs import quick_arguments
from PIL import Image

from rfdetr_hf import (
    PredictArguments,
    RFDETRImageProcessor,
    RFDETRTrainer,
    decode_image,
    decoding,
    evaluate_detector,
    find_images,
    load_detector,
    predict,
)
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.pixels import Picture, open_image
from rfdetr_hf.data.schema import detection_features

simplejpeg = pytest.importorskip("simplejpeg")


def encoded(width=83, height=61, mode="RGB", format="JPEG", **options) -> bytes:
    """A picture with smooth and with sharp parts."""
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    pixels[: height // 3] = rng.integers(0, 256, (height // 3, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def outcome(data: bytes, decoder: str, reduction: int = 1) -> tuple[torch.Tensor | None, str]:
    """Pixels (H, W, 3), or the words of the error."""
    try:
        picture = open_image({"image": {"bytes": data, "path": "x.jpg"}}, decoder)
        assert isinstance(picture, Picture)
        return picture.decode(reduction).to_tensor()[..., :3], ""
    except DetectionDataError as error:
        return None, str(error)


def same(data: bytes, reduction: int = 1) -> str:
    (pixels, words), (others, other_words) = (outcome(data, d, reduction) for d in ("pillow", "simplejpeg"))
    assert words == other_words
    if pixels is not None:
        assert others is not None and torch.equal(pixels, others)
    return words


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_the_pixels_are_those_of_pillow(subsampling, progressive, reduction):
    for quality in (30, 95):
        for size in ((83, 61), (160, 96)):
            assert (
                same(encoded(*size, subsampling=subsampling, progressive=progressive, quality=quality), reduction) == ""
            )


OTHERS = {
    "grey": encoded(mode="L"),
    "CMYK": encoded(mode="CMYK"),
    "RGB inside": encoded(keep_rgb=True),
    "PNG": encoded(format="PNG"),
    "palette": encoded(mode="P", format="GIF"),
    "quarter turn": encoded(exif=turned(6).tobytes()),
    "half turn": encoded(exif=turned(3).tobytes()),
    "restart markers": encoded(restart_marker_rows=1),
    "bytes behind its end": encoded() + b"\0" * 100,
    "no picture": b"no picture",
    "empty": b"",
    "a start alone": encoded()[:20],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_as_with_pillow(kind):
    for reduction in (1, 4):
        words = same(OTHERS[kind], reduction)
        assert bool(words) == (kind in ("no picture", "empty", "a start alone")), words


def test_pictures_of_16_bits_are_as_with_pillow():
    ramp = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))
    buffer = io.BytesIO()
    ramp.save(buffer, "PNG")
    row = {"image": {"bytes": buffer.getvalue(), "path": None}, "value_range": (0.0, 4095.0)}
    assert np.array_equal(*(np.asarray(decode_image(row, decoder)) for decoder in ("pillow", "simplejpeg")))


def test_every_truncation_and_damage_ends_as_with_pillow():
    data, noticed = encoded(), 0
    for length in range(2, len(data), 61):
        noticed += "cannot be decoded" in same(data[:length])
    assert noticed > 30
    start = data.index(b"\xff\xda")  # of the pixels
    for place in range(start + 20, len(data), 331):
        same(data[:place] + b"\x55\xaa\x13" + data[place + 3 :])


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "x.jpg: the image has too many pixels" in same(encoded())


def test_a_decoder_that_is_missing_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(decoding, "version", missing)
    decoding.require_decoder.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"needs the package simplejpeg: install the extra 'fast-jpeg'.*'pillow'"):
            RFDETRTrainer(tiny_model(), quick_arguments("run", image_decoder="simplejpeg", eval_strategy="no"), rows())
    finally:
        decoding.require_decoder.cache_clear()
    with pytest.raises(ValueError, match="image_decoder='libjpeg' is not known; choose one of pillow, simplejpeg"):
        quick_arguments("run", image_decoder="libjpeg")
    with pytest.raises(ValueError, match="image_decoder is 'libjpeg': it must be one of pillow, simplejpeg"):
        RFDETRImageProcessor(image_decoder="libjpeg")


def rows(count: int = 2) -> Dataset:
    """White pictures with an object."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(buffer, "JPEG", subsampling="4:4:4")
    objects = {"id": [1], "bbox": [[1, 2, 30, 40]], "category": [1], "area": [1200], "iscrowd": [False]}
    row = {"image": {"bytes": buffer.getvalue(), "path": None}, "width": 64, "height": 64, "objects": objects}
    features = detection_features(["circle", "square", "triangle"])
    return Dataset.from_list([{**row, "image_id": i, "file_name": f"{i}.jpg"} for i in range(count)], features=features)


@pytest.fixture
def black(monkeypatch):
    """What simplejpeg decodes is black, so that one sees who has decoded."""
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **options: np.zeros((64, 64, 3), np.uint8))


def test_training_and_evaluation_go_by_the_argument_and_the_model_folder_keeps_it(black, tmp_path):
    data = rows()
    args = quick_arguments(tmp_path / "run", image_decoder="simplejpeg", gradient_accumulation_steps=1)
    trainer = RFDETRTrainer(tiny_model(), args, data, data)
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        assert next(iter(loader))["pixel_values"].max() <= 0  # black, in bytes or normalised
    trainer.image_processor.save_pretrained(tmp_path)
    assert RFDETRImageProcessor.from_pretrained(tmp_path).image_decoder == "simplejpeg"
    plain = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "other"), data, data)
    assert next(iter(plain.get_train_dataloader()))["pixel_values"].min() == 255
    assert "image_decoder" not in plain.image_processor.to_dict()
    # A training of a model that another decoder taught says by its own argument.
    taught = RFDETRImageProcessor(image_decoder="simplejpeg")
    assert RFDETRTrainer(tiny_model(), args, data, data, taught).image_processor.image_decoder == "simplejpeg"
    again = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "other"), data, data, taught)
    assert again.image_processor.image_decoder == "pillow" and taught.image_decoder == "simplejpeg"
    # An evaluation alone goes by the model.
    alone = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "other"), None, data, taught)
    assert alone.image_processor.image_decoder == "simplejpeg"


def test_prediction_goes_by_the_model_folder(black, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    size = {"height": 64, "width": 64}
    RFDETRImageProcessor(size=size, image_decoder="simplejpeg").save_pretrained(tmp_path / "model")
    picture = tmp_path / "white.jpg"
    picture.write_bytes(rows()[0]["image"]["bytes"])
    detect = load_detector(str(tmp_path / "model"))
    seen = []

    def spy(images):
        seen.extend(np.asarray(image).max() for image in images)
        return detect(images)

    spy.image_decoder = detect.image_decoder
    evaluate_detector(spy, rows(1))
    assert seen == [0]
    assert detect.image_processor(str(picture), do_normalize=False)["pixel_values"].max() == 0
    predict(
        PredictArguments(
            str(tmp_path / "model"), images=[str(picture)], output_dir=str(tmp_path / "out"), threshold=1.0
        )
    )
    assert np.asarray(Image.open(tmp_path / "out" / "white.png")).max() == 0
    (image,) = find_images([picture])
    assert np.asarray(image.image).min() == 255
