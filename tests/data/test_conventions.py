"""How boxes are written is checked by the boxes of a split together."""

import json

import numpy as np
import pytest
from datasets import Dataset, Image

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.conventions import check_convention
from rfdetr_hf.data.errors import DetectionDataError, Problems

SIZE = (64, 48)


def boxes_xywh(count, seed=0):
    rng = np.random.default_rng(seed)
    width, height = rng.uniform(6, 30, count), rng.uniform(6, 24, count)
    return np.stack([rng.uniform(0, 64 - width), rng.uniform(0, 48 - height), width, height], axis=1)


def written(boxes, form):
    x, y, w, h = np.asarray(boxes, float).T
    values = {
        "xywh": np.stack([x, y, w, h], 1),
        "xyxy": np.stack([x, y, x + w, y + h], 1),
        "cxcywh": np.stack([x + w / 2, y + h / 2, w, h], 1),
    }[form.rstrip("n")]
    return values / (SIZE * 2) if form.endswith("n") else values


@pytest.fixture
def sources(tmp_path, write_image):
    """The same boxes as a COCO file, as columns and as YOLO rows: `sources(kind, boxes)`, two boxes an image."""

    def make(kind, boxes):
        root = tmp_path / kind
        count = -(-len(boxes) // 2)
        files = [write_image(root / "images/train" / f"{i:03}.jpg", SIZE) for i in range(count)]
        pairs = [np.asarray(boxes[2 * i : 2 * i + 2]).tolist() for i in range(count)]
        if kind == "columns":
            rows = {"image": [str(file) for file in files], "objects": [
                {"bbox": pair, "category": [0] * len(pair)} for pair in pairs]}  # fmt: skip
            return Dataset.from_dict(rows).cast_column("image", Image())
        if kind == "yolo":
            for i, pair in enumerate(pairs):
                label = root / "labels/train" / f"{i:03}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text("".join(f"0 {' '.join(map(str, box))}\n" for box in pair))
            (root / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
            return root
        annotations = [{"id": i, "image_id": i // 2, "category_id": 1, "bbox": list(map(float, box))}
                       for i, box in enumerate(boxes)]  # fmt: skip
        images = [{"id": i, "file_name": file.name, "width": 64, "height": 48} for i, file in enumerate(files)]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (root / "train.json").write_text(json.dumps(content))
        return root

    return make


CASES = [("coco", "xywh"), ("columns", "xywh"), ("yolo", "cxcywhn")]


@pytest.mark.parametrize(("kind", "usual"), CASES)
@pytest.mark.parametrize("form", ["xywh", "xyxy", "cxcywh", "xywhn", "xyxyn", "cxcywhn"])
@pytest.mark.parametrize("count", [6, 60])
def test_boxes_in_another_format_are_recognised_and_read_when_asked(sources, kind, usual, form, count):
    few_centres = count == 6 and form == "cxcywh"  # do not differ enough from corners and sizes
    if form == usual or few_centres or (kind == "yolo" and not form.endswith("n")):
        return
    boxes = boxes_xywh(count)
    source = sources(kind, written(boxes, form))
    with pytest.raises(DetectionDataError, match=f"bbox_format='{form}'"):
        load_detection_dataset(source)
    train = load_detection_dataset(source, bbox_format=form)["train"]
    found = np.concatenate([np.reshape(objects["bbox"], (-1, 4)) for objects in train["objects"]])
    np.testing.assert_allclose(found, boxes, atol=1e-6)


@pytest.mark.parametrize(("kind", "usual"), CASES)
@pytest.mark.parametrize("form", ["xyxy", "xywhn"])
def test_single_odd_boxes_do_not_hide_the_format(sources, kind, usual, form):
    form = form.rstrip("n") + "n" if kind == "yolo" else form
    values = written(boxes_xywh(40), form)
    values[7] = [0.3, 0.3, 0.2, 0.2] if kind == "yolo" else [40, 30, 10, 8]
    with pytest.raises(DetectionDataError, match="bbox_format="):
        load_detection_dataset(sources(kind, values))


@pytest.mark.parametrize(("kind", "usual"), CASES)
def test_right_boxes_pass_with_some_that_reach_out(sources, kind, usual, caplog):
    boxes = boxes_xywh(60)
    boxes[:4, :2] = (50, 40)
    load_detection_dataset(sources(kind, written(boxes, usual)))
    assert "make sense only as" not in caplog.text


@pytest.mark.parametrize("form", ["yxhw", "yxyx", "cycxhw"])
def test_y_before_x_is_an_error_that_names_the_format(sources, form):
    boxes = boxes_xywh(60)
    values = written(boxes, {"yxhw": "xywh", "yxyx": "xyxy", "cycxhw": "cxcywh"}[form])[:, [1, 0, 3, 2]]
    source = sources("coco", values)
    with pytest.raises(DetectionDataError, match=f"bbox_format='{form}'"):
        load_detection_dataset(source)
    train = load_detection_dataset(source, bbox_format=form)["train"]
    found = np.concatenate([np.reshape(objects["bbox"], (-1, 4)) for objects in train["objects"]])
    np.testing.assert_allclose(found, boxes, atol=1e-6)


def test_right_boxes_beyond_one_border_are_not_taken_for_y_before_x(caplog):
    rng = np.random.default_rng(0)
    sizes = np.tile([480.0, 640.0], (60, 1))  # portraits of faces in the upper part, some cut by the right border
    sides = rng.uniform((120, 140), (200, 220), (60, 2))
    boxes = np.concatenate([rng.uniform((0, 20), np.array([480, 200]) - sides * [1, 0]), sides], 1)
    boxes[::6, 0] = 480 - sides[::6, 0] + 30
    check_convention(boxes, sizes, "xywh", str, problems := Problems("x"))
    assert not problems.count and "if they are right and reach out of their images, pass" in caplog.text
    boxes[::4, 0] = 480 - sides[::4, 0] / 3  # two thirds are outside
    check_convention(boxes, sizes, "xywh", str, problems, asked=True)
    assert not problems.count and len(caplog.messages) == 2 and "if they are right" not in caplog.messages[1]
    check_convention(boxes, sizes, "xywh", str, problems)
    assert problems.count == 1


def test_an_order_that_is_asked_for_is_read(sources, caplog):
    boxes = boxes_xywh(60)[:, [1, 0, 3, 2]]
    boxes[:, 1] = np.minimum(boxes[:, 1], 44)  # clipped, but with something inside
    train = load_detection_dataset(sources("coco", boxes), bbox_format="xywh")["train"]
    assert len(train) == 30 and "of 60 boxes make sense only as 'yxhw'" in caplog.text


def test_y_before_x_on_nearly_square_pictures_and_right_boxes_of_all_kinds(caplog):
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, size = int(rng.integers(1, 300)), rng.integers(40, 2000, 2)
        sizes = np.tile(np.where(rng.random() < 0.5, size, [size[0], size[0] * 0.95]), (count, 1))
        share = rng.uniform(0.02, 0.6, (count, 2))
        place = np.where(rng.random((count, 2)) < 0.2, 1 - share, rng.uniform(0, 1 - share))  # many touch the border
        problems = Problems("x")
        check_convention(np.concatenate([place, share], 1) * np.tile(sizes, 2), sizes, "xywh", str, problems)
        assert not problems.count and not caplog.messages
    sizes = np.tile([640.0, 560.0], (count := 200, 1))
    share = rng.uniform(0.05, 0.5, (count, 2))
    boxes = np.concatenate([rng.uniform(0, 1 - share), share], 1) * np.tile(sizes, 2)
    check_convention(boxes[:, [1, 0, 3, 2]], sizes, "xywh", str, problems)
    with pytest.raises(DetectionDataError, match=r"only as 'yxhw' \(top, left, height, width, pixels\), 0 only as"):
        problems.raise_if_any()
    check_convention(boxes[:, [1, 0, 3, 2]], sizes, "yxhw", str, after := Problems("x"))
    assert not after.count and not caplog.messages


@pytest.mark.parametrize(("kind", "usual"), CASES)
@pytest.mark.parametrize("form", ["xyxy", "xyxyn", "yxyx"])
@pytest.mark.parametrize("order", [[2, 3, 0, 1], [2, 1, 0, 3], [0, 3, 2, 1]])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_corners_in_another_order_are_called_so(sources, kind, usual, form, order, share):
    if kind == "yolo" and form != "xyxyn":
        return
    values = written(boxes_xywh(60), form.replace("yxyx", "xyxy"))
    plain = values[:, [1, 0, 3, 2]] if form == "yxyx" else values
    values = plain.copy()
    values[: int(share * 60)] = values[: int(share * 60), order]
    with pytest.raises(DetectionDataError, match=f"as two corners in another order than that of '{form}' .*such as "):
        load_detection_dataset(sources(kind, values))
    with pytest.raises(DetectionDataError, match="have a negative width or height.*\n.*smaller x and the smaller y"):
        load_detection_dataset(
            sources(kind + "2", values) if kind == "coco" else sources(kind, values), bbox_format=form
        )
    assert len(load_detection_dataset(sources(kind, plain), bbox_format=form)["train"]) == 30


def test_right_boxes_that_go_with_their_place_are_not_taken_for_corners(caplog):
    """On a road what is near is low in the picture and large, and some of it reaches out."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(10, 200))
        sizes, sides = np.tile([640.0, 480.0], (count, 1)), rng.uniform(0.02, 0.5, (count, 2))
        place = (1.6 * sides + rng.normal(0, 0.05, (count, 2))).clip(0, 1 - sides)
        place += sides * (rng.random((count, 1)) < 0.2) * rng.uniform(0, 0.5, (count, 1))
        for values, form in (
            (np.concatenate([place + sides / 2, sides], 1), "cxcywhn"),
            (np.concatenate([place, sides], 1) * np.tile(sizes, 2), "xywh"),
            (np.concatenate([place, place + sides], 1) * np.tile(sizes, 2), "xyxy"),
        ):
            check_convention(values, sizes, form, str, problems := Problems("x"), asked=form == "xyxy")
            try:
                problems.raise_if_any()
            except DetectionDataError as error:  # many centres speak for themselves
                assert form == "xywh" and "make sense only as 'cxcywh'" in str(error)


@pytest.mark.parametrize(("kind", "usual"), CASES[:2])
def test_one_doubtful_box_is_a_warning_with_an_example(sources, kind, usual, caplog):
    load_detection_dataset(sources(kind, [[30, 20, 60, 45], [2, 2, 20, 20]]))
    assert "1 of 2 boxes make sense only as 'xyxy'" in caplog.text and "30.0, 20.0, 60.0, 45.0" in caplog.text


@pytest.mark.parametrize(("kind", "usual"), CASES[:2])
def test_a_split_of_two_formats_is_a_warning(sources, kind, usual, caplog):
    boxes = boxes_xywh(60)
    boxes[::2] = written(boxes[::2], "xyxy")
    load_detection_dataset(sources(kind, boxes))
    assert "boxes make sense only as 'xyxy'" in caplog.text


@pytest.mark.parametrize(("kind", "usual"), CASES[:2])
def test_centres_of_small_boxes_are_a_warning(sources, kind, usual, caplog):
    rng = np.random.default_rng(3)
    size = rng.uniform(6, 10, (60, 2))
    boxes = np.concatenate([rng.uniform(0, np.array([64, 48]) - size), size], axis=1)
    load_detection_dataset(sources(kind, written(boxes, "cxcywh")))
    assert "boxes make sense only as 'cxcywh'" in caplog.text


MANY = {
    "corners by axis": lambda x, y, w, h: (x, x + w, y, y + h),
    "a picture twice the size": lambda x, y, w, h: (2 * x, 2 * y, 2 * w, 2 * h),
}


@pytest.mark.parametrize(("kind", "usual"), CASES[:2])
@pytest.mark.parametrize("wrong", MANY)
def test_many_boxes_outside_their_image_are_an_error_with_examples(sources, kind, usual, wrong):
    share = np.random.default_rng(1).uniform(0.1, 0.5, (60, 2))
    place = np.random.default_rng(2).uniform(0, 1 - share)
    boxes = np.concatenate([place, share], axis=1) * (SIZE * 2)
    source = sources(kind, [MANY[wrong](*box) for box in boxes])
    with pytest.raises(
        DetectionDataError, match=r"field bbox: \d+ of \d+ boxes .* lie outside their image, such as .* in 64 x 48"
    ):
        load_detection_dataset(source)


@pytest.mark.parametrize(("kind", "usual"), CASES[:2])
@pytest.mark.parametrize("outside", [1, 2, 5])
def test_few_boxes_outside_their_image_are_dropped(sources, kind, usual, outside, caplog):
    boxes = boxes_xywh(60)
    boxes[:outside, 0] = 70 + np.arange(outside)
    train = load_detection_dataset(sources(kind, boxes))["train"]
    assert sum(len(objects["bbox"]) for objects in train["objects"]) == 60 - outside
    assert f"dropped {outside} {'box' if outside == 1 else 'boxes'} (lie outside their image)" in caplog.text


@pytest.mark.parametrize(("form", "factor"), [("xywh", 0.5), ("xywh", 0.3), ("xyxy", 0.5), ("cxcywhn", 0.5)])
def test_boxes_of_a_smaller_picture_are_a_warning_with_examples(sources, form, factor, caplog):
    kind = "yolo" if form == "cxcywhn" else "coco"
    source = sources(kind, written(factor * boxes_xywh(60), form))
    load_detection_dataset(source, **({} if kind == "yolo" else {"bbox_format": form}))
    assert "of 60 boxes no box reaches beyond" in caplog.text and caplog.text.count("in 64 x 48") == 3
    assert "of a smaller copy of the pictures" in caplog.text


@pytest.mark.parametrize("form", ["xywh", "xyxy"])
def test_boxes_in_per_cent_are_a_warning_with_examples(tmp_path, write_coco, form, caplog):
    values = 100 * written(boxes_xywh(40), form + "n")
    names = [f"{i}.jpg" for i in range(4)]
    content = {
        "images": [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i % 4, "category_id": 1, "bbox": box.tolist()} for i, box in enumerate(values)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    write_coco(tmp_path / "train.json", content)
    content["images"] = [each | {"width": 1000, "height": 800} for each in content["images"]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    load_detection_dataset(tmp_path)
    assert "of 40 boxes no number is above 100" in caplog.text and "per cent" in caplog.text
    assert caplog.text.count("in 1000 x 800") == 3


@pytest.mark.parametrize("boxes", [boxes_xywh(60), 0.5 * boxes_xywh(19)])
def test_boxes_all_over_the_pictures_and_few_boxes_are_no_warning(sources, boxes, caplog):
    load_detection_dataset(sources("coco", boxes))
    assert "no box reaches" not in caplog.text and "no number is above" not in caplog.text
