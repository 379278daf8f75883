"""Masks and keypoints against the pixels they belong to: painted, transformed, and found again."""

import pickle

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image, ImageDraw

from rfdetr_hf import KeypointSchema, adapt_augmentation, load_detection_dataset
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.data.masks import mask_column, rasterise
from rfdetr_hf.data.pipeline.collate import DetectionCollator
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_eval_dataloader, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import build_eval_transform, build_train_transform
from rfdetr_hf.data.pipeline.view import Sample, View

WIDTH, HEIGHT = 320, 240
COLOURS = ((255, 0, 0), (0, 255, 0))
SCHEMA = KeypointSchema(
    (ClassKeypoints.of(["tip", "left", "right"]), ClassKeypoints.of(["tip", "spot", "tail"], flip_pairs=()))
)
# A concave outline (an L) and a triangle, and their keypoints; each object has a colour of its own.
OUTLINES = (
    [40, 40, 90, 40, 90, 150, 200, 150, 200, 200, 40, 200],
    [180, 20, 300, 60, 210, 130],
)
POINTS = ([[60, 60, 2], [60, 180, 1], [180, 175, 2]], [[200, 50, 2], [270, 60, 2], [0, 0, 0]])


def make_sample(forms="polygons"):
    """Two coloured outlines on black."""
    image = Image.new("RGB", (WIDTH * 4, HEIGHT * 4))
    for outline, colour in zip(OUTLINES, COLOURS, strict=True):
        ImageDraw.Draw(image).polygon([v * 4 for v in outline], fill=colour)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    if forms == "polygons":
        masks = [[outline] for outline in OUTLINES]
    else:
        masks = [{"size": [HEIGHT, WIDTH], "counts": counts(np.asarray(image)[..., c] > 127)} for c in (0, 1)]
    boxes = [[min(o[0::2]), min(o[1::2]), max(o[0::2]), max(o[1::2])] for o in OUTLINES]
    target = {
        "boxes": np.array(boxes, np.float32),
        "class_labels": np.array([0, 1]),
        "area": np.array([5000, 3000], np.float32),
        "iscrowd": np.zeros(2, bool),
        "segmentation": mask_column(masks, HEIGHT, WIDTH),
        "keypoints": np.array(POINTS, np.float32),
    }
    return Sample(image, target, 5, (HEIGHT, WIDTH))


def counts(pixels):
    edges = np.flatnonzero(np.diff(pixels.T.ravel().astype(int), prepend=0))
    return np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()


def dotted():
    """White dots at the labelled keypoints, one channel per keypoint name."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for points in POINTS[:1]:
        for k, (x, y, _) in enumerate(points):
            pixels[y - 3 : y + 3, x - 3 : x + 3, k] = 255
    image = Image.fromarray(pixels)
    sample = make_sample()
    target = {name: values[:1] for name, values in sample.target.items()}
    return Sample(image, target, 5, (HEIGHT, WIDTH))


def iou(mask, pixels):
    return (mask & pixels).sum() / max((mask | pixels).sum(), 1)


def pixels_of(image, label, size):
    """Where the object's colour is, at the size of the masks."""
    small = torch.nn.functional.interpolate(image[None].float(), size=size, mode="area")[0]
    return (small[label] > 127).numpy()


def assert_masks_follow(out, least=0.9):
    for mask, label in zip(out.target["masks"], out.target["class_labels"], strict=True):
        pixels = pixels_of(out.image, label, mask.shape)
        if pixels.sum() > 30:
            assert iou(mask, pixels) > least
    for label in set((0, 1)) - set(out.target["class_labels"].tolist()):
        assert pixels_of(out.image, label, out.image.shape[1:]).sum() == 0, "an object was lost whose pixels are seen"


@pytest.mark.parametrize("forms", ["polygons", "run lengths"])
def test_masks_follow_pixels_through_the_recipe(forms):
    transform = build_train_transform(256, multi_scale="off", mask_downsample_ratio=2, keypoint_schema=SCHEMA)
    seen = set()
    for seed in range(40):
        out = transform(make_sample(forms), default_rng(seed))
        assert out.target["masks"].shape[1:] == (128, 128) and out.target["masks"].dtype == bool
        assert "segmentation" not in out.target
        assert_masks_follow(out)
        seen.add(len(out.target["masks"]))
    assert 2 in seen


