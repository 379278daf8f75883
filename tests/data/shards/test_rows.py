"""Rows of shards that others have written."""

import fsspec
import pytest
from datasets import Image

from rfdetr_hf import CocoEvaluator, audit_data, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.row_reader import RowReader


@pytest.mark.parametrize(("change", "fault"), [
    (lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]], "(as|those of) 'xyxy'"),
    (lambda box: [v / 1000 for v in box], "make sense only as"), (lambda box: [box[0] + 999, *box[1:]], "lie outside"),
    (lambda box: [box[0] + box[2], box[1], -box[2], box[3]], "have a negative width"), (None, "image id 5: used by"),
    (lambda box: [box[0], box[1], float("nan"), box[3]], "nan, not four finite numbers"),
])  # fmt: skip
def test_rows_of_others_have_boxes_as_here(shapes_splits, tmp_path, change, fault):
    def changed(row):
        boxes = [change(box) for box in row["objects"]["bbox"]] if change else row["objects"]["bbox"]
        return {"objects": {**row["objects"], "bbox": boxes}, "image_id": row["image_id"] if change else 5}

    rows = shapes_splits["train"]
    rows.map(changed, features=rows.features).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    shards = load_detection_dataset(f"file://{tmp_path}")
    for read in (lambda: audit_data(shards, cache_dir=""), lambda: RowReader(shards["train"])[3],
                 lambda: list(shards["train"]), lambda: CocoEvaluator(shards["train"])):  # fmt: skip
        with pytest.raises(DetectionDataError, match=rf"train\.parquet: (.|\n)*{fault}(.|\n)*data convert"):
            read()


@pytest.mark.parametrize("group", [1, 4, 1000])
def test_unusual_rows_of_others_are_read_as_they_are(shapes_splits, tmp_path, group):
    def changed(row, i):
        objects, whole = row["objects"], [0.0, 0.0, row["width"], row["height"]]
        boxes = [whole if i == 1 else [x, y, 0.4, 0.6] if i == 2 else [x - 3, y, w, h]
                 for x, y, w, h in objects["bbox"]]  # fmt: skip
        objects = {name: [] if i == 3 else values for name, values in {**objects, "bbox": boxes}.items()}
        return {"objects": {**objects, "area": [None] * len(objects["bbox"])}, "image_id": -7 * i}

    rows = shapes_splits["train"]
    made = rows.map(changed, with_indices=True, features=rows.features)
    table = made.with_format("arrow")[:]
    made.cast_column("image", Image()).to_parquet(tmp_path / "train.parquet", batch_size=group)
    shards = load_detection_dataset(f"file://{tmp_path}")["train"]
    assert [shards[i]["objects"] for i in (59, 0, 1, 2, 3)] == [made[i]["objects"] for i in (59, 0, 1, 2, 3)]
    assert shards["image_id"] == table["image_id"].to_pylist()


def beyond(row):
    return [[row["width"] - w / 2, y, w, h] for _, y, w, h in row["objects"]["bbox"]]


def by_others(rows, folder, change, group):
    """Rows with other boxes, as shards that nobody has counted."""

    def changed(row, i):
        boxes = change(row, i)
        objects = {name: values[: len(boxes)] for name, values in row["objects"].items()}
        return {"objects": {**objects, "bbox": boxes, "area": [None] * len(boxes)}}

    made = rows.map(changed, with_indices=True, features=rows.features)
    made.cast_column("image", Image()).to_parquet(folder / "train.parquet", batch_size=group)
    return load_detection_dataset(f"file://{folder}")["train"]


@pytest.mark.parametrize("kind", ["last rows", "empty rows", "an image", "few boxes"])
def test_odd_rows_of_others_are_no_fault_of_the_split(shapes_splits, tmp_path, caplog, kind):
    rows = shapes_splits["train"]

    def change(row, i):
        boxes = row["objects"]["bbox"]
        if kind == "few boxes":
            return beyond(row)[:1]
        if kind == "an image":
            return [[900.0 + n, 5.0, 4.0, 4.0] for n in range(len(boxes))] if i == 30 else boxes
        odd = beyond(row) if kind == "last rows" else [[x, y, 0.0, h] for x, y, _, h in boxes]
        return odd if i >= 57 else boxes

    shards = by_others(rows.select(range(10)) if kind == "few boxes" else rows, tmp_path, change, 3)
    read = [shards[i] for i in reversed(range(len(shards)))]
    assert len(read) == len(shards) == len(list(shards))
    assert len([each for each in caplog.records if each.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("group", [3, 1000])
def test_empty_boxes_of_others_are_no_objects(shapes_splits, tmp_path, caplog, group):
    def change(row, i):
        boxes = row["objects"]["bbox"]
        return [[0.0] * 4] if i % 2 and boxes else boxes

    shards = by_others(shapes_splits["train"], tmp_path, change, group)
    counts = [len(row["objects"]["bbox"]) for row in shapes_splits["train"]]
    expected = [0 if i % 2 else count for i, count in enumerate(counts)]
    for objects in ([row["objects"] for row in shards], shards["objects"], [shards[i]["objects"] for i in range(60)]):
        assert [{len(values) for values in each.values()} for each in objects] == [{count} for count in expected]
    marks = sum(count > 0 for count in counts[1::2])
    assert f"dropped {marks} boxes (of zeros alone, as a mark of images without objects)" in caplog.text


@pytest.mark.parametrize("order", [(0, 59), (59, 0), (30, 59, 0)])
@pytest.mark.parametrize("faulty", [0, 1])
def test_the_order_of_reading_from_a_store_decides_nothing(shapes_splits, tmp_path, order, faulty):
    """Of three shards the first speaks for all."""
    rows, store = shapes_splits["train"], fsspec.filesystem("memory")
    place = f"order{faulty}-{order[0]}"
    for number in range(3):
        part = rows.select(range(20 * number, 20 * number + 20))
        if number == faulty:
            part = part.map(lambda row: {"objects": {**row["objects"], "bbox": beyond(row)}}, features=part.features)
        part.cast_column("image", Image()).to_parquet(tmp_path / "part.parquet")
        store.pipe(f"/{place}/train-0000{number}-of-00003.parquet", (tmp_path / "part.parquet").read_bytes())
    shards = load_detection_dataset(f"memory://{place}", shard_cache=str(tmp_path / "cache"))["train"]
    if faulty:
        assert [shards[i]["image_id"] for i in order] == [rows[i]["image_id"] for i in order]
        return
    for i in order:
        with pytest.raises(DetectionDataError, match="00000-of-00003"):
            shards[i]
