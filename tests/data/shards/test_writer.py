"""Data sets written as shards and as folders, read back by `datasets`, by pyarrow and by tarfile."""

import json
import os
import tarfile

import pytest
from datasets import Dataset, List, Value, load_dataset
from helpers.real_data import REAL, assert_equal_splits, load_real

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.shards import writer
from rfdetr_hf.data.shards.index import INDEX, read_index


@pytest.mark.parametrize("name", REAL)
def test_rows_come_back_from_parquet_as_they_were(data_root, tmp_path, name):
    splits = load_real(data_root, name)
    convert_dataset(splits, tmp_path / "shards", "parquet", 1)
    assert_equal_splits(load_detection_dataset(tmp_path / "shards", task=REAL[name].get("task", "detection")), splits)


def test_datasets_reads_what_was_written(written_splits, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    count = convert_dataset(written_splits, tmp_path / "parquet", "parquet", 1)
    loaded = load_dataset(str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"))
    assert count >= 2 and {name: len(split) for name, split in loaded.items()} == {"train": 40, "validation": 7}
    assert loaded["train"].features["objects"] == written_splits["train"].features["objects"]
    assert loaded["train"][3]["image"].size == (64, 64)
    convert_dataset(written_splits, tmp_path / "tars", "webdataset", 1)
    loaded = load_dataset(str(tmp_path / "tars"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 40, "validation": 7}
    assert loaded["train"][3]["json"]["objects"]["bbox"] == written_splits["train"][3]["objects"]["bbox"]


def test_tar_files_hold_picture_and_row_side_by_side(written_splits, tmp_path):
    convert_dataset(written_splits, tmp_path / "tars", "webdataset", 1)
    rows = {}
    for path in sorted((tmp_path / "tars" / "data").glob("train-*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                key, suffix = member.name.split(".")
                rows.setdefault(f"{path.name} {key}", {})[suffix] = file.extractfile(member).read()
    assert len(rows) == 40
    for ours, theirs in zip(written_splits["train"], rows.values(), strict=True):
        assert set(theirs) == {"json", "png"}
        assert theirs["png"] == ours["image"]["bytes"]
        assert json.loads(theirs["json"])["objects"] == ours["objects"]


def test_a_shard_is_closed_at_its_size_and_at_its_rows(written_splits, tmp_path, monkeypatch):
    whole = sum(len(row["image"]["bytes"]) for row in written_splits["train"])
    monkeypatch.setattr(writer, "MAX_ROWS", 9)
    assert whole < 1 << 20
    assert convert_dataset({"train": written_splits["train"]}, tmp_path / "rows", "parquet", 1) == 5
    index = read_index(str(tmp_path / "rows" / INDEX), "index")
    assert index.splits["train"].rows.tolist() == [9, 9, 9, 9, 4]
    sizes = [os.path.getsize(tmp_path / "rows" / str(file)) for file in index.splits["train"].files]
    assert index.splits["train"].sizes.tolist() == sizes


@pytest.mark.parametrize("format", ["parquet", "webdataset", "folder"])
def test_the_target_appears_complete_or_not_at_all(written_splits, tmp_path, format, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="taken exists"):
        convert_dataset(written_splits, tmp_path / "taken", format, 1)
    broken = written_splits["train"].map(lambda row: row)
    broken = Dataset.from_list(
        [{**row, "image": {"bytes": None, "path": str(tmp_path / "gone.png")}} for row in broken.select([0])],
        features=written_splits["train"].features,
    )
    with pytest.raises(DetectionDataError, match=r"gone\.png: the image cannot be read"):
        convert_dataset({**written_splits, "test": broken}, tmp_path / "new", format, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    convert_dataset(written_splits, tmp_path / "link", format, 1)
    assert any((tmp_path / "empty").iterdir()) and (tmp_path / "link").is_symlink()


def partly_labelled(written_splits):
    """Four training images, of which two do not label class 0, and three others that label all."""
    train = written_splits["train"].select(range(4))
    own = [[1, 2], None, [1, 2], [0, 1, 2]]
    federated = train.add_column("labelled_classes", own, feature=List(Value("int32")))
    return federated, written_splits["validation"].select(range(3)), own


@pytest.mark.parametrize("first", ["train", "validation"])
@pytest.mark.parametrize("format", ["parquet", "webdataset", "folder"])
def test_what_one_split_says_of_its_labels_is_kept(written_splits, tmp_path, format, first):
    federated, other, own = partly_labelled(written_splits)
    second = "validation" if first == "train" else "train"
    convert_dataset({first: federated, second: other}, tmp_path / "out", format, 1)
    again = load_detection_dataset(tmp_path / "out")
    found = [row["labelled_classes"] for row in again[first]]
    if format == "folder":  # which says it as LVIS does: classes that are not there, and those that are
        assert [each and set(each) for each in found] == [each and set(each) for each in own]
    else:
        assert found == own
    assert [row.get("labelled_classes") for row in again[second]] == [None] * 3
    assert [row["objects"]["bbox"] for row in again[second]] == [row["objects"]["bbox"] for row in other]


@pytest.mark.parametrize("format", ["parquet", "folder"])
def test_what_files_do_not_keep_is_refused(written_splits, tmp_path, format):
    train = written_splits["train"].select(range(3))
    with pytest.raises(DetectionDataError, match="sample_weight, from share or sampling"):
        convert_dataset({"train": train.add_column("sample_weight", [1.0, 1.0, 1.0])}, tmp_path / "out", format, 1)
    other = make_shapes_dataset(2, classes=("circle", "square"))
    with pytest.raises(DetectionDataError, match="splits train and validation differ in column objects"):
        convert_dataset({"train": train, "validation": other}, tmp_path / "out", format, 1)
    deep = train.add_column("value_range", [[0.0, 9.0]] * 3, feature=List(Value("float64"), length=2))
    wide = train.add_column("value_range", [[0.0, 8.0]] * 3, feature=List(Value("float64"), length=2))
    with pytest.raises(DetectionDataError, match="different ranges of values"):
        convert_dataset({"train": deep, "validation": wide}, tmp_path / "out", format, 1)
    assert not list(tmp_path.iterdir())
    convert_dataset({"validation": train, "train": deep}, tmp_path / "shards", "parquet", 1)
    assert load_detection_dataset(tmp_path / "shards")["validation"][0]["value_range"] == [0.0, 9.0]
