"""Duplicates, odd masks and keypoints: repaired and counted, or errors; the same in training and scoring."""

import json
import logging

import numpy as np
import pytest

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError

SQUARE = [8, 8, 28, 8, 28, 24, 8, 24]
BOX = [8, 8, 20, 16]


@pytest.fixture
def load(tmp_path, write_image):
    """Load objects of images of 64x48, ten to an image: `load([{fields}, …], task, category fields)`."""

    def load(objects, task="detection", category=None, count=None, classes=1, **options):
        count = count or -(-len(objects) // 10)
        for i in range(count):
            write_image(tmp_path / f"{i}.jpg")
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(count)]
        records = [
            {"id": i, "image_id": i // 10, "category_id": 1, "bbox": BOX, "segmentation": [SQUARE], **each}
            for i, each in enumerate(objects)
        ]
        names = ["cat", "dog", "bird"][:classes]
        categories = [{"id": i, "name": name, **(category or {})} for i, name in enumerate(names, 1)]
        content = {"images": images, "annotations": records, "categories": categories}
        (tmp_path / "train.json").write_text(json.dumps(content))
        return load_detection_dataset(tmp_path, task=task, **options)["train"]

    return load


def spread(count):
    """Boxes that differ, with their outlines."""
    shifts = [(i % 10, i // 10 % 8) for i in range(count)]
    return [
        {"bbox": [8 + x, 8 + y, 20, 16], "segmentation": [[v + (x, y)[k % 2] for k, v in enumerate(SQUARE)]]}
        for x, y in shifts
    ]


def test_annotations_written_twice_are_dropped_and_counted(load, caplog):
    train = load([*spread(3), spread(1)[0], {"bbox": [8, 8, 20, 16.5]}])
    assert len(train[0]["objects"]["id"]) == 4 and "dropped 1 box (written twice)" in caplog.text


@pytest.mark.parametrize(("box", "reason", "remedy"), [
    ([30, 8, -20, 16], "a negative width or height", "their corners are exchanged"),
    ([30, 24, -20, -16], "a negative width or height", "their corners are exchanged"),
    ([8, 8, 0, 16], "no width or no height", "delete these annotations"),
])  # fmt: skip
def test_few_boxes_of_no_extent_are_dropped_and_many_are_a_fault(load, caplog, box, reason, remedy):
    lost = [{"bbox": [box[0] + i / 2, *box[1:]]} for i in range(4)]
    assert sum(len(o["id"]) for o in load([*spread(18), *lost[:2]])["objects"]) == 18
    assert f"dropped 2 boxes ({reason}): annotation id 18" in caplog.text
    with pytest.raises(
        DetectionDataError, match=rf"4 of 22 boxes .* have {reason}, such as annotation id 18(.|\n)*{remedy}"
    ):
        load([*spread(18), *lost])


def test_boxes_of_zeros_mark_images_without_objects(load, caplog):
    """Half of the images here; beside other boxes, or with an area, a mask or keypoints, an object has lost its box."""
    zeros = {"bbox": [0, 0, 0, 0], "area": 0, "segmentation": []}
    train = load([*spread(20), *[{**zeros, "image_id": i} for i in range(2, 22)]], count=22)
    assert [len(o["id"]) for o in train["objects"]] == [10, 10, *[0] * 20]
    assert "dropped 20 boxes (of zeros alone, as a mark of images without objects): annotation id 20" in caplog.text
    assert len(load([*spread(20), *[{**zeros, "image_id": i} for i in range(2, 9)]], "segmentation", count=9)) == 9
    for task, beside, lost in (
        ("detection", spread(15), {}), ("detection", spread(20), {"area": 320}),
        ("segmentation", spread(20), {"segmentation": [SQUARE]}),
        ("keypoints", spread(20), {"keypoints": [9, 9, 2] * 3}),
    ):  # fmt: skip
        category = POINTS if task == "keypoints" else None
        beside = [{**each, "keypoints": [9, 9, 2] * 3} for each in beside] if category else beside
        objects = [{**zeros, **lost, "category_id": n} for n in (1, 2, 3)]
        with pytest.raises(DetectionDataError, match=r"3 of \d+ boxes .* have no width or no height"):
            load([*beside, *objects], task, category, classes=3)


EMPTY = {"size": [48, 64], "counts": [48 * 64]}
NOWHERE = {
    "outside": [[100, 100, 120, 100, 120, 118]],
    "a line": [[8, 8, 20, 8, 28, 8]],
    "a point": [[8.2, 8.2, 8.2, 8.2, 8.2, 8.2]],
    "no pixels": EMPTY,
    "no pixels as floats": {"size": [48, 64], "counts": [48 * 64.0]},
}


@pytest.mark.parametrize("mask", NOWHERE.values(), ids=NOWHERE)
def test_masks_without_pixels(load, mask, caplog):
    objects = spread(20)
    objects[3]["segmentation"] = mask
    train = load(objects, "segmentation")
    assert sum(len(o["id"]) for o in train["objects"]) == 19 and "covers no pixel" in caplog.text
    with pytest.raises(DetectionDataError, match="annotation id 0 .*field segmentation covers no pixel"):
        load([{"segmentation": mask}], "segmentation")
    assert load([{"segmentation": mask}], "segmentation", missing_masks="box")[0]["objects"]["bbox"] == [BOX]


def test_masks_far_from_their_box(load, caplog):
    objects = spread(20)
    objects[3]["segmentation"] = [[40, 30, 60, 30, 60, 44]]
    objects[3]["bbox"] = [2, 2, 10, 10]
    train = load(objects, "segmentation")
    assert sum(len(o["id"]) for o in train["objects"]) == 19 and "elsewhere than their box" in caplog.text
    with pytest.raises(DetectionDataError, match="field segmentation lies elsewhere than the box"):
        load([{"segmentation": [[40, 30, 60, 30, 60, 44]]}], "segmentation")


def outlines(count, scale, shift, noise=0.0):
    """Boxes all over the pictures, and outlines that are moved by one scale and shift."""
    rng = np.random.default_rng(0)
    size = rng.uniform(16, 30, (count, 2))
    place = rng.uniform(0, 1, (count, 2)) * (np.array([64, 48]) - size)
    corners = np.concatenate([place, place + size], axis=1) * scale + shift + noise * rng.uniform(-1, 1, (count, 4))
    return [
        {"bbox": [*p, *s], "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        for p, s, (x0, y0, x1, y1) in zip(place.tolist(), size.tolist(), corners.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("scale", "shift"), [(1.25, 0), (0.8, 0), (1, 6), (0.6, 10), (0.75, 0)])
def test_masks_of_another_size_or_part_of_the_pictures_are_a_fault(load, scale, shift):
    with pytest.raises(DetectionDataError, match=r"median overlap \(IoU\) of 30 masks .* x becomes that of the box by"):
        load(outlines(30, scale, shift), "segmentation")


@pytest.mark.parametrize(("noise", "said"), [(9, True), (1, False), (0, False)])
def test_masks_that_lie_loosely_on_their_boxes(load, caplog, noise, said):
    load(outlines(30, 1, 0, noise), "segmentation")
    assert ("median overlap (IoU)" in caplog.text) == said


def margins(kind, rng):
    """The middle of a box, half its side, and half that of the mask in it: one line leads from mask to box."""
    place = {"moved": rng.uniform(-1, 1, 2), "belt": np.array([rng.uniform(-9, 9), 0])}.get(kind, np.zeros(2))
    half = rng.uniform(8, 16) if kind == "sizes" else 12
    return place + [32, 24], half, half / 1.5 if kind == "sizes" else 7


@pytest.mark.parametrize("kind", ["fixed", "moved", "belt", "sizes"])
def test_boxes_with_a_margin_round_masks_at_one_place_are_a_warning(load, caplog, kind):
    """One product before a fixed camera, at one place or nearly, on a belt, or of several sizes."""
    rng, objects = np.random.default_rng(0), []
    for i in range(30):
        (x, y), half, inner = margins(kind, rng)
        left, top, right, bottom = x - inner, y - inner, x + inner, y + inner
        box, outline = [x - half, y - half, 2 * half, 2 * half], [left, top, right, top, right, bottom, left, bottom]
        objects.append({"image_id": i, "bbox": box, "segmentation": [outline]})
    assert len(load(objects, "segmentation", count=30)) == 30
    assert "median overlap (IoU) of 30 masks" in caplog.text


def test_normalised_masks(load):
    with pytest.raises(DetectionDataError, match="field segmentation of 2 objects is between 0 and 1"):
        load([{"segmentation": [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]], "bbox": [i, 8, 20, 16]} for i in range(2)],
             "segmentation")  # fmt: skip


@pytest.mark.parametrize("mask", [
    5, True, {"counts": 3, "size": [48, 64]}, {"counts": "~~~", "size": [48, 64]}, {"counts": "0", "size": None},
    {"counts": [-5, 48 * 64 + 5], "size": [48, 64]}, {"counts": [1.5], "size": [48, 64]}, [["a", "b"] * 3],
    [[1, 2, [3], 4, 5, 6]], [[1e300, 0, 5, 5, 9, 1]], {"counts": "PP00", "size": [48, 64]}, [[True] * 6], "x",
    {"counts": "é", "size": [48, 64]},
])  # fmt: skip
def test_masks_of_wrong_types_are_named(load, mask):
    with pytest.raises(DetectionDataError, match="train.json.*\n.*annotation id 0 .*field segmentation"):
        load([{"segmentation": mask}], "segmentation")


POINTS = {"keypoints": ["nose", "left_eye", "right_eye"]}


def test_objects_in_one_box_are_apart_by_their_keypoints_and_masks(load, caplog):
    whole, points = [0, 0, 64, 48], [[x, 9, 2, x, 20, 2, 0, 0, 0] for x in (9, 30)]
    written = [[0] * 9, points[0], points[1], points[0]]
    train = load([{"bbox": whole, "keypoints": each} for each in written], "keypoints", POINTS)
    assert train[0]["objects"]["keypoints"] == points and "dropped 2 boxes (written twice)" in caplog.text
    halves = [[[8, 8, 28, 8, 8, 24]], [[28, 24, 28, 8, 8, 24]], [[8, 8, 28, 8, 8, 24]]]
    assert len(load([{"segmentation": each} for each in halves], "segmentation")[0]["objects"]["id"]) == 2


def test_keypoints_outside_their_image_are_not_labelled(load, caplog):
    objects = [{"keypoints": [100, 100, 2, 12, 12, 1, 64, 48, 2]}]
    train = load(objects, "keypoints", POINTS)
    assert np.reshape(train[0]["objects"]["keypoints"][0], (3, 3)).tolist() == [[0, 0, 0], [12, 12, 1], [64, 48, 2]]
    assert "lie outside their image" in caplog.text


def test_keypoints_far_from_their_box(load, caplog):
    near, far = [20, 18, 2, 22, 20, 1, 0, 0, 0], [60, 46, 2, 55, 45, 1, 0, 0, 0]
    objects = [{**each, "keypoints": near} for each in spread(20)]
    train = load([*objects[:-1], {**objects[0], "bbox": [2, 2, 9, 9], "keypoints": far}], "keypoints", POINTS)
    assert not any(train[1]["objects"]["keypoints"][-1]) and all(map(any, train[0]["objects"]["keypoints"]))
    assert "took as not labelled the keypoints of 1 object (they all lie elsewhere than the box)" in caplog.text
    with pytest.raises(DetectionDataError, match="4 problems(.|\n)*annotation id 0 .*keypoints: all lie elsewhere"):
        load([{"bbox": [2 + i, 2, 9, 9], "keypoints": far} for i in range(4)], "keypoints", POINTS)


@pytest.mark.parametrize(("scale", "said"), [(0.6, True), (1, False)])
def test_keypoints_of_another_size_of_picture_are_a_warning(load, caplog, scale, said):
    boxes = [each["bbox"] for each in outlines(30, 1, 0)]
    points = [[[scale * (x + w / 4), scale * (y + h / 4), 2], [scale * (x + w), scale * (y + h), 2], [0, 0, 0]]
              for x, y, w, h in boxes]  # fmt: skip
    objects = [{"bbox": b, "keypoints": np.ravel(p).tolist()} for b, p in zip(boxes, points, strict=True)]
    load(objects, "keypoints", POINTS)
    assert ("lie beside the box of their object" in caplog.text) == said


def test_areas_tell_how_boxes_are_written(load, caplog):
    corners = [{"bbox": [i, i % 7, i + 9, i % 7 + 5], "area": 45} for i in range(5, 15)]
    with pytest.raises(
        DetectionDataError, match=r"areas of 10 of 10 boxes are those of 'xyxy'(.|\n)*bbox_format='xyxy'"
    ):
        load(corners)
    assert load(corners, bbox_format="xyxy")[0]["objects"]["area"] == [45] * 10
    assert load([{**each, "area": 12} for each in spread(10)])[0]["objects"]["area"] == [12] * 10, "of a mask"
    assert load([{**each, "area": 0} for each in spread(3)])[0]["objects"]["area"] == [320] * 3
    assert "took width x height as the area of 3 boxes (field area is 0)" in caplog.text
    assert load([{**each, "area": 1e9} for each in spread(3)])[0]["objects"]["area"] == [320] * 3
    assert load([{**each, "area": 0.01} for each in spread(3)])[0]["objects"]["area"] == [320] * 3
    assert "of 3 boxes (field area is more than twice width x height)" in caplog.text
    assert "of 3 boxes (field area is below 1% of width x height in most of the split)" in caplog.text
    for given, kept in ((20, 20), (2640 / (64 * 48), 2640), (5, 2640)):
        wires = [{"bbox": [2 + i / 8, 2, 60, 44], "area": given} for i in range(6)]
        assert load(wires)[0]["objects"]["area"] == [kept] * 6, "wires a third of a pixel wide, other units"
    thin = [{**each, "area": 3.0 if i == 0 else 300.0} for i, each in enumerate(spread(5))]
    assert sorted(load(thin)[0]["objects"]["area"]) == [3, 300, 300, 300, 300], "a line"


@pytest.mark.parametrize("order", [[2, 3, 0, 1], [2, 1, 0, 3]])
def test_corners_in_the_wrong_order_are_no_other_format(load, order):
    corners = [[x, y, x + w, y + h] for x, y, w, h in (each["bbox"] for each in outlines(30, 1, 0))]
    with pytest.raises(
        DetectionDataError, match="30 of 30 boxes .* negative width or height(.|\n)*corners are exchanged"
    ):
        load([{"bbox": [box[i] for i in order]} for box in corners], bbox_format="xyxy")


def test_a_split_without_a_labelled_keypoint(load, caplog):
    load([{"keypoints": [0] * 9}], "keypoints", POINTS)
    assert "train split: no keypoint is labelled in 1 image" in caplog.text


def test_normalised_keypoints(load):
    with pytest.raises(DetectionDataError, match="field keypoints.*between 0 and 1"):
        load([{"keypoints": [0.1, 0.2, 2, 0.3, 0.3, 2, 0.4, 0.4, 2]}], "keypoints", POINTS)


@pytest.mark.parametrize(("category", "faults"), [({"skeleton": [[0, 1], [1, 2]]}, 1), ({"keypoints": ["p"] * 3}, 1)])
def test_one_fault_of_a_category_is_one_fault(load, category, faults):
    with pytest.raises(DetectionDataError, match=f"{faults} problem"):
        load([{"keypoints": [10, 10, 2] * 3}], "keypoints", {**POINTS, **category})


@pytest.mark.parametrize(("field", "value"), [
    ("bbox", [1e400, 1, 2, 3]), ("bbox", [10**400, 1, 2, 3]), ("bbox", [True, 1, 2, 3]),
    ("bbox", [[1], 1, 2, 3]), ("area", 10**400), ("area", True), ("id", 2**63), ("category_id", 2**70),
    ("image_id", 1e300), ("category_id", None), ("bbox", {"x": 1}),
])  # fmt: skip
def test_numbers_that_no_column_holds_are_named(load, field, value):
    with pytest.raises(DetectionDataError, match=rf"train.json(.|\n)*field {field}"):
        load([{field: value}, {"bbox": [1, 2, 30, 20]}])


@pytest.mark.parametrize(("text", "message"), [
    ("[" * 100_000, "train.json: cannot be read as JSON"),
    ('{"images": [], "images": [], "annotations": [], "categories": []}', "field 'images' stands twice"),
    ('{"images": [1' + "0" * 5000 + "]}", "train.json: cannot be read as JSON"),
    ("", "train.json"),
])  # fmt: skip
def test_files_that_no_reader_reads_are_named(tmp_path, text, message):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(tmp_path / "train.json")


def test_boxes_are_clamped_dropped_and_counted(load_file, coco_content, caplog):
    content = coco_content()
    boxes = {
        1: [-5, -5, 20, 20],  # over the corner
        2: [60, 40, 20, 20],
        3: [5, 5, 0, 10],  # degenerate
        4: [5, 5, 10, -1],
        5: [64, 0, 10, 10],  # outside
        6: [0, -20, 10, 20],
        7: [0.1, 0.2, 63.9000001, 40],  # over by rounding
    }
    content["annotations"] = [
        {"id": i, "image_id": 0, "category_id": 3, "bbox": box, "area": 7.0 if i == 2 else None}
        for i, box in boxes.items()
    ]
    with caplog.at_level(logging.WARNING):
        objects = load_file(content)[0]["objects"]
    assert objects["id"] == [1, 2, 7]
    assert objects["bbox"][:2] == [[0, 0, 15, 15], [60, 40, 4, 8]]
    assert objects["area"][:2] == [225, 7], "a given area stays, a missing one is that of the clamped box"
    assert sum(objects["bbox"][2][::2]) <= 64
    messages = [record.getMessage() for record in caplog.records]
    assert any("dropped 1 box (no width or no height): annotation id 3 (image id 0)" in m for m in messages)
    assert any("dropped 1 box (a negative width or height): annotation id 4 (image id 0)" in m for m in messages)
    assert any("dropped 2 boxes (lie outside their image): annotation id 5" in m for m in messages)
    assert any("clamped 2 boxes" in m and "annotation id 7" not in m for m in messages)
