import io
import random
import sys
import types

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image, ImageDraw

from rfdetr_hf import RFDETRImageProcessor, adapt_augmentation
from rfdetr_hf.data.pipeline.pixels import Picture, pixels_from_pil
from rfdetr_hf.data.pipeline.transforms import build_eval_transform, build_train_transform, fit_shortest_edge
from rfdetr_hf.data.pipeline.view import Sample, View, clip_objects


def make_sample(width=320, height=200, boxes=((40, 30, 120, 150),), area=None):
    """A black image with white rectangles at the boxes."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for x1, y1, x2, y2 in boxes:
        if x2 > x1 and y2 > y1:
            draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill="white")
    array = np.array(boxes, np.float32).reshape(-1, 4)
    sides = array[:, 2:] - array[:, :2]
    target = {
        "boxes": array,
        "class_labels": np.arange(len(array)),
        "area": sides.prod(axis=1) if area is None else np.array(area, np.float32),
        "iscrowd": np.zeros(len(array), bool),
    }
    return Sample(image, target, 7, (height, width))


def as_jpeg(sample):
    buffer = io.BytesIO()
    sample.image.save(buffer, "JPEG", quality=95)
    picture = Picture({"image": {"bytes": buffer.getvalue()}})
    return Sample(picture, sample.target, sample.image_id, sample.orig_size)


def found_box(image):
    """The extent of the bright pixels, or None."""
    bright = image.float().mean(dim=0).numpy() > 127
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return None if not len(rows) else np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


# ------------------------------------------------------------------------------------------- boxes follow pixels


def test_flip_and_whole_number_zoom_are_exact():
    sample = make_sample()
    for view in (
        View(0, 0, 320, 200, 320, 200, flip=True),
        View(20, 10, 180, 160, 160, 150),
        View(20, 10, 180, 160, 160, 150, flip=True),
        View(0, 0, 320, 200, 640, 600, flip=True),
    ):
        boxes = view.map_objects(sample.target)["boxes"]
        assert boxes[0].tolist() == found_box(view.render(sample.image)).tolist()


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("size", [(320, 200), (150, 260), (64, 64)])
def test_boxes_follow_pixels_through_the_recipe(size, square):
    width, height = size
    box = (width // 4, height // 3, width // 2, height // 3 + height // 2)
    transform = build_train_transform(0, [96, 128, 160], multi_scale="per_sample", square=square, max_size=250)
    sizes = set()
    for seed in range(40):
        out = transform(make_sample(width, height, [box]), default_rng(seed))
        found, boxes = found_box(out.image), out.target["boxes"]
        sizes.add(tuple(out.image.shape[1:]))
        if not len(boxes):  # the crop missed it
            assert found is None
            continue
        assert np.abs(found - boxes[0]).max() <= 1.01
    assert len(sizes) >= 3
    if square:
        assert sizes == {(96, 96), (128, 128), (160, 160)}


@pytest.fixture
def reductions(monkeypatch) -> list[int]:
    """At what parts of their sizes pictures are decoded."""
    seen, decode = [], Picture.decode
    monkeypatch.setattr(Picture, "decode", lambda *args: seen.append(args[1]) or decode(*args))
    return seen


@pytest.mark.parametrize("size", [(1600, 1200), (1605, 1203)])
def test_boxes_follow_pixels_through_reduced_jpeg_decoding(size, reductions):
    width, height = size
    plain = make_sample(width, height, [(200, 301, 1001, 900)])
    transform = build_train_transform(192, multi_scale="off", scale_jitter=False)
    for seed in range(4):
        sample = as_jpeg(plain)
        out = transform(sample, default_rng(seed))
        assert reductions.pop() == 4  # an eighth would be less than 192
        exact = transform(plain, default_rng(seed))
        assert np.array_equal(out.target["boxes"], exact.target["boxes"])
        assert np.abs(found_box(out.image) - out.target["boxes"][0]).max() <= 1.01
        assert (out.image.float() - exact.image.float()).abs().mean() < 1.0


def test_crop_of_a_reduced_jpeg(reductions):
    plain = make_sample(1605, 1203, [(600, 501, 1001, 900)])
    view, sample = View(400, 300, 1400, 1100, 200, 160, flip=True), as_jpeg(plain)
    pixels, exact = view.render(sample.image), view.render(plain.image)
    assert reductions == [4] and sample.image.decode(4).to_tensor().shape[:2] == (301, 402)
    assert (pixels.float() - exact.float()).abs().mean() < 1.0
    assert np.abs(found_box(pixels) - view.map_objects(plain.target)["boxes"][0]).max() <= 0.6


def test_small_jpegs_are_decoded_in_full(reductions):
    sample = as_jpeg(make_sample(320, 200))
    View(0, 0, 320, 200, 161, 101).render(sample.image)
    assert reductions == [1]


# ------------------------------------------------------------------------------------------------ the recipe itself


def test_crop_statistics_match_the_recipe():
    transform = build_train_transform(128, multi_scale="off")
    views = [transform.draw_view(300, 500, default_rng(seed)) for seed in range(3000)]
    crops = [view for view in views if view.right - view.left < 500]
    assert 0.46 < len(crops) / len(views) < 0.54
    assert 0.46 < np.mean([view.flip for view in views]) < 0.54
    shares = np.array([(view.bottom - view.top) / 300 for view in crops])
    assert 0.64 <= shares.min() < 0.66 and shares.max() == pytest.approx(1)
    # Shortest edges 400, 500, 600 with sides uniform in [384, edge].
    assert shares.mean() == pytest.approx(np.mean([(384 + edge) / 2 / edge for edge in (400, 500, 600)]), abs=0.01)
    for view in crops:
        assert view.right - view.left == pytest.approx(view.bottom - view.top, rel=0.01)
        assert min(view.left, view.top) >= 0 and view.right <= 500 + 1e-9 and view.bottom <= 300 + 1e-9


def test_scale_jitter_off_and_flip_off_is_a_plain_resize():
    transform = build_train_transform(64, multi_scale="off", scale_jitter=False, horizontal_flip=0)
    assert {transform.draw_view(90, 50, default_rng(seed)) for seed in range(20)} == {View(0, 0, 50, 90, 64, 64)}


def test_modes_choose_the_size():
    per_batch = build_train_transform(64, [32, 96, 64])
    assert {per_batch.draw_view(90, 50, default_rng(seed)).width for seed in range(20)} == {96}
    per_sample = build_train_transform(64, [32, 96, 64], multi_scale="per_sample")
    assert {per_sample.draw_view(90, 50, default_rng(seed)).width for seed in range(40)} == {32, 64, 96}
    off = build_train_transform(64, [32, 96, 64], multi_scale="off")
    assert {off.draw_view(90, 50, default_rng(seed)).width for seed in range(20)} == {64}


@pytest.mark.parametrize(
    ("height", "width", "shortest", "max_size", "expected"),
    [
        (480, 640, 240, 1333, (240, 320)),
        (640, 480, 240, 1333, (320, 240)),
        (100, 1000, 200, 1000, (100, 1000)),
        (1, 5000, 200, 1000, (1, 5000)),
        (480, 640, 240, None, (240, 320)),
    ],
)
def test_fit_shortest_edge(height, width, shortest, max_size, expected):
    assert fit_shortest_edge(height, width, shortest, max_size) == expected


@pytest.mark.parametrize(
    "arguments", [{"multi_scale": "batch"}, {"scales": []}, {"scales": [0, 32]}, {"horizontal_flip": 1.5}]
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="multi_scale|horizontal_flip"):
        build_train_transform(**{"resolution": 64, "scales": [64], **arguments})


def test_same_generator_same_sample():
    transform = build_train_transform(64, [32, 64, 96], multi_scale="per_sample")
    first, again, other = (transform(make_sample(), default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.image, again.image)
    assert np.array_equal(first.target["boxes"], again.target["boxes"])
    assert not torch.equal(first.image, other.image)


# ------------------------------------------------------------------------------------------------------- objects


def test_objects_are_dropped_in_every_field():
    sample = make_sample(100, 100, [(0, 0, 20, 20), (30, 30, 60, 60), (70, 70, 90, 90), (50, 0, 50, 10)])
    sample.target["extra"] = np.array([10, 11, 12, 13])
    target = View(25, 25, 75, 75, 100, 100).map_objects(sample.target)
    assert target["class_labels"].tolist() == [1, 2]
    assert target["extra"].tolist() == [11, 12]
    assert target["boxes"].tolist() == [[10, 10, 70, 70], [90, 90, 100, 100]]
    assert target["iscrowd"].tolist() == [False, False]
    assert all(len(values) == 2 for values in target.values())


def test_area_is_scaled_and_shrinks_with_what_is_cut():
    boxes = [(10, 10, 30, 30), (40, 10, 80, 30)]
    sample = make_sample(80, 40, boxes, area=[100, 800])
    target = View(0, 0, 60, 40, 120, 120).map_objects(sample.target)
    # The first is whole: annotated area x scale. The second is cut in half: its area is its box's, and stays so.
    assert target["area"].tolist() == [100 * 6, 400 * 6]
    assert (target["boxes"][1, 2:] - target["boxes"][1, :2]).prod() == 400 * 6


def test_boxes_past_the_border_are_cut():
    beside = (60, 10, 70, 20)  # outside in x only
    target = clip_objects(make_sample(50, 50, [(-10, 5, 20, 70), beside]).target, (0, 0, 50, 50))
    assert target["boxes"].tolist() == [[0, 5, 20, 50]] and target["class_labels"].tolist() == [0]


def test_image_without_objects():
    transform = build_train_transform(64, multi_scale="off")
    for seed in range(6):
        out = transform(make_sample(boxes=()), default_rng(seed))
        assert out.target["boxes"].shape == (0, 4) and out.target["boxes"].dtype == np.float32
        assert out.image.shape == (3, 64, 64)


# ------------------------------------------------------------------------------------------------- augmentations


def mirrored(image, target):
    boxes = target["boxes"].copy()
    boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {**target, "boxes": boxes}


def global_noise(image, target):
    noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return image, {**target, "noise": np.tile(noise, (len(target["boxes"]), 1))}


def still(**options):
    return build_train_transform(100, multi_scale="off", scale_jitter=False, horizontal_flip=0, **options)


def test_plain_function_runs_after_the_resize():
    out = still(augmentation=mirrored)(make_sample(200, 200, [(20, 20, 80, 120)]), default_rng(0))
    assert out.target["boxes"].tolist() == [[60, 10, 90, 60]] == [found_box(out.image).tolist()]


def test_square_size_is_restored_after_an_augmentation_that_crops():
    def crop(image, target):
        return image.crop((0, 0, 50, 80)), target

    out = still(augmentation=crop)(make_sample(100, 100, [(10, 20, 40, 60), (60, 10, 90, 90)]), default_rng(0))
    assert out.image.shape == (3, 100, 100)
    assert out.target["boxes"].tolist() == [[20, 25, 80, 75]] == [found_box(out.image).tolist()]
    kept = still(augmentation=crop, square=False)(make_sample(100, 100, [(10, 20, 40, 60)]), default_rng(0))
    assert kept.image.shape == (3, 80, 50)


def test_global_generators_are_seeded_and_put_back():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = [random.random(), np.random.rand(), torch.rand(()).item()]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    transform = still(augmentation=global_noise)
    noise = [transform(make_sample(), default_rng(seed)).target["noise"][0] for seed in (5, 5, 6)]
    assert [random.random(), np.random.rand(), torch.rand(()).item()] == expected
    assert np.array_equal(noise[0], noise[1])
    assert (noise[0] != noise[2]).all()


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (lambda image, target: (np.zeros((8, 8, 3), np.float32), target), "float32.*uint8"),
        (lambda image, target: (image, {**target, "class_labels": np.zeros(9)}), "class_labels"),
        (lambda image, target: (image, {**target, "boxes": target["boxes"] * np.nan}), "not finite"),
    ],
)
def test_unusable_results_are_named(augmentation, message):
    with pytest.raises((TypeError, ValueError), match=message):
        still(augmentation=augmentation)(make_sample(), default_rng(0))


def test_unusable_augmentation_is_named():
    with pytest.raises(TypeError, match="augmentation.*str"):
        still(augmentation="flip")


def test_albumentations_moves_boxes_and_drops_rows():
    A = pytest.importorskip("albumentations")
    compose = A.Compose([A.Crop(0, 0, 60, 100), A.VerticalFlip(p=1.0)])
    sample = make_sample(100, 100, [(70, 10, 90, 30), (10, 10, 40, 30)])
    out = still(augmentation=compose, square=False)(sample, default_rng(0))
    assert out.image.shape == (3, 100, 60)
    assert out.target["class_labels"].tolist() == [1]
    assert out.target["boxes"].tolist() == [[10, 70, 40, 90]] == [found_box(out.image).tolist()]
    assert out.target["area"].tolist() == [600]
    empty = still(augmentation=compose)(make_sample(boxes=()), default_rng(0))
    assert empty.target["boxes"].shape == (0, 4)


def test_albumentations_keeps_box_limits_and_takes_a_single_transform():
    A = pytest.importorskip("albumentations")
    limits = A.BboxParams(format="coco", label_fields=["anything"], min_visibility=0.6)
    cut = [A.Crop(0, 0, 50, 100)]
    sample = make_sample(100, 100, [(40, 10, 60, 30)])
    out = still(augmentation=A.Compose(cut, bbox_params=limits), square=False)(sample, default_rng(0))
    assert len(out.target["boxes"]) == 0
    cut_only = still(augmentation=cut[0], square=False)(sample, default_rng(0))
    assert cut_only.target["boxes"] == pytest.approx(np.array([[40, 10, 50, 30]]), abs=1e-4)


def test_albumentations_draws_from_the_sample_and_not_in_step():
    A = pytest.importorskip("albumentations")
    transform = still(augmentation=A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]))
    sample = make_sample(100, 100, [(10, 20, 30, 60)])
    seen = [tuple(transform(sample, default_rng(seed)).target["boxes"][0]) for seed in range(40)]
    assert seen == [tuple(transform(sample, default_rng(seed)).target["boxes"][0]) for seed in range(40)]
    assert len(set(seen)) == 4  # transforms seeded alike would flip both ways or not at all


def fake_torchvision(monkeypatch):
    """A stand-in with the parts of torchvision's interface that are used, and two of its transforms."""

    class BoundingBoxes(torch.Tensor):
        def __new__(cls, data, *, format, canvas_size):
            boxes = torch.as_tensor(data).as_subclass(cls)
            boxes.format, boxes.canvas_size = tv_tensors.BoundingBoxFormat.XYXY, canvas_size
            assert format == "XYXY"
            return boxes

    tv_tensors = types.ModuleType("torchvision.tv_tensors")
    tv_tensors.BoundingBoxes = BoundingBoxes
    tv_tensors.BoundingBoxFormat = types.SimpleNamespace(XYXY="XYXY")
    module = types.ModuleType("torchvision")
    module.tv_tensors = tv_tensors
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.tv_tensors", tv_tensors)

    class Crop(torch.nn.Module):
        __module__ = "torchvision.transforms.v2"

        def forward(self, inputs):
            image, boxes = inputs["image"].crop((0, 0, 60, 100)), inputs["boxes"]
            data = boxes.as_subclass(torch.Tensor).clone()
            data[:, 0::2].clamp_(0, 60)
            return {**inputs, "image": image, "boxes": BoundingBoxes(data, format="XYXY", canvas_size=(100, 60))}

    class Sanitize(torch.nn.Module):
        __module__ = "torchvision.transforms.v2"

        def forward(self, inputs):
            boxes = inputs["boxes"].as_subclass(torch.Tensor)
            keep = boxes[:, 2] > boxes[:, 0]
            kept = BoundingBoxes(boxes[keep], format="XYXY", canvas_size=inputs["boxes"].canvas_size)
            pixels = torch.from_numpy(np.array(inputs["image"])).permute(2, 0, 1)
            return {"image": pixels, "boxes": kept, "labels": inputs["labels"][keep]}

    class Compose(torch.nn.Sequential):
        __module__ = "torchvision.transforms.v2"

    return Compose(Crop(), Sanitize())


