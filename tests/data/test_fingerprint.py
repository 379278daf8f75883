"""The checksum by which a run that is repeated recognises its data."""

import os
import shutil

import pytest
from helpers.shards import FORMATS

from rfdetr_hf import convert_dataset, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.fingerprint import data_hash
from rfdetr_hf.data.shards.index import INDEX


def test_the_checksum_is_of_rows_and_order(shards_folder, sharded_train, tmp_path):
    assert data_hash({"train": sharded_train}) == data_hash({"train": load_detection_dataset(shards_folder)["train"]})
    moved = shutil.copytree(shards_folder, tmp_path / "moved")
    assert load_detection_dataset(moved)["train"].checksum == sharded_train.checksum
    assert load_detection_dataset(shards_folder, shard_window=3)["train"].checksum != sharded_train.checksum
    with pytest.raises(DetectionDataError, match="the data is not that of data_hash"):
        load_detection_dataset(shards_folder, data_hash={"kind": "contents", "train": "0" * 64})


@pytest.mark.parametrize("format", [*FORMATS, "footers"])
def test_the_checksum_sees_other_annotations_of_the_same_counts(shapes_splits, tmp_path, format):
    train, checksums = shapes_splits["train"].select(range(5)), set()

    def moved(row):
        return {"objects": {**row["objects"], "bbox": [[x + 1, *rest] for x, *rest in row["objects"]["bbox"]]}}

    for name, rows in (("a", train), ("b", train.map(moved, features=train.features, load_from_cache_file=False))):
        kind = "parquet" if format == "footers" else format
        convert_dataset({"train": rows}, tmp_path / name / "data", kind, 1)
        if format == "footers":
            os.remove(tmp_path / name / "data" / INDEX)
        loaded = load_detection_dataset(f"file://{tmp_path / name / 'data'}")["train"]
        checksums |= {loaded.checksum, data_hash({"train": loaded})["train"]}
    assert len(checksums) == 4
