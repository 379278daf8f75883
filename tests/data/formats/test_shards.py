"""Data sets of shards: with an index, or by the footers of their files."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image
from helpers.real_data import assert_equal_splits

from rfdetr_hf import CocoEvaluator, audit_data, convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.audit import count_split
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import max_objects
from rfdetr_hf.data.shards import writer
from rfdetr_hf.data.shards.dataset import ShardedDataset
from rfdetr_hf.data.shards.index import INDEX


def test_a_list_of_folders_is_one_data_set(shapes_splits, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        convert_dataset({"train": make_shapes_dataset(10, image_size=48, seed=seed)}, tmp_path / name, "parquet", 1)
    both = load_detection_dataset([str(tmp_path / "a"), str(tmp_path / "b")])["train"]
    assert len(both) == 20 and both.counts.images == 20 and len(both.shards) == 2
    assert both[12]["objects"] == make_shapes_dataset(10, image_size=48, seed=2)[2]["objects"]
    assert len(load_detection_dataset(f"{tmp_path / 'a'},{tmp_path / 'b'}")["train"]) == 20
    # Both have the numbers 0 to 9; in the one data set each image has its own.
    numbers = list(range(20))
    assert both["image_id"] == [row["image_id"] for row in both] == numbers and both[12]["image_id"] == 12
    assert both.select([13, 3])["image_id"] == [13, 3]
    os.remove(tmp_path / "a" / INDEX)
    os.remove(tmp_path / "b" / INDEX)
    assert load_detection_dataset(f"file://{tmp_path}")["train"]["image_id"] == numbers
    with pytest.raises(DetectionDataError, match=r"has .*train-00000-of-00001\.parquet twice"):
        load_detection_dataset([f"file://{tmp_path}/a", f"file://{tmp_path}/a/data/train-00000-of-00001.parquet"])
    convert_dataset({"train": make_shapes_dataset(10, image_size=48)}, tmp_path / "d", "parquet", 1)
    with pytest.raises(DetectionDataError, match=r"has .*train-00000-of-00001\.parquet twice"):
        load_detection_dataset(f"{tmp_path / 'd'},{tmp_path / 'd'}")
    convert_dataset({"train": make_shapes_dataset(10, image_size=48)}, tmp_path / "c", "webdataset", 1)
    with pytest.raises(DetectionDataError, match="differ in format"):
        load_detection_dataset([str(tmp_path / "d"), str(tmp_path / "c")])


def test_footers_do_without_an_index(shapes_splits, tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", 9)
        convert_dataset(shapes_splits, tmp_path / "shards", "parquet", 1)
    os.remove(tmp_path / "shards" / INDEX)
    with caplog.at_level("INFO", logger="rfdetr_hf"):
        splits = load_detection_dataset(f"file://{tmp_path}/shards")
    assert "the footers of 8 files were read with 9 requests in" in caplog.text
    assert_equal_splits(splits, shapes_splits)
    assert splits["train"].counts.boxes == count_split(shapes_splits["train"], "train").num_boxes


def test_footers_of_files_that_are_missing_or_of_two_writings(shapes_splits, tmp_path):
    def written(name, rows, most):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "MAX_ROWS", most)
            convert_dataset({"train": shapes_splits["train"].select(range(rows))}, tmp_path / name, "parquet", 1)
        os.remove(tmp_path / name / INDEX)
        return sorted((tmp_path / name / "data").iterdir())

    first, other, third = written("a", 12, 4), written("b", 10, 4), written("c", 12, 6)
    shutil.copy(other[1], first[1])
    with pytest.raises(DetectionDataError, match="are of different data sets, written one over the other"):
        load_detection_dataset(f"file://{tmp_path}/a")
    first[1].unlink()
    with pytest.raises(DetectionDataError, match=r"train has 2 of 3 files: number 1 is missing; restore them"):
        load_detection_dataset(f"file://{tmp_path}/a")
    assert len(load_detection_dataset([f"file://{first[0]}", f"file://{first[2]}"])["train"]) == 8
    for path in third:
        shutil.copy(path, other[0].parent)
    with pytest.raises(DetectionDataError, match=r"train is there in 2 files and in 3 files: written twice"):
        load_detection_dataset(f"file://{tmp_path}/b")


@pytest.mark.parametrize(("names", "counts", "left_out"), [
    (("train/part0/000", "validation/part0/000"), {"train": 4, "validation": 3}, None),
    (("train-0", "validation-0", "holdout-0"), {"train": 4, "validation": 3}, "holdout-0.parquet"),
    (("train/part0/000", "validation-0", "extra/0"), {"train": 4, "validation": 3}, "extra/0.parquet"),
    (("part0/000", "part1/000"), {"train": 7}, None),
])  # fmt: skip
def test_the_split_of_a_file_is_that_of_its_name_or_a_folder(shapes_splits, tmp_path, caplog, names, counts, left_out):
    for name, rows in zip(names, (range(4), range(4, 7), range(7, 9)), strict=False):
        path = tmp_path / "test" / f"{name}.parquet" if left_out else tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes_splits["train"].select(rows).cast_column("image", Image()).to_parquet(path)
    splits = load_detection_dataset(f"file://{tmp_path / 'test' if left_out else tmp_path}")
    assert {name: len(split) for name, split in splits.items()} == counts
    assert (left_out is None) == ("name no split" not in caplog.text) and (left_out or "") in caplog.text


def test_footers_of_others_give_rows_without_counts(shapes_splits, tmp_path, tiny_model):
    shapes_splits["train"].cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    train = load_detection_dataset(f"file://{tmp_path}")["train"]
    assert isinstance(train, ShardedDataset) and train.counts is None and max_objects(train) is None
    assert train[7]["objects"] == shapes_splits["train"][7]["objects"]
    assert "not counted" in str(count_split(train, "train"))


def test_what_is_no_data_set_of_shards_is_named(shapes_splits, tmp_path):
    with pytest.raises(DetectionDataError, match=r"no Parquet file \(of 0 files there\)"):
        load_detection_dataset(f"file://{tmp_path}/none")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "train.parquet")
    with pytest.raises(DetectionDataError, match=r"train\.parquet: columns .* are missing"):
        load_detection_dataset(f"file://{tmp_path}")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DetectionDataError, match="is no Parquet file, or is cut"):
        load_detection_dataset(f"file://{tmp_path}")
    os.remove(tmp_path / "train.parquet")
    convert_dataset(shapes_splits, tmp_path / "tars", "webdataset", 1)
    os.remove(tmp_path / "tars" / INDEX)
    with pytest.raises(DetectionDataError, match=r"2 tar files without _index\.parquet"):
        load_detection_dataset(f"file://{tmp_path}/tars")
    with pytest.raises(DetectionDataError, match="nosuch://place"):
        load_detection_dataset("nosuch://place")


def test_images_of_several_files_of_others_have_ids_of_their_own(shapes_splits, tmp_path, caplog):
    rows = shapes_splits["train"].select(range(9)).cast_column("image", Image())
    for name, start in (("a", 0), ("b", 100), ("c", 3)):
        numbers = [{"image_id": start + i} for i in range(9)]
        rows.map(lambda _, i, mine=numbers: mine[i], with_indices=True).to_parquet(tmp_path / name / "train.parquet")
    a, b, c = (f"file://{tmp_path}/{name}/train.parquet" for name in "abc")
    assert load_detection_dataset([a, b])["train"]["image_id"] == [*range(9), *range(100, 109)]
    assert "image_id" not in caplog.text
    assert load_detection_dataset([a, c])["train"]["image_id"] == list(range(18))
    assert "2 data sets as one, whose image ids may be the same" in caplog.text
    (tmp_path / "c" / "train.parquet").rename(tmp_path / "a" / "train-more.parquet")
    with pytest.raises(DetectionDataError, match="image id 3 is used by 2 images"):
        audit_data(load_detection_dataset(f"file://{tmp_path}/a"), cache_dir="")
    with pytest.raises(ValueError, match="image_id appears more than once: 3"):
        CocoEvaluator(load_detection_dataset(f"file://{tmp_path}/a")["train"])
