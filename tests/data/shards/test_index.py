"""What is known of shards before one is opened."""

import json
import os
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.audit import count_split
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import max_objects
from rfdetr_hf.data.shards.counts import Counts
from rfdetr_hf.data.shards.index import INDEX, KEY, read_index, write_index


def test_index_and_footers_say_what_is_in_the_shards(data_root, tmp_path):
    splits = load_detection_dataset(data_root / "coco_person", task="keypoints")
    convert_dataset(splits, tmp_path / "shards", "parquet", 1)
    index = read_index(str(tmp_path / "shards" / INDEX), "index")
    counts, train = index.splits["train"].counts, splits["train"]
    report = count_split(train, "train")
    assert index.format == "parquet" and index.features["objects"] == train.features["objects"]
    assert counts.images == report.num_images and counts.boxes == report.num_boxes
    assert (counts.crowds, counts.background) == (report.num_crowds, report.num_empty_images)
    assert counts.objects == list(report.boxes_per_class.values())
    assert counts.images_with == list(report.images_per_class.values())
    assert (counts.small, counts.medium, counts.large) == (report.small, report.medium, report.large)
    assert counts.with_keypoints == report.keypoint_objects
    assert counts.labelled == [list(points.values()) for points in report.labelled_keypoints.values()]
    assert counts.max_objects == max_objects(train)
    footers = Counts()
    for file in index.splits["train"].files:
        about = json.loads(pq.read_metadata(tmp_path / "shards" / str(file)).metadata[KEY])
        assert about["rows"] == about["counts"]["images"]
        footers += Counts.from_dict(about["counts"])
    assert footers == counts


@pytest.mark.parametrize("damage", ["cut", "another file", "rows", "version", "format"])
def test_a_damaged_index_is_named(written_splits, tmp_path, damage):
    convert_dataset(written_splits, tmp_path / "shards", "parquet", 1)
    path = tmp_path / "shards" / INDEX
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "another file":
        path.write_bytes(next((tmp_path / "shards" / "data").iterdir()).read_bytes())
    else:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[KEY])
        about |= {"version": 99} if damage == "version" else {"format": "zip"} if damage == "format" else {}
        if damage == "rows":
            table = table.slice(1)
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(about).encode()}), path)
    with pytest.raises(DetectionDataError, match=r"_index\.parquet: .*(data convert|update it)"):
        read_index(str(path), str(path))


def test_the_index_of_a_billion_rows_is_small(tmp_path):
    from rfdetr_hf.data.shards.index import Shard

    features = make_shapes_dataset(1).features
    counts = Counts(images=10_000, objects=[1, 2, 3], images_with=[1, 1, 1], objects_per_image={3: 10_000})
    shards = [Shard("train", f"data/train-{i:06d}-of-100000.parquet", 10_000, 10**9, counts) for i in range(100_000)]
    write_index(str(tmp_path / INDEX), "parquet", features, shards)
    assert os.path.getsize(tmp_path / INDEX) < 10_000_000
    tracemalloc.start()
    try:
        train = read_index(str(tmp_path / INDEX), "index").splits["train"]
        assert tracemalloc.get_traced_memory()[1] < 8_000_000  # the names as texts would take 18 MB
    finally:
        tracemalloc.stop()
    assert len(train) == 100_000 and train.rows.sum() == train.counts.images == 10**9
    assert train.counts.objects == [100_000, 200_000, 300_000]
    assert np.array_equal(train.sizes[:3], [10**9] * 3) and str(train.files[7]).startswith("data/train-000007")
