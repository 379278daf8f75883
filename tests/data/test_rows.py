"""Rows that nobody has loaded with `load_detection_dataset`: each fault is named before the first step."""

import contextlib
import re

import datasets
import pytest
from datasets import Features, Value
from helpers.runs import assert_same, one_step, weights

from rfdetr_hf import CocoEvaluator, RFDETRTrainer
from rfdetr_hf.data.audit import count_split

SHAPES = 4


def column(name, change, kind=None):
    """The data set with other values, and perhaps of another type, in a column."""

    def changed(data):
        features = data.features.copy()
        features[name] = Value(kind) if kind else features[name]
        return data.map(lambda row, i: {name: change(i)}, with_indices=True, features=features)

    return changed


def objects(name, change=None, kind=None):
    """The data set with other values in a list of the objects, or without it."""

    def changed(data):
        fields = dict(data.features["objects"])
        if change is None:
            fields.pop(name)
        elif kind is not None:
            fields[name] = kind
        rows = [dict(row["objects"]) for row in data]
        for row in rows:
            values = row.pop(name)
            row |= {} if change is None else {name: change(values)}
        features = Features({**data.features, "objects": fields})
        return data.map(lambda row, i: {"objects": rows[i]}, with_indices=True, features=features)

    return changed


FAULTS = [
    (column("image_id", "img{}".format, "string"), "column image_id holds string ('img0'), not an integer"),
    (column("image_id", str, "string"), "column image_id holds string ('0')"),
    (column("image_id", lambda i: i + 0.5, "float64"), "column image_id holds double (0.5)"),
    (column("image_id", lambda i: None if i == 2 else i), "column image_id, row 2: null"),
    (column("image_id", lambda i: i // 2), "column image_id has 0 more than once"),
    (column("width", str, "string"), "column width holds string"),
    (column("height", lambda i: None if i == 3 else 64), "column height, row 3: null, not a positive integer"),
    (column("height", lambda i: -i), "column height, row 0: 0, not a positive integer"),
    (lambda data: data.remove_columns("image_id"), "column image_id is missing"),
    (lambda data: data.remove_columns("width"), "column width is missing"),
    (column("height", lambda i: 64.5, "float64"), "column height, row 0: 64.5, not a positive integer"),
    (objects("iscrowd", lambda flags: [0.5] * len(flags), datasets.List(Value("float64"))), "iscrowd, row 0: 0.5, not"),
    (objects("area", lambda areas: None), "field objects.area, row 0: null, not a list; an image without objects has"),
    (objects("bbox", list, datasets.Array2D((None, 4), "float64")), "objects.bbox must be a list for each image"),
    (objects("bbox"), "objects.bbox is missing"),
    (objects("area"), "objects.area is missing"),
    (objects("iscrowd"), "objects.iscrowd is missing"),
    (objects("bbox", lambda boxes: [None] * len(boxes)), "objects.bbox, row 0: a box has not four numbers"),
    (objects("bbox", lambda boxes: [[float("nan")] * 4] * len(boxes)), "objects.bbox, row 0: nan, not four finite"),
    (objects("bbox", lambda boxes: [box[:3] for box in boxes], datasets.List(datasets.List(Value("float64")))),
     "objects.bbox, row 0: a box has not four numbers"),
    (objects("category", lambda labels: [-1] * len(labels)), "objects.category, row 0: -1, not a label from 0 to 2"),
    (objects("category", lambda labels: [None] * len(labels)), "objects.category, row 0: null"),
    (objects("category", lambda labels: labels[1:]), "row 0: field objects.category has 0 values for 1 boxes"),
    (objects("iscrowd", lambda flags: ["no"] * len(flags), datasets.List(Value("string"))), "iscrowd holds string"),
    (objects("area", lambda areas: [float("inf")] * len(areas)), "objects.area, row 0: inf, not a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_of_the_rows_is_named_before_the_first_step(tmp_path, tiny_model, shapes, change, message):
    wrong, args = change(shapes), one_step(tmp_path)
    with pytest.raises(ValueError, match=f"^train_dataset.*{re.escape(message)}.* load the data with"):
        RFDETRTrainer(tiny_model(), args, wrong, shapes)
    with pytest.raises(ValueError, match=re.escape(message)):
        RFDETRTrainer(tiny_model(), args, eval_dataset=shapes).evaluate(wrong)


def test_what_a_careful_hand_writes_trains_to_the_same_bits(tmp_path, tiny_model, shapes):
    """Whole numbers as floats, no areas but those of the boxes, fields that nobody reads."""

    def written(row, plain):
        found = dict(row["objects"])
        found["area"] = [w * h for _, _, w, h in found["bbox"]] if plain else [None] * len(found["bbox"])
        return {"objects": found if plain else {**found, "note": None, "count": len(found["bbox"])}}

    features = {**shapes.features, "width": Value("float64"), "height": Value("float64")}
    fields = {"iscrowd": datasets.List(Value("float32")), "note": Value("string"), "count": Value("int64")}
    features["objects"] = {**shapes.features["objects"], **fields}
    plain = shapes.map(written, fn_kwargs={"plain": True})
    loose = datasets.Dataset.from_list([row | written(row, plain=False) for row in shapes], features=Features(features))
    ends = []
    for data in (plain, loose):
        trainer = RFDETRTrainer(tiny_model(), one_step(tmp_path / str(len(ends))), data, data)
        trainer.train()
        scores = {name: score for name, score in trainer.evaluate().items() if "map" in name}
        ends.append((weights(trainer.model), scores, trainer.predict(data).predictions[0]["boxes"].tolist()))
    assert_same(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]
    assert count_split(loose, "train") == count_split(plain, "train")


def test_a_set_without_any_box_is_scored(tmp_path, tiny_model, shapes):
    """Its lists are of no type: nobody has told which."""
    empty = objects("bbox", lambda boxes: [], datasets.List(datasets.List(Value("null"))))
    none = {name: [] for name in shapes.features["objects"]}
    nothing = empty(shapes.map(lambda row: {"objects": none}))
    assert RFDETRTrainer(tiny_model(), one_step(tmp_path), shapes, nothing).evaluate()["eval_map"] == -1


@pytest.mark.parametrize(
    "given", [{"type": "torch"}, {"type": "pandas"}, {"columns": ["image", "objects"]},
              {"type": "torch", "columns": ["image_id"], "output_all_columns": True}],
)  # fmt: skip
def test_formats_in_which_no_row_can_be_read_are_named(tmp_path, tiny_model, shapes, given):
    with pytest.raises(ValueError, match=r"train_dataset has the format .*; give it without one: dataset.with_format"):
        RFDETRTrainer(tiny_model(), one_step(tmp_path), shapes.with_format(**given), shapes)
    numbers = shapes.with_format("numpy")
    RFDETRTrainer(tiny_model(), one_step(tmp_path), numbers, numbers.with_transform(lambda rows: rows)).evaluate()


def test_rows_in_an_order_of_their_own_are_checked_and_no_others(tmp_path, tiny_model, shapes):
    wrong = shapes.map(lambda row, i: {"image_id": 2**62 + i % 3, "width": 64 if i else -1}, with_indices=True)
    model, args = tiny_model(), one_step(tmp_path)
    for rows, fault in (([3, 2, 1], None), ([2, 0, 1], "width, row 1: -1"), ([2, 3, 0, 1], "width, row 2: -1")):
        with pytest.raises(ValueError, match=fault) if fault else contextlib.nullcontext():
            RFDETRTrainer(model, args, wrong.select(rows), shapes)
    with pytest.raises(ValueError, match="image_id has 4611686018427387904 more than once"):
        RFDETRTrainer(model, args, shapes.map(lambda row: {"image_id": 2**62}).select([2, 0]), shapes)


def test_integers_of_any_kind_are_ids(tmp_path, tiny_model, shapes):
    large = shapes.map(lambda row, i: {"image_id": 2**62 + i}, with_indices=True)
    trainer = RFDETRTrainer(tiny_model(), one_step(tmp_path), shapes.cast_column("image_id", Value("int32")), large)
    trainer.train()
    assert trainer.predict(large).predictions[1]["image_id"] == 2**62 + 1


def test_an_evaluator_names_a_box_that_is_none(shapes):
    wrong = objects("bbox", lambda boxes: [None] * len(boxes))(shapes)
    with pytest.raises(ValueError, match=r"Image \d+: objects.bbox None .* must be x, y, width, height"):
        CocoEvaluator(wrong)
