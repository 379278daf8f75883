import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pycocotools import mask as mask_utils

from rfdetr_hf import DrawingStyle, KeypointSchema, draw_detections
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.drawing import draw_batch
from rfdetr_hf.models.post_processing import image_keypoints

SIDE = 500
BLACK, RED = (0, 0, 0), (230, 25, 75)
# Label 0 has a skeleton a-b-c, label 1 one keypoint: two slots of its objects are not in use.
SCHEMA = KeypointSchema((ClassKeypoints.of(["a", "b", "c"], [(0, 1), (1, 2)]), ClassKeypoints.of(["tip"]))).to_dict()


def found(keypoints, label=0, box=(100.0, 100.0, 400.0, 400.0), **more):
    return {
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([label]),
        "boxes": torch.tensor([box]),
        "keypoints": torch.tensor([keypoints]),
        **more,
    }


def draw(detections, **style):
    return draw_detections(
        Image.new("RGB", (SIDE, SIDE)), detections, {0: "a", 1: "b"}, 0.5, DrawingStyle(SCHEMA, **style)
    )


def test_keypoints_above_their_threshold():
    points = [[150.0, 300.0, 0.9], [250.0, 300.0, 0.001], [350.0, 300.0, 0.4]]
    usual, all_of_them = draw(found(points)), draw(found(points), threshold=0.0)
    assert [usual.getpixel((x, 300)) for x in (150, 250, 350)] == [RED, BLACK, RED]
    assert [all_of_them.getpixel((x, 300)) for x in (150, 250, 350)] == [RED] * 3


def test_slots_that_the_class_does_not_use_are_not_drawn():
    points = [[250.0, 300.0, 0.9], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    drawn = draw(found(points, label=1), threshold=0.0)
    assert drawn.getpixel((250, 300)) != BLACK and drawn.crop((0, 0, 50, 50)).getbbox() is None


def test_points_without_confidence():
    drawn = draw_detections(Image.new("RGB", (SIDE, SIDE)), found([[150.0, 300.0]]), {0: "a"})
    assert drawn.getpixel((150, 300)) == RED


def test_skeleton_joins_what_is_seen():
    points = [[150.0, 300.0, 0.9], [250.0, 300.0, 0.9], [350.0, 300.0, 0.2]]
    drawn = draw(found(points))
    assert drawn.getpixel((200, 300)) == RED and drawn.getpixel((300, 300)) == BLACK
    plain = draw_detections(Image.new("RGB", (SIDE, SIDE)), found(points), {0: "a"})
    assert plain.getpixel((200, 300)) == BLACK


def test_small_images_are_enlarged_with_their_skeleton():
    detections = found([[15.0, 30.0, 0.9], [25.0, 30.0, 0.9], [0.0, 0.0, 0.0]], box=(10.0, 10.0, 40.0, 40.0))
    drawn = draw_detections(Image.new("RGB", (50, 50)), detections, {0: "a"}, style=DrawingStyle(SCHEMA))
    assert drawn.size == (500, 500) and drawn.getpixel((200, 300)) == RED


def test_ellipse_is_where_the_likelihood_of_the_loss_falls_by_its_deviations():
    """The density that the keypoint loss fits, at the drawn outline: exp(-k² / 2) of that at the centre."""
    box, size, k = torch.tensor([0.5, 0.5, 0.6, 0.4]), (400, 500), 2.0  # of an image 500 wide and 400 high
    channels = torch.tensor([0.5, 0.5, 9.0, 0.0, 1.5, 0.8, 1.1, 0.0])
    each = image_keypoints(channels[None, None], torch.ones(1, 1, dtype=torch.bool), size)
    corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2]) * torch.tensor([500, 400, 500, 400])
    detections = found([[0.0, 0.0]], box=tuple(corners.tolist())) | each
    bare, drawn = (
        np.asarray(draw_detections(Image.new("RGB", (500, 400)), detections, {0: "a"}, 0.5, DrawingStyle(ellipses=n)))
        for n in (0.0, k)
    )
    y, x = np.nonzero((bare != drawn).any(-1))
    assert len(x) > 100
    dx, dy = x / 500 - 0.5, y / 400 - 0.5
    l11, l21, l22 = np.exp(1.5), 0.8, np.exp(1.1)
    deviations = np.sqrt(((l11 * dx + l21 * dy) ** 2 + (l22 * dy) ** 2) / (0.6 * 0.4))
    assert abs(np.median(deviations) - k) < 0.03 and np.abs(deviations - k).max() < 0.1


