"""Data sets written as shards and as folders, read back by `datasets`, by pyarrow and by tarfile."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, List, Value, load_dataset
from helpers.real_data import REAL, assert_equal_splits, load_real

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.audit import count_split
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import max_objects
from rfdetr_hf.data.shards import writer
from rfdetr_hf.data.shards.counts import Counts, count_rows
from rfdetr_hf.data.shards.index import INDEX, KEY, read_index, write_index


@pytest.fixture(scope="module")
def shapes_splits():
    return {"train": make_shapes_dataset(40, image_size=64, seed=1), "validation": make_shapes_dataset(7, seed=2)}


@pytest.mark.parametrize("name", REAL)
def test_rows_come_back_from_parquet_as_they_were(data_root, tmp_path, name):
    splits = load_real(data_root, name)
    convert_dataset(splits, tmp_path / "shards", "parquet", 1)
    assert_equal_splits(load_detection_dataset(tmp_path / "shards", task=REAL[name].get("task", "detection")), splits)


@pytest.mark.parametrize("name", REAL)
def test_rows_come_back_from_a_folder_as_they_were(data_root, tmp_path, name):
    splits = load_real(data_root, name)
    assert convert_dataset(splits, tmp_path / "folder", "folder", 1) == 0
    again = load_detection_dataset(tmp_path / "folder", task=REAL[name].get("task", "detection"))
    assert_equal_splits(again, splits)


def test_datasets_reads_what_was_written(shapes_splits, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    count = convert_dataset(shapes_splits, tmp_path / "parquet", "parquet", 1)
    loaded = load_dataset(str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"))
    assert count >= 2 and {name: len(split) for name, split in loaded.items()} == {"train": 40, "validation": 7}
    assert loaded["train"].features["objects"] == shapes_splits["train"].features["objects"]
    assert loaded["train"][3]["image"].size == (64, 64)
    convert_dataset(shapes_splits, tmp_path / "tars", "webdataset", 1)
    loaded = load_dataset(str(tmp_path / "tars"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 40, "validation": 7}
    assert loaded["train"][3]["json"]["objects"]["bbox"] == shapes_splits["train"][3]["objects"]["bbox"]


def test_tar_files_hold_picture_and_row_side_by_side(shapes_splits, tmp_path):
    convert_dataset(shapes_splits, tmp_path / "tars", "webdataset", 1)
    rows = {}
    for path in sorted((tmp_path / "tars" / "data").glob("train-*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                key, suffix = member.name.split(".")
                rows.setdefault(f"{path.name} {key}", {})[suffix] = file.extractfile(member).read()
    assert len(rows) == 40
    for ours, theirs in zip(shapes_splits["train"], rows.values(), strict=True):
        assert set(theirs) == {"json", "png"}
        assert theirs["png"] == ours["image"]["bytes"]
        assert json.loads(theirs["json"])["objects"] == ours["objects"]


def test_a_shard_is_closed_at_its_size_and_at_its_rows(shapes_splits, tmp_path, monkeypatch):
    whole = sum(len(row["image"]["bytes"]) for row in shapes_splits["train"])
    monkeypatch.setattr(writer, "MAX_ROWS", 9)
    assert whole < 1 << 20
    assert convert_dataset({"train": shapes_splits["train"]}, tmp_path / "rows", "parquet", 1) == 5
    index = read_index(str(tmp_path / "rows" / INDEX), "index")
    assert index.splits["train"].rows.tolist() == [9, 9, 9, 9, 4]
    sizes = [os.path.getsize(tmp_path / "rows" / str(file)) for file in index.splits["train"].files]
    assert index.splits["train"].sizes.tolist() == sizes


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


@pytest.mark.parametrize("format", ["parquet", "webdataset", "folder"])
def test_the_target_appears_complete_or_not_at_all(shapes_splits, tmp_path, format, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="taken exists"):
        convert_dataset(shapes_splits, tmp_path / "taken", format, 1)
    broken = shapes_splits["train"].map(lambda row: row)
    broken = Dataset.from_list(
        [{**row, "image": {"bytes": None, "path": str(tmp_path / "gone.png")}} for row in broken.select([0])],
        features=shapes_splits["train"].features,
    )
    with pytest.raises(DetectionDataError, match=r"gone\.png: the image cannot be read"):
        convert_dataset({**shapes_splits, "test": broken}, tmp_path / "new", format, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    convert_dataset(shapes_splits, tmp_path / "link", format, 1)
    assert any((tmp_path / "empty").iterdir()) and (tmp_path / "link").is_symlink()


def test_names_that_lead_elsewhere_do_not_leave_the_folder(shapes_splits, tmp_path):
    rows = [dict(row) for row in shapes_splits["train"].select(range(4))]
    for row, name in zip(rows, ["../out.png", "/etc/out.png", "a/b.png", "A/B.png"], strict=True):
        row["file_name"] = name
    data = Dataset.from_list(rows, features=shapes_splits["train"].features)
    convert_dataset({"train": data}, tmp_path / "folder", "folder", 1)
    written = sorted(p.relative_to(tmp_path / "folder").as_posix() for p in tmp_path.rglob("*.png"))
    ids = [row["image_id"] for row in rows]
    assert written == sorted(["train/a/b.png", *(f"train/{ids[i]:012d}.png" for i in (0, 1, 3))])
    assert len(load_detection_dataset(tmp_path / "folder")["train"]) == 4


@pytest.mark.parametrize("damage", ["cut", "another file", "rows", "version", "format"])
def test_a_damaged_index_is_named(shapes_splits, tmp_path, damage):
    convert_dataset(shapes_splits, tmp_path / "shards", "parquet", 1)
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
    train = read_index(str(tmp_path / INDEX), "index").splits["train"]
    assert len(train) == 100_000 and train.rows.sum() == train.counts.images == 10**9
    assert train.counts.objects == [100_000, 200_000, 300_000]
    assert np.array_equal(train.sizes[:3], [10**9] * 3) and str(train.files[7]).startswith("data/train-000007")


def partly_labelled(shapes_splits):
    """Four training images, of which two do not label class 0, and three others that label all."""
    train = shapes_splits["train"].select(range(4))
    own = [[1, 2], None, [1, 2], [0, 1, 2]]
    federated = train.add_column("labelled_classes", own, feature=List(Value("int32")))
    return federated, shapes_splits["validation"].select(range(3)), own


@pytest.mark.parametrize("first", ["train", "validation"])
@pytest.mark.parametrize("format", ["parquet", "webdataset", "folder"])
def test_what_one_split_says_of_its_labels_is_kept(shapes_splits, tmp_path, format, first):
    federated, other, own = partly_labelled(shapes_splits)
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
def test_what_files_do_not_keep_is_refused(shapes_splits, tmp_path, format):
    train = shapes_splits["train"].select(range(3))
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


def test_no_picture_of_a_folder_takes_the_place_of_another(shapes_splits, tmp_path):
    rows = shapes_splits["train"].select(range(7))
    names = ["000000000001.png", "../x.png", "000000000001_1.PNG", "a.png", "a.png/b.png", "A.PNG", "ü" * 130 + ".png"]
    ids = [7, 1, 2, 3, 4, 5, 6]
    renamed = rows.remove_columns(["file_name", "image_id"]).add_column("file_name", names).add_column("image_id", ids)
    convert_dataset({"train": renamed}, tmp_path / "folder", "folder", 1)
    again = load_detection_dataset(tmp_path / "folder")["train"]
    pictures = {row["image_id"]: Path(row["image"]["path"]).read_bytes() for row in again}
    assert pictures == {each: row["image"]["bytes"] for each, row in zip(ids, rows, strict=True)}
