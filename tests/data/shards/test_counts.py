"""What is in some rows, as numbers that add up."""

import json

from datasets import Dataset
from helpers.real_data import load_real

from rfdetr_hf import make_shapes_dataset
from rfdetr_hf.data.shards.counts import Counts, count_rows


def test_counts_add_up_over_rows(data_root):
    train = load_real(data_root, "coco128-masks")["train"]
    table = train.with_format("arrow")[:]
    parts = [count_rows(table.slice(start, 30), train.features) for start in range(0, len(train), 30)]
    total = sum(parts, Counts())
    assert total == count_rows(table, train.features)
    assert Counts.from_dict(json.loads(json.dumps(total.to_dict()))) == total


def test_sides_fall_into_half_octaves():
    row = make_shapes_dataset(1, image_size=64, seed=0)[0]
    features = make_shapes_dataset(1, image_size=64, seed=0).features
    boxes = [[0, 0, 16, 16], [0, 0, 8, 32], [0, 0, 0.5, 0.5], [0, 0, 64, 64]]
    row["objects"] = {
        "id": [0, 1, 2, 3], "bbox": boxes, "category": [0, 0, 0, 1], "area": [256, 256, 0.25, 4096],
        "iscrowd": [False, False, False, True],
    }  # fmt: skip
    counts = count_rows(Dataset.from_list([row], features=features).with_format("arrow")[:], features)
    assert counts.sides[8] == 2 and counts.sides[0] == 1 and sum(counts.sides) == 3  # 16 = 2^(8/2)
    assert counts.side_shares[2 * (12 - 2)] == 2 and counts.side_shares[2 * (12 - 7)] == 1  # a quarter, 1/128
    assert counts.objects_per_image == {3: 1} and counts.crowds == 1