def test_masks_and_pixels_moved_by_one_row_are_told_apart():
    """The bound of the test above is tight enough to see a shift of two pixels of the mask."""
    out = build_train_transform(256, multi_scale="off", mask_downsample_ratio=2, keypoint_schema=SCHEMA)(
        make_sample(), default_rng(0)
    )
    out.target["masks"] = np.roll(out.target["masks"], 2, axis=2)
    with pytest.raises(AssertionError):
        assert_masks_follow(out)


def test_masks_have_one_size_whatever_the_scale_and_shape():
    for options in ({"square": True}, {"square": False, "max_size": 300}):
        transform = build_train_transform(
            0, [128, 192, 256], multi_scale="per_sample", mask_downsample_ratio=4, keypoint_schema=SCHEMA, **options
        )
        samples = [transform(make_sample(), default_rng(seed)) for seed in range(12)]
        assert len({sample.image.shape for sample in samples}) > 2
        for sample in samples:
            assert sample.target["masks"].shape[1:] == (64, 64)
            assert_masks_follow(sample, 0.85)
        labels = DetectionCollator(32)(samples)["labels"]
        assert labels.fields["masks"].shape == (labels.num_boxes, 64, 64)


def test_large_masks_travel_as_tensors():
    sample = build_train_transform(512, multi_scale="off", mask_downsample_ratio=2, keypoint_schema=SCHEMA)(
        make_sample(), default_rng(1)
    )
    labels = DetectionCollator()([sample, sample])["labels"]
    assert isinstance(labels.__getstate__()["fields"]["masks"], torch.Tensor)
    again = pickle.loads(pickle.dumps(labels))
    assert torch.equal(again.fields["masks"], labels.fields["masks"])
    first = again.unpack()[1]
    assert torch.equal(first["masks"], torch.from_numpy(sample.target["masks"]))


def still(**options):
    options = {"mask_downsample_ratio": 1, "keypoint_schema": SCHEMA, **options}
    return build_train_transform(240, multi_scale="off", scale_jitter=False, horizontal_flip=0, **options)


def test_objects_whose_box_but_not_mask_is_in_view_are_dropped():
    sample = make_sample()
    view = View(100, 50, 180, 130, 80, 80)  # in the bend of the L, left of the triangle's tip
    target = view.map_objects(sample.target, mask_size=(20, 20), flip_index=SCHEMA.flip_index)
    assert len(target["boxes"]) == 0 and target["masks"].shape == (0, 20, 20) and target["keypoints"].shape == (0, 3, 3)
    without = view.map_objects(sample.target)
    assert without["class_labels"].tolist() == [0] and "masks" not in without