def test_ellipses_of_unused_slots_and_of_overflowing_numbers_are_left_out():
    covariance = torch.full((1, 3, 2, 2), torch.nan)
    covariance[0, 0] = torch.eye(2) * 1e30
    points = [[150.0, 300.0, 0.9], [250.0, 300.0, 0.9], [0.0, 0.0, 0.0]]
    drawn = draw(found(points, keypoint_covariance=covariance), ellipses=1.0)
    assert drawn.getpixel((150, 300)) == RED


@pytest.mark.parametrize("form", ["dense", "run lengths", "plain run lengths"])
def test_masks_of_every_form(form):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[200:250, 200:300] = 1
    coded = mask_utils.encode(np.asfortranarray(mask))
    coded = {"size": list(coded["size"]), "counts": coded["counts"].decode("ascii")}
    plain = {"size": [SIDE, SIDE], "counts": [200 * SIDE + 200]}
    plain["counts"] += [50, SIDE - 50] * 99 + [50, SIDE * SIDE - 299 * SIDE - 250]
    masks = {"dense": torch.tensor(mask)[None], "run lengths": [coded], "plain run lengths": [plain]}[form]
    drawn = np.asarray(draw(found([[0.0, 0.0, 0.0]] * 3) | {"masks": masks}))
    inside = drawn[120:380, 120:380].any(-1)
    assert np.array_equal(inside, mask[120:380, 120:380].astype(bool))


@pytest.mark.parametrize("shape", [(240, 320), (640, 480), (480, 641)])
def test_masks_of_another_size_than_the_image_are_refused(shape):
    detections = boxes_of([0, 0, 30, 30]) | {"masks": torch.ones(1, *shape, dtype=torch.bool)}
    with pytest.raises(ValueError, match=re.escape(f"detection 0 has the shape {shape}, and the image 480 x 640")):
        draw_detections(Image.new("RGB", (640, 480)), detections, {0: "x"})


def test_masks_of_a_training_batch_are_enlarged_to_their_image():
    mask = np.zeros((1, 16, 16), bool)
    mask[0, 4:8, 8:12] = True
    boxes = np.array([[0.5, 0.5, 1.0, 1.0]])
    target = {"size": (64, 64), "class_labels": np.array([0]), "boxes": boxes, "masks": mask}
    picture = np.asarray(draw_batch(np.zeros((1, 3, 64, 64), np.uint8), [target], ["a"], side=64)[0])
    inside = np.zeros((64, 64), bool)
    inside[16:32, 32:48] = True
    assert np.array_equal(picture[16:60, 4:60].any(-1), inside[16:60, 4:60])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 1.0}, "keypoint threshold 1.0 is not valid"),
        ({"threshold": -0.1}, "keypoint threshold -0.1"),
        ({"ellipses": -1.0}, "ellipses of -1.0 standard deviations"),
    ],
)
def test_numbers_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        DrawingStyle(**fields)


def boxes_of(*boxes, labels=None):
    count = len(boxes)
    labels = torch.tensor(labels or [0] * count)
    return {"scores": torch.full((count,), 0.9), "labels": labels, "boxes": torch.tensor(boxes, dtype=torch.float32)}


def area_of(picture, colour=RED):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((np.asarray(picture) == colour).all(-1))


def test_labels_grow_with_the_picture():
    heights = []
    for side in (500, 4000):
        box = [side * 0.4, side * 0.4, side * 0.6, side * 0.6]
        rows, _ = area_of(draw_detections(Image.new("RGB", (side, side)), boxes_of(box), {0: "cat"}))
        heights.append((box[1] - rows.min()) / side)
    assert heights[1] > 0.015 and heights[1] == pytest.approx(heights[0], rel=0.5)


