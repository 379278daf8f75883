"""Rows of shards that others have written."""

import pytest
from datasets import Image

from rfdetr_hf import audit_data, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError


@pytest.mark.parametrize(("change", "fault"), [
    (lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]], "make sense only as 'xyxy'"),
    (lambda box: [v / 1000 for v in box], "make sense only as"), (lambda box: [box[0] + 999, *box[1:]], "lie outside"),
    (lambda box: [box[0] + box[2], box[1], -box[2], box[3]], "have a negative width"), (None, "image id 5: used by"),
])  # fmt: skip
def test_rows_of_others_have_boxes_as_here(shapes_splits, tmp_path, change, fault):
    def changed(row):
        boxes = [change(box) for box in row["objects"]["bbox"]] if change else row["objects"]["bbox"]
        return {"objects": {**row["objects"], "bbox": boxes}, "image_id": row["image_id"] if change else 5}

    rows = shapes_splits["train"]
    rows.map(changed, features=rows.features).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    shards = load_detection_dataset(f"file://{tmp_path}")
    with pytest.raises(DetectionDataError, match=rf"train split, the \d+ rows that were looked at(.|\n)*{fault}"):
        audit_data(shards, cache_dir="")
