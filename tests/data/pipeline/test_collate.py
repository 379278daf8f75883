import pickle

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn import functional as F

from rfdetr_hf import RFDETRImageProcessor
from rfdetr_hf.data.pipeline.collate import DetectionCollator, PackedTargets
from rfdetr_hf.data.pipeline.pixels import prepare_pixels
from rfdetr_hf.data.pipeline.view import Sample

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_sample(image_id, height, width, boxes, kind="bytes"):
    pixels = np.random.default_rng(image_id).integers(1, 256, (height, width, 3), dtype=np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    target = {
        "boxes": boxes,
        "class_labels": np.arange(len(boxes)) + image_id,
        "area": np.full(len(boxes), 5, np.float32),
        "iscrowd": np.zeros(len(boxes), bool),
    }
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    image = image / 255 if kind == "float" else image
    return Sample(image, target, image_id, (height * 2, width * 2))


def mixed_samples(kind="bytes"):
    return [
        make_sample(3, 40, 20, [[0, 0, 10, 20], [5, 10, 15, 40]], kind),
        make_sample(4, 30, 50, [], kind),
        make_sample(5, 24, 24, [[6, 6, 18, 12]], kind),
    ]


def test_equal_sizes_have_no_mask_and_keep_their_bytes():
    samples = [make_sample(i, 32, 48, []) for i in range(3)]
    batch = DetectionCollator(16)(samples)
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].shape == (3, 3, 32, 48)
    for row, sample in zip(batch["pixel_values"], samples, strict=True):
        assert torch.equal(row, sample.image)


@pytest.mark.parametrize(("kind", "dtype"), [("bytes", torch.uint8), ("float", torch.float32)])
def test_padding_is_at_the_bottom_and_right_up_to_the_divisor(kind, dtype):
    samples = mixed_samples(kind)
    batch = DetectionCollator(32)(samples)
    pixels, mask = batch["pixel_values"], batch["pixel_mask"]
    assert pixels.dtype == dtype and pixels.shape == (3, 3, 64, 64) and mask.shape == (3, 64, 64)
    for row, row_mask, (height, width) in zip(pixels, mask, [(40, 20), (30, 50), (24, 24)], strict=True):
        assert row_mask[:height, :width].all() and row_mask.sum() == height * width
        assert (row[:, row_mask] > 0).all() and not row[:, ~row_mask].any()


def test_a_divisor_alone_makes_padding():
    batch = DetectionCollator(32)([make_sample(1, 40, 40, [])])
    assert batch["pixel_values"].shape == (1, 3, 64, 64) and batch["pixel_mask"].sum() == 1600


def test_targets_survive_packing():
    labels = DetectionCollator(32)(mixed_samples())["labels"]
    assert labels.num_boxes == 3 and len(labels) == 3 and labels.counts == [2, 0, 1]
    first, second, third = labels.unpack()
    # cxcywh over the image's own size, not the padded one
    assert first["boxes"].tolist() == [[0.25, 0.25, 0.5, 0.5], [0.5, 0.625, 0.5, 0.75]]
    assert third["boxes"].tolist() == [[0.5, 0.375, 0.5, 0.25]]
    assert second["boxes"].shape == (0, 4)
    assert [first["class_labels"].tolist(), second["class_labels"].tolist(), third["class_labels"].tolist()] == [
        [3, 4], [], [5],
    ]  # fmt: skip
    assert [target["image_id"].item() for target in (first, second, third)] == [3, 4, 5]
    assert first["orig_size"].tolist() == [80, 40] and first["size"].tolist() == [40, 20]
    assert first["class_labels"].dtype == first["image_id"].dtype == torch.int64
    assert first["boxes"].dtype == first["area"].dtype == torch.float32 and first["iscrowd"].dtype == torch.bool


def test_a_batch_without_any_object():
    labels = DetectionCollator()([make_sample(i, 8, 8, []) for i in range(2)])["labels"]
    assert labels.num_boxes == 0
    assert [target["boxes"].shape for target in labels.unpack()] == [(0, 4), (0, 4)]


def test_fields_must_agree_within_a_batch():
    samples = mixed_samples()
    samples[2].target["masks"] = np.zeros((1, 4))
    with pytest.raises(ValueError, match="image 5.*masks"):
        DetectionCollator()(samples)


