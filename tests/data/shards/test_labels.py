"""Rows of shards with the labels of another class table."""

import pickle

import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict

from rfdetr_hf import category_ids, class_names, convert_dataset, load_detection_dataset
from rfdetr_hf.data.audit import count_split
from rfdetr_hf.data.errors import DetectionDataError


@pytest.mark.parametrize("names", [["triangle", "owl", "square", "circle"], ["square", "triangle", "circle"]])
def test_shards_take_the_labels_of_a_model(shapes_splits, shards_folder, names):
    """Rows, ids and counts are those of the same data set that is no shards."""
    expected = load_detection_dataset(DatasetDict(shapes_splits), class_names=names)
    splits = load_detection_dataset(shards_folder, class_names=names)
    for name, split in splits.items():
        assert class_names(split) == names and category_ids(split) == category_ids(expected[name])
        assert [row["objects"] for row in split] == [row["objects"] for row in expected[name]]
        assert split[3]["objects"] == expected[name][3]["objects"]
        assert split.select_columns(["objects"]).select([2, 5])[1]["objects"] == expected[name][5]["objects"]
        ours, theirs = count_split(split, name), count_split(expected[name], name)
        assert ours.boxes_per_class == theirs.boxes_per_class and ours.images_per_class == theirs.images_per_class
    assert pickle.loads(pickle.dumps(splits["train"]))[3]["objects"] == expected["train"][3]["objects"]
    part = splits["train"].select_shards([1], "part")
    assert part[0]["objects"] == expected["train"][9]["objects"]


def test_classes_with_objects_cannot_be_left_out_of_shards(shards_folder, tmp_path):
    with pytest.raises(DetectionDataError, match=r"split train has objects of \['square', 'triangle'\]"):
        load_detection_dataset(shards_folder, class_names=["circle"])
    if shards_folder.name != "parquet":
        return
    table = pq.read_table(shards_folder / "data" / "train-00000-of-00007.parquet")
    counted = table.schema.metadata
    pq.write_table(table.replace_schema_metadata({b"huggingface": counted[b"huggingface"]}), tmp_path / "train.parquet")
    nobody_counted = load_detection_dataset(f"file://{tmp_path}/train.parquet", class_names=["circle"])["train"]
    with pytest.raises(DetectionDataError, match=r"train.parquet: objects of .*'square'.*not in class_names"):
        list(nobody_counted)


def test_labelled_classes_of_shards_take_other_labels(shapes_splits, tmp_path):
    train = shapes_splits["train"].select(range(6))
    own = [[0], [1, 2], None, [0, 2], [], [1]]
    convert_dataset({"train": train.add_column("labelled_classes", own)}, tmp_path / "shards", "parquet", 1)
    moved = load_detection_dataset(tmp_path / "shards", class_names=["triangle", "owl", "square", "circle"])["train"]
    assert moved["labelled_classes"] == [[3], [0, 2], None, [0, 3], [], [2]]