def test_torchvision_interface(monkeypatch):
    sample = make_sample(100, 100, [(70, 10, 90, 30), (10, 10, 40, 30)])
    out = still(augmentation=fake_torchvision(monkeypatch), square=False)(sample, default_rng(0))
    assert out.image.shape == (3, 100, 60)
    assert out.target["class_labels"].tolist() == [1]
    assert out.target["boxes"].tolist() == [[10, 10, 40, 30]] == [found_box(out.image).tolist()]


def test_torchvision_itself():
    v2 = pytest.importorskip("torchvision.transforms.v2")
    parts = [v2.RandomHorizontalFlip(p=1.0), v2.CenterCrop(60), v2.SanitizeBoundingBoxes(), v2.ToImage()]
    sample = make_sample(100, 100, [(0, 10, 15, 30), (30, 30, 40, 50)])
    sample.image = pixels_from_pil(sample.image)
    out = adapt_augmentation(v2.Compose(parts))(sample, default_rng(0))
    assert out.image.shape == (3, 60, 60)
    assert out.target["class_labels"].tolist() == [1]
    assert out.target["boxes"].tolist() == [[40, 10, 50, 30]] == [found_box(out.image).tolist()]


# ---------------------------------------------------------------------------------------------------- evaluation


class Processor:
    """Shaped like the image processor: a size, and float pixels out."""

    size = {"height": 64, "width": 64}

    def __call__(self, images, return_tensors, size=None):
        size = size or self.size
        self.seen = images
        pixels = np.asarray(images.resize((size["width"], size["height"])), np.float32)
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255}


def test_eval_transform_takes_the_pixels_of_the_processor():
    processor, sample = Processor(), make_sample(128, 192, [(32, 48, 64, 96)])
    out = build_eval_transform(processor)(sample)
    assert torch.equal(out.image, processor(sample.image, "pt")["pixel_values"][0])
    assert out.target["boxes"].tolist() == [[16, 16, 32, 32]]
    assert out.target["area"].tolist() == [256]
    aspect = build_eval_transform(RFDETRImageProcessor(size={"shortest_edge": 64, "longest_edge": 90}))(sample)
    assert aspect.image.shape == (3, 90, 60)
    assert out.orig_size == aspect.orig_size == (192, 128)


def test_eval_transform_hides_an_orientation_that_the_decoder_ignored():
    processor, sample = Processor(), make_sample()
    sample.image.getexif()[0x0112] = 6
    build_eval_transform(processor)(sample)
    assert 0x0112 not in processor.seen.getexif()
    assert np.array_equal(np.asarray(processor.seen), np.asarray(sample.image))