def assert_equal(left, right):
    assert left.counts == right.counts and left.fields.keys() == right.fields.keys()
    for name, tensor in left.fields.items():
        assert torch.equal(tensor, right.fields[name]) and tensor.dtype == right.fields[name].dtype


def test_targets_travel_between_processes_without_shared_memory():
    labels = DetectionCollator()(mixed_samples())["labels"]
    message = pickle.dumps(labels)
    assert len(message) < 2000
    received = pickle.loads(message)
    assert_equal(received, labels)
    received.fields["boxes"].add_(1)  # writable


def test_moving_goes_through_accelerate_and_keeps_the_original():
    labels = DetectionCollator()(mixed_samples())["labels"]
    moved = send_to_device({"labels": labels}, torch.device("meta"), non_blocking=True)["labels"]
    assert isinstance(moved, PackedTargets) and moved.num_boxes == 3
    assert all(tensor.is_meta for tensor in moved.fields.values())
    assert not any(tensor.is_meta for tensor in labels.fields.values())
    assert [target["boxes"].shape for target in moved.unpack()] == [(2, 4), (0, 4), (1, 4)]
    assert_equal(labels.to("cpu"), labels)


def test_pin_memory_pins_every_field(monkeypatch):
    labels = DetectionCollator()(mixed_samples())["labels"]
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    assert_equal(labels.pin_memory(), labels)
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in labels.fields.values()}


@pytest.mark.gpu
def test_pinned_batch_reaches_the_gpu():
    batch = DetectionCollator(32)(mixed_samples())
    pinned = batch["labels"].pin_memory()
    assert all(tensor.is_pinned() for tensor in pinned.fields.values())
    assert_equal(pinned.to("cuda", non_blocking=True).to("cpu"), batch["labels"])
    pixels, _ = prepare_pixels(batch["pixel_values"].pin_memory().cuda(), batch["pixel_mask"].cuda(), MEAN, STD)
    expected, _ = prepare_pixels(batch["pixel_values"], batch["pixel_mask"], MEAN, STD)
    torch.testing.assert_close(pixels.cpu(), expected)


# ------------------------------------------------------------------------------------------------ prepare_pixels


def test_bytes_become_what_the_image_processor_makes():
    samples = mixed_samples()
    batch = DetectionCollator(32)(samples)
    untouched = batch["pixel_values"].clone()
    pixels, mask = prepare_pixels(batch["pixel_values"], batch["pixel_mask"], MEAN, STD)
    processor = RFDETRImageProcessor(do_resize=False, size_divisor=32)
    expected = processor(images=[sample.image for sample in samples])
    torch.testing.assert_close(pixels, expected["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(mask, expected["pixel_mask"].bool())
    assert pixels.is_contiguous() and pixels.dtype == torch.float32
    assert not pixels.permute(0, 2, 3, 1)[~mask].any()
    assert torch.equal(batch["pixel_values"], untouched)


def test_resize_is_bilinear_without_antialias_after_normalising():
    batch = DetectionCollator(32)(mixed_samples())
    full, full_mask = prepare_pixels(batch["pixel_values"], batch["pixel_mask"], MEAN, STD)
    pixels, mask = prepare_pixels(batch["pixel_values"], batch["pixel_mask"], MEAN, STD, size=24)
    expected = F.interpolate(full, size=(24, 24), mode="bilinear", align_corners=False, antialias=False)
    assert torch.equal(pixels, expected)
    source = torch.arange(24) * 64 // 24
    assert torch.equal(mask, full_mask[:, source][:, :, source])
    assert mask.dtype == torch.bool
    tall, tall_mask = prepare_pixels(batch["pixel_values"], batch["pixel_mask"], MEAN, STD, size=(96, 32))
    assert tall.shape == (3, 3, 96, 32) and tall_mask.shape == (3, 96, 32)


def test_float_pixels_are_taken_as_they_are():
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    same, mask = prepare_pixels(pixels, None, MEAN, STD, size=16)
    assert torch.equal(same, pixels) and mask is None
    small, _ = prepare_pixels(pixels, None, MEAN, STD, size=8)
    assert small.shape == (2, 3, 8, 8) and small.dtype == torch.float64
