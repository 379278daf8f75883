import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers.pictures import picture
from packaging import version
from PIL import Image
from transformers.image_processing_utils import is_valid_size_dict
from transformers.processing_utils import ImagesKwargs

from rfdetr_hf import RFDETRImageProcessor
from rfdetr_hf.models.image_processing_rfdetr import select_top_detections

PIXEL_LIMITS = {"min_pixels": 4, "max_pixels": 9}
# Older Transformers does not know this kind of size, and refuses it before our processor is asked.
SIZE_MESSAGE = "give height and width" if is_valid_size_dict(PIXEL_LIMITS) else "size must have one of"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Textbook sampling at pixel centres, (H, W, C), without a filter."""

    def axis(size: int, target: int):
        at = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    top, bottom, v = axis(image.shape[0], height)
    left, right, u = axis(image.shape[1], width)
    u, v = u[None, :, None], v[:, None, None]
    rows = image[top] * (1 - v) + image[bottom] * v
    return rows[:, left] * (1 - u) + rows[:, right] * u


def test_pixels_are_rescaled_resized_and_normalised():
    image = picture(50, 70)
    out = RFDETRImageProcessor(size={"height": 24, "width": 32})(Image.fromarray(image))
    expected = (bilinear(image / 255, 24, 32) - MEAN) / STD
    assert list(out) == ["pixel_values"] and out["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(out["pixel_values"][0].permute(1, 2, 0), expected, rtol=0, atol=5e-5)


def test_antialias_is_a_choice():
    image = picture(200, 200)
    plain = RFDETRImageProcessor(size=20, antialias=False)(image)["pixel_values"]
    smooth = RFDETRImageProcessor(size=20, antialias=True)(image)["pixel_values"]
    assert plain.shape == (1, 3, 20, 20) and smooth.std() < plain.std() / 2
    assert torch.equal(RFDETRImageProcessor(size=20)(image, antialias=True)["pixel_values"], smooth)


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a,
        lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)),
        lambda a: torch.from_numpy(a),
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: a.astype(np.float64),
        lambda a: torch.from_numpy(a).to(torch.bfloat16),
        lambda a: [Image.fromarray(a)],
        lambda a: np.dstack([a, 255 - a[..., :1]]),
        lambda a: Image.fromarray(np.dstack([a, 255 - a[..., :1]]), "RGBA"),
        lambda a: a[None],
        lambda a: a[::-1][::-1],
    ],
)
def test_inputs_of_all_kinds_are_one_picture(convert):
    image, processor = picture(), RFDETRImageProcessor(size=16)
    expected = processor(Image.fromarray(image))["pixel_values"]
    assert torch.equal(processor(convert(image))["pixel_values"], expected)


def test_floats_that_are_rescaled_already():
    image, processor = picture(), RFDETRImageProcessor(size=16)
    scaled = processor(image.astype(np.float32) / np.float32(255), do_rescale=False)["pixel_values"]
    torch.testing.assert_close(scaled, processor(image)["pixel_values"], atol=1e-5, rtol=0)


def test_grey_and_palette_become_rgb():
    processor = RFDETRImageProcessor(size=16)
    grey = picture(channels=1)[..., 0]
    expected = processor(np.dstack([grey] * 3))["pixel_values"]
    for image in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        assert torch.equal(processor(image)["pixel_values"], expected)
    palette = Image.fromarray(picture()).quantize(16)
    expected = processor(np.array(palette.convert("RGB")))["pixel_values"]
    palette.info["transparency"] = bytes(range(16))
    assert torch.equal(processor(palette)["pixel_values"], expected)


def test_a_list_may_mix_kinds_and_sizes():
    images = [picture(20, 30), Image.fromarray(picture(40, 10)), torch.from_numpy(picture(9, 9)).permute(2, 0, 1)]
    processor = RFDETRImageProcessor(size=16)
    out = processor(images)
    assert list(out) == ["pixel_values"], "equal sizes need no mask"
    for row, image in zip(out["pixel_values"], images, strict=True):
        assert torch.equal(row, processor(image)["pixel_values"][0])


def test_exif_orientation_is_honoured(tmp_path):
    image = Image.fromarray(picture(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    image.save(tmp_path / "turned.png", exif=exif)
    processor = RFDETRImageProcessor(do_resize=False)
    expected = processor(np.rot90(np.array(image), -1))["pixel_values"]
    assert expected.shape[-2:] == (30, 20)
    assert torch.equal(processor(Image.open(tmp_path / "turned.png"))["pixel_values"], expected)
    assert torch.equal(processor(str(tmp_path / "turned.png"))["pixel_values"], expected), "a path is an image too"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 12, "width": 20}, (12, 20)),
        ({"shortest_edge": 50, "longest_edge": 1000}, (50, 100)),
        ({"shortest_edge": 50, "longest_edge": 80}, (40, 80)),
        ({"shortest_edge": 50}, (50, 100)),
        ({"longest_edge": 60}, (30, 60)),
        ({"max_height": 40, "max_width": 40}, (20, 40)),
        (24, (24, 24)),
    ],
)
def test_sizes(size, expected):
    out = RFDETRImageProcessor(size=size)(picture(100, 200))
    assert tuple(out["pixel_values"].shape[-2:]) == expected and "pixel_mask" not in out


def test_padding():
    images = [picture(20, 30), picture(40, 10)]
    processor = RFDETRImageProcessor(do_resize=False, size_divisor=16)
    out = processor(images)
    assert out["pixel_values"].shape == (2, 3, 48, 32) and out["pixel_mask"].shape == (2, 48, 32)
    for row, mask, image in zip(out["pixel_values"], out["pixel_mask"], images, strict=True):
        height, width = image.shape[:2]
        assert mask[:height, :width].all() and mask.sum() == height * width
        assert (row[:, mask == 0] == 0).all()
        assert torch.equal(row[:, :height, :width], processor(image, size_divisor=1)["pixel_values"][0])
    assert processor(images, pad_size={"height": 64, "width": 96})["pixel_mask"].shape == (2, 64, 96)
    with pytest.raises(ValueError, match=r"pad_size \(32, 96\) is smaller than an image of \(40, 30\)"):
        processor(images, pad_size={"height": 32, "width": 96})
    with pytest.raises(ValueError, match=r"\(20, 30\), \(40, 10\).*do_pad=True"):
        processor(images, do_pad=False)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.zeros((9, 9, 3), np.int64), {}, TypeError, "int64"),
        (np.zeros((9, 9, 2), np.uint8), {}, ValueError, r"\(2, 9, 9\)|\(9, 9, 2\)"),
        ([], {}, ValueError, "empty list"),
        (picture(), {"do_center_crop": True, "crop_size": 8}, ValueError, "does not crop"),
        (picture(), {"data_format": "channels_last"}, ValueError, "channels-first"),
        (picture(), {"resample": 1}, ValueError, "bilinear"),
        (picture(), {"size": PIXEL_LIMITS}, ValueError, SIZE_MESSAGE),
        (picture(), {"rescale_factor": float("nan")}, ValueError, "rescale_factor is nan"),
        (picture(), {"image_mean": [float("nan")] * 3}, ValueError, "image_mean is .nan, nan, nan"),
        (picture(), {"image_std": 0.0}, ValueError, "image_std is 0.0"),
    ],
)
def test_unusable_input(images, options, error, message):
    with pytest.raises(error, match=message):
        RFDETRImageProcessor()(images, **options)


def test_numpy_output():
    objects = [{"bbox": [1, 2, 3, 4], "category_id": 0}]
    out = RFDETRImageProcessor(size=16)(picture(), {"image_id": 1, "annotations": objects}, return_tensors="np")
    assert isinstance(out["pixel_values"], np.ndarray) and isinstance(out["labels"][0]["boxes"], np.ndarray)


def test_save_and_load(tmp_path):
    processor = RFDETRImageProcessor(size=40, antialias=True, size_divisor=8, do_pad=False, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert fields["image_processor_type"] == "RfDetrImageProcessor"
    assert fields["size"] == {"height": 40, "width": 40} and fields["do_pad"] is False
    native = set(ImagesKwargs.__annotations__) | {"image_processor_type"}
    assert set(fields) - native == {"antialias", "size_divisor"}, "what transformers keeps as attributes and ignores"
    again = RFDETRImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert torch.equal(again(picture())["pixel_values"], processor(picture())["pixel_values"])
    assert RFDETRImageProcessor.from_pretrained(tmp_path, size=24).size == {"height": 24, "width": 24}


def test_reads_the_file_of_the_native_class(tmp_path):
    native = {
        "do_convert_annotations": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "format": "coco_detection",
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "RfDetrImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 64, "shortest_edge": 40},
        "a_later_field": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(native))
    processor = RFDETRImageProcessor.from_pretrained(tmp_path)
    assert processor(picture(100, 200))["pixel_values"].shape == (1, 3, 32, 64)
    saved = json.loads(processor.to_json_string())
    assert {key: saved[key] for key in native} == native, "nothing of the file is lost when it is saved again"


def test_plain_transformers_reads_ours(tmp_path):
    pytest.importorskip("torchvision")
    before_5_18 = version.parse(transformers.__version__) < version.parse("5.18")
    processor = RFDETRImageProcessor(size={"height": 48, "width": 64}, antialias=before_5_18)
    processor.save_pretrained(tmp_path)
    native = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(native).__name__ == "RfDetrImageProcessor"
    image = Image.fromarray(picture(90, 70))
    theirs = native(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(image)["pixel_values"], theirs, atol=1e-5, rtol=0)


def test_torchvision_is_not_imported_by_us():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from rfdetr_hf.models.image_processing_rfdetr import RFDETRImageProcessor\n"
        "import numpy; RFDETRImageProcessor(size=8)(numpy.zeros((9, 9, 3), 'uint8'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("variant", ["nano", "base"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_post_processing_equals_the_golden(golden, variant, as_tensor):
    numbers = golden(variant)
    outputs = SimpleNamespace(logits=numbers["eval"]["pred_logits"], pred_boxes=numbers["eval"]["pred_boxes"])
    sizes = [(480, 640)] * len(outputs.logits)
    results = RFDETRImageProcessor().post_process_object_detection(
        outputs, threshold=-1, target_sizes=torch.tensor(sizes) if as_tensor else sizes, top_k=50
    )
    for result, expected in zip(results, numbers["postprocess"], strict=True):
        torch.testing.assert_close(result["scores"], expected["scores"], atol=1e-12, rtol=0)
        torch.testing.assert_close(result["boxes"], expected["boxes"], atol=1e-12, rtol=0)
        assert torch.equal(result["labels"], expected["labels"])


def outputs_of(probabilities, boxes) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.logit(torch.tensor(probabilities)), pred_boxes=torch.tensor(boxes))


def test_threshold_is_strict_and_images_have_their_own_counts():
    boxes = [[[0.5, 0.5, 0.2, 0.4]] * 2] * 2
    outputs = outputs_of([[[0.9, 0.5], [0.2, 0.7]], [[0.1, 0.5], [0.2, 0.3]]], boxes)
    first, second = RFDETRImageProcessor().post_process_object_detection(outputs, target_sizes=[(10, 20), (10, 20)])
    torch.testing.assert_close(first["scores"], torch.tensor([0.9, 0.7]))
    assert first["labels"].tolist() == [0, 1] and len(second["scores"]) == 0 and second["boxes"].shape == (0, 4)
    torch.testing.assert_close(first["boxes"], torch.tensor([[8.0, 3, 12, 7]] * 2))
    all_pairs = RFDETRImageProcessor().post_process_object_detection(outputs, threshold=0.0, top_k=99)
    assert [len(result["scores"]) for result in all_pairs] == [4, 4]


def test_boxes_stay_inside_the_image():
    boxes = [[[0.0, 0.5, 0.4, 4.0], [0.9, 0.9, 0.5, -0.1]]]
    outputs = outputs_of([[[0.9], [0.8]]], boxes)
    processor = RFDETRImageProcessor()
    (relative,) = processor.post_process_object_detection(outputs)
    torch.testing.assert_close(relative["boxes"], torch.tensor([[0, 0, 0.2, 1], [0.65, 0.9, 1, 0.9]]))
    (absolute,) = processor.post_process_object_detection(outputs, target_sizes=torch.tensor([[50, 100]]))
    torch.testing.assert_close(absolute["boxes"], torch.tensor([[0.0, 0, 20, 50], [65, 45, 100, 45]]))


def test_ties_keep_the_order_of_queries_and_labels():
    logits = torch.full((2, 40, 5), 50.0)  # saturated: every float32 probability is 1
    logits[1, 7, 3], logits[1, 0, 0] = 100, -1
    scores, labels, queries = select_top_detections(logits, top_k=100)
    flat = queries * 5 + labels
    assert (scores == 1).all()
    assert flat[0].tolist() == list(range(100)) and flat[1].tolist() == list(range(1, 101))


def test_half_precision_is_ranked_in_float32():
    logits = torch.tensor([[[3.0], [3.015625]]], dtype=torch.bfloat16)
    assert logits.sigmoid().unique().numel() == 1
    scores, _, queries = select_top_detections(logits)
    assert scores.dtype == torch.float32 and queries.tolist() == [[1, 0]]


def test_a_diverged_model_shows():
    outputs = outputs_of([[[0.9], [float("nan")]]], [[[0.5, 0.5, 0.2, 0.4]] * 2])
    (result,) = RFDETRImageProcessor().post_process_object_detection(outputs)
    assert result["scores"].isnan().sum() == 1 and len(result["scores"]) == 2


def test_unusable_post_processing_arguments():
    outputs = outputs_of([[[0.9]]], [[[0.5, 0.5, 0.2, 0.4]]])
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        RFDETRImageProcessor().post_process_object_detection(outputs, target_sizes=[(9, 9), (9, 9)])
    with pytest.raises(ValueError, match="top_k=0"):
        RFDETRImageProcessor().post_process_object_detection(outputs, top_k=0)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_few_rows_of_pixels_are_no_channels(rows):
    pixels = np.random.RandomState(0).randint(0, 256, (rows, 70, 3)).astype("uint8")
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64})
    expected = processor(Image.fromarray(pixels))["pixel_values"]
    assert torch.equal(processor(pixels)["pixel_values"], expected)
    assert torch.equal(processor(torch.from_numpy(pixels).permute(2, 0, 1))["pixel_values"], expected)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((0, 20, 3), np.uint8), "no pixels"),
        (np.full((20, 20, 3), np.nan, np.float32), "NaN or infinity"),
        (torch.full((3, 20, 20), torch.inf), "NaN or infinity"),
    ],
)
def test_pictures_without_pixels_or_numbers(pixels, message):
    with pytest.raises(ValueError, match=message):
        RFDETRImageProcessor()(pixels, do_rescale=False)


def test_unknown_fields(tmp_path):
    with pytest.raises(TypeError, match=r"unknown fields \['do_resiz', 'sizee'\].*did you mean 'do_resize'"):
        RFDETRImageProcessor(sizee=64, do_resiz=False)
    RFDETRImageProcessor(**RFDETRImageProcessor().to_dict())
    fields = RFDETRImageProcessor(size=16).to_dict() | {"theirs": 1}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields, default=dict))
    stored = RFDETRImageProcessor.from_pretrained(tmp_path)
    assert (stored.theirs, stored.size["height"]) == (1, 16)