def test_masks_too_small_for_their_grid_keep_a_pixel():
    sample = make_sample()
    tiny = [201.0, 101.0, 204.0, 101.0, 204.0, 104.0, 201.0, 104.0]
    sample.target["segmentation"][0] = [np.array(tiny)]
    target = View(0, 0, WIDTH, HEIGHT, WIDTH, HEIGHT, flip=True).map_objects(
        sample.target, mask_size=(HEIGHT // 8, WIDTH // 8), flip_index=SCHEMA.flip_index
    )
    assert np.argwhere(target["masks"][0]).tolist() == [[102 // 8, (WIDTH - 203) // 8]]


def test_without_a_ratio_there_are_no_masks():
    out = still(mask_downsample_ratio=None)(make_sample(), default_rng(0))
    assert "masks" not in out.target and "segmentation" not in out.target
    with pytest.raises(ValueError, match="mask_downsample_ratio"):
        still(mask_downsample_ratio=0)


# ----------------------------------------------------------------------------------------------------- keypoints


def centres(image):
    """Centre of the dot in each channel, or None."""
    found = []
    for channel in image.double().numpy():
        y, x = np.mgrid[: channel.shape[0], : channel.shape[1]] + 0.5
        total = channel.sum()
        found.append((np.sum(x * channel) / total, np.sum(y * channel) / total) if total > 255 else None)
    return found


def test_keypoints_follow_their_dots():
    transform = build_train_transform(240, multi_scale="off", keypoint_schema=SCHEMA)
    flips, outside = 0, 0
    for seed in range(60):
        view = transform.draw_view(HEIGHT, WIDTH, default_rng(seed))
        out = transform(dotted(), default_rng(seed))
        if not len(out.target["boxes"]):
            continue
        # The dots of left and right change their names in a mirror, their colours do not.
        names = [0, 2, 1] if view.flip else [0, 1, 2]
        flips += view.flip
        for (x, y, v), name in zip(out.target["keypoints"][0], names, strict=True):
            dot = centres(out.image)[name]
            if v == 0:
                assert (x, y) == (0, 0)
                outside += 1
                # At most the half of the dot on this side of the border is left.
                assert dot is None or min(dot[0], dot[1], 240 - dot[0], 240 - dot[1]) < 3
                continue
            assert v == POINTS[0][name][2]
            inside = 9 < x < 231 and 9 < y < 231
            assert not inside or np.hypot(x - dot[0], y - dot[1]) < 0.1
    assert flips > 10 and outside > 10


def test_flip_is_the_boxes_own():
    sample = make_sample()
    sample.target["keypoints"][0, 0] = [40, 200, 2]  # the box's corner
    target = View(0, 0, WIDTH, HEIGHT, WIDTH, HEIGHT, flip=True).map_objects(
        sample.target, flip_index=SCHEMA.flip_index
    )
    assert target["keypoints"][0, 0].tolist() == [WIDTH - 40, 200, 2]
    assert target["boxes"][0, 2] == WIDTH - 40
    assert target["keypoints"][0, 1:].tolist() == [[WIDTH - 180, 175, 2], [WIDTH - 60, 180, 1]], "left and right"
    assert target["keypoints"][1].tolist() == [[120, 50, 2], [50, 60, 2], [0, 0, 0]], "no pairs in this class"


def test_unknown_flip_pairs_switch_the_flip_off(caplog):
    unknown = KeypointSchema((ClassKeypoints.of(["a", "b", "c"]),) * 2)
    transform = build_train_transform(64, multi_scale="off", keypoint_schema=unknown)
    assert not any(transform.draw_view(50, 50, default_rng(seed)).flip for seed in range(30))
    assert "not mirrored" in caplog.text
    with pytest.raises(ValueError, match="keypoint_schema"):
        build_train_transform(64, multi_scale="off", horizontal_flip=1)(make_sample(), default_rng(0))


def test_keypoints_in_a_batch_are_relative():
    sample = still(mask_downsample_ratio=None, square=False)(make_sample(), default_rng(0))
    batch = DetectionCollator(64)([sample])
    assert sample.image.shape == (3, HEIGHT, WIDTH) and batch["pixel_values"].shape[-2:] == (256, 320)
    points = batch["labels"].unpack()[0]["keypoints"]
    expected = np.array(POINTS, np.float32) / (WIDTH, HEIGHT, 1)
    np.testing.assert_allclose(points, expected, atol=1e-6)
    assert points.dtype == torch.float32


# -------------------------------------------------------------------------------------------------- augmentation


def test_plain_function_gets_masks_of_the_image_and_they_shrink_later():
    def crop(image, target):
        seen.append(target["masks"].shape)
        return image.crop((0, 0, 200, 240)), {**target, "masks": target["masks"][:, :, :200]}

    seen = []
    out = still(augmentation=crop, mask_downsample_ratio=2)(make_sample(), default_rng(0))
    assert seen == [(2, 240, 240)] and out.image.shape == (3, 240, 240)
    assert out.target["masks"].shape[1:] == (120, 120)
    assert_masks_follow(out)
    kept = still(augmentation=lambda image, target: (image, target), mask_downsample_ratio=2)(
        make_sample(), default_rng(0)
    )
    assert kept.target["masks"].shape == (2, 120, 120)
    assert_masks_follow(kept)


def test_masks_of_another_size_than_the_image_are_refused():
    with pytest.raises(ValueError, match="returned masks of .* for an image of"):
        still(augmentation=lambda image, target: (image.crop((0, 0, 99, 99)), target))(make_sample(), default_rng(0))


def assert_mirrored(out, width=240):
    """What a mirror at the full size must give, for the sample resized to a square of 240."""
    scaled = np.array(POINTS, np.float64) * (240 / WIDTH, 1, 1)
    expected = scaled[0][[0, 2, 1]]
    expected[:, 0] = width - expected[:, 0]
    np.testing.assert_allclose(out.target["keypoints"][0], expected, atol=1e-3)
    assert out.target["keypoints"][1, 2].tolist() == [0, 0, 0]
    assert_masks_follow(out)


def test_albumentations_moves_masks_and_keypoints():
    A = pytest.importorskip("albumentations")
    out = still(augmentation=A.HorizontalFlip(p=1.0))(make_sample(), default_rng(0))
    assert_mirrored(out)
    half_turn = A.Compose([A.HorizontalFlip(p=1.0), A.VerticalFlip(p=1.0)])
    turned = still(augmentation=half_turn)(make_sample(), default_rng(0))
    expected = np.array(POINTS[0]) * (240 / WIDTH, 1, 1)
    np.testing.assert_allclose(
        turned.target["keypoints"][0][:, :2], 240 - expected[:, :2], atol=1e-3, err_msg="a half turn swaps nobody"
    )
    crop = still(augmentation=A.Crop(120, 0, 240, 120), square=False)(make_sample(), default_rng(0))
    assert crop.target["class_labels"].tolist() == [1], "of the other, only the box reaches into the crop"
    np.testing.assert_allclose(crop.target["keypoints"][0], [[80, 50, 2], [0, 0, 0], [0, 0, 0]], atol=1e-3)
    assert_masks_follow(crop)
    sample = make_sample()
    sample.target = {name: values[:0] for name, values in sample.target.items()}
    empty = still(augmentation=A.HorizontalFlip(p=1.0))(sample, default_rng(0)).target
    assert empty["masks"].shape == (0, 240, 240) and empty["keypoints"].shape == (0, 3, 3)


def test_torchvision_moves_masks_and_keypoints():
    v2 = pytest.importorskip("torchvision.transforms.v2")
    parts = v2.Compose([v2.RandomHorizontalFlip(p=1.0), v2.SanitizeBoundingBoxes()])
    assert_mirrored(still(augmentation=parts)(make_sample(), default_rng(0)))


def test_a_mirror_without_known_pairs_is_refused():
    A = pytest.importorskip("albumentations")
    sample = still(mask_downsample_ratio=None)(make_sample(), default_rng(0))
    with pytest.raises(ValueError, match="flip pairs are not known"):
        adapt_augmentation(A.HorizontalFlip(p=1.0))(sample, default_rng(0))


# ------------------------------------------------------------------------------------------- evaluation and loaders


class Processor:
    size = {"height": 64, "width": 64}

    def __call__(self, images, return_tensors, size=None):
        size = size or self.size
        pixels = np.asarray(images.resize((size["width"], size["height"])), np.float32)
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1)[None]}


def test_evaluation_moves_masks_and_keypoints():
    out = build_eval_transform(Processor(), mask_downsample_ratio=2)(make_sample())
    assert out.target["masks"].shape == (2, 32, 32)
    assert_masks_follow(out, 0.8)
    expected = np.array(POINTS[0]) * (64 / WIDTH, 64 / HEIGHT, 1)
    np.testing.assert_allclose(out.target["keypoints"][0], expected, atol=1e-4)
    plain = build_eval_transform(Processor())(make_sample())
    assert "masks" not in plain.target and "segmentation" not in plain.target


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_of_both_tasks(workers):
    options = {"num_images": 12, "num_eval_images": 4, "crowd_share": 0.5, "image_size": 64}
    transform = build_train_transform(64, multi_scale="off", mask_downsample_ratio=2)
    masks = load_detection_dataset("synthetic-shapes", task="segmentation", **options)
    loader = build_train_dataloader(masks["train"], transform, LoaderOptions(batch_size=4, num_workers=workers))
    for batch in loader:
        labels = batch["labels"]
        assert labels.fields["masks"].shape == (labels.num_boxes, 32, 32) and labels.fields["masks"].any((1, 2)).all()
        assert not labels.fields["iscrowd"].any(), "crowds are no targets"
    points = load_detection_dataset("synthetic-shapes", task="keypoints", **options)
    loader = build_eval_dataloader(
        points["test"], build_eval_transform(Processor()), LoaderOptions(batch_size=3, num_workers=workers)
    )
    for batch in loader:
        keypoints = batch["labels"].fields["keypoints"]
        assert keypoints.shape == (batch["labels"].num_boxes, 4, 3) and keypoints[..., :2].max() <= 1
    crowds = sum(batch["labels"].fields["iscrowd"].sum() for batch in loader)
    assert crowds == sum(sum(o["iscrowd"]) for o in points["test"]["objects"])


def test_rasterising_takes_the_memory_of_the_result_alone():
    """A thousand outlines of a large image at a small size: the full-resolution masks would be 12 GB."""
    outline = [np.array(OUTLINES[0]) * 10]
    column = np.empty(1000, dtype=object)
    for index in range(1000):
        column[index] = outline
    masks = rasterise(column, (0, 0, 4000, 3000), (27, 36))
    assert masks.shape == (1000, 27, 36) and masks.all(axis=0).any()