@pytest.mark.parametrize("box", [(600, 200, 638, 300), (0, 0, 30, 5), (500, 470, 639, 479), (-50, -50, 20, 20)])
def test_labels_stay_inside(box):
    name = "construction worker"
    free, _ = draw_detections(Image.new("RGB", (640, 480)), boxes_of([200, 200, 400, 400]), {0: name}), None
    drawn = draw_detections(Image.new("RGB", (640, 480)), boxes_of(box), {0: name})
    text = [(np.asarray(each).min(-1) > 150).sum() for each in (free, drawn)]
    assert text[0] > 50 and text[0] == pytest.approx(text[1], rel=0.02), "all letters are there"


def test_labels_do_not_hide_each_other():
    boxes = [[100, 100, 200, 200], [101, 100, 201, 200], [100, 102, 200, 202], [99, 99, 199, 199]]
    alone = draw_detections(Image.new("RGB", (640, 480)), boxes_of(boxes[0]), {0: "bird"})
    together = draw_detections(Image.new("RGB", (640, 480)), boxes_of(*boxes), {0: "bird"})
    letters = [(np.asarray(each).min(-1) > 150).sum() for each in (alone, together)]
    assert letters[0] > 20 and letters[1] == pytest.approx(4 * letters[0], rel=0.02)


def test_names_without_glyphs_give_way_to_their_number_and_others_are_told_apart():
    pictures = {}
    for label, name in enumerate(("\U0001f426\U0010fffd", "\u732b\U0010fffd", "cat", "dog")):
        drawn = draw_detections(
            Image.new("RGB", (640, 480)), boxes_of([100, 100, 300, 300], labels=[label]), {label: name}
        )
        bright = np.asarray(drawn).min(-1) > 150
        pictures[name] = bright[:, bright.any(0)].tobytes()
    assert len(set(pictures.values())) == 4
    unknown = draw_detections(Image.new("RGB", (640, 480)), boxes_of([100, 100, 300, 300], labels=[7]), {0: "cat"})
    assert (np.asarray(unknown).min(-1) > 150).any(), "a label without a name is its number"


def test_eighty_classes_have_colours_of_their_own():
    seen = []
    for label in range(80):
        drawn = draw_detections(Image.new("RGB", (640, 480)), boxes_of([100, 100, 300, 300], labels=[label]), {})
        seen.append(drawn.getpixel((100, 200)))
    colours = np.array(seen)
    distance = np.abs(colours[:, None] - colours).sum(-1) + 1000 * np.eye(80, dtype=int)
    assert distance.min() >= 34


@pytest.mark.parametrize("box", [(200, 200, 100, 100), (float("nan"),) * 4, (1e9, 0, 2e9, 5), (0, 0, float("inf"), 5)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_boxes_and_images_of_every_kind(box, mode):
    assert draw_detections(Image.new(mode, (640, 480)), boxes_of(box), {0: "a\nb"}).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_drawn_as_its_tag_turns_it(orientation, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8))
    exif = photo.getexif()
    exif[274] = orientation
    photo.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        turned = ImageOps.exif_transpose(photo)
        objects = {**boxes_of((10, 10, 90, 50)), "masks": np.ones((1, turned.height, turned.width), dtype=bool)}
        drawn, expected = (draw_detections(image, objects, {0: "a"}) for image in (photo, turned))
    assert drawn.size == turned.size and drawn.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_8_bits_keep_their_grey(dtype):
    ramp = np.tile(np.linspace(0, 1, 500), (500, 1))
    image = Image.fromarray((ramp * (1 if dtype is np.float32 else 4095)).astype(dtype))
    pixels = np.asarray(draw_detections(image, boxes_of((1, 1, 2, 2)), {0: ""}))[250, :, 0]
    assert pixels[0] < 3 and 125 < pixels[250] < 131 and pixels[-1] == 255
