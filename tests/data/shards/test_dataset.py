"""Shards as a data set: rows by number, columns, selections, and what a training asks."""

import os
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict, Image
from helpers.real_data import REAL, assert_equal_splits, load_real
from helpers.runs import quick_arguments

from rfdetr_hf import (
    RFDETRTrainer,
    audit_data,
    audit_dataset,
    category_ids,
    class_names,
    convert_dataset,
    load_detection_dataset,
    make_shapes_dataset,
)
from rfdetr_hf.data.audit import count_objects, count_split
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.fingerprint import data_hash
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_eval_dataloader, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import max_objects
from rfdetr_hf.data.shards import writer
from rfdetr_hf.data.shards.dataset import ShardedDataset
from rfdetr_hf.data.shards.index import INDEX
from rfdetr_hf.evaluation.audit_page import write_audit_page

FORMATS = ["parquet", "webdataset"]


@pytest.fixture(scope="module")
def shapes_splits():
    return {"train": make_shapes_dataset(60, image_size=48, seed=1), "validation": make_shapes_dataset(9, seed=2)}


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, shapes_splits, tmp_path_factory):
    """Seven shards of nine rows, the last with six, and one of validation."""
    path = tmp_path_factory.mktemp("shards") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", 9)
        convert_dataset(shapes_splits, path, request.param, 1)
    return path


@pytest.fixture
def train(folder):
    return load_detection_dataset(folder)["train"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", REAL)
def test_rows_are_those_that_were_converted(data_root, tmp_path, name, format):
    splits = load_real(data_root, name)
    convert_dataset(splits, tmp_path / "shards", format, 1)
    loaded = load_detection_dataset(tmp_path / "shards", task=REAL[name].get("task", "detection"))
    assert all(isinstance(split, ShardedDataset) for split in loaded.values())
    assert_equal_splits(loaded, splits)


def test_rows_columns_and_batches_are_those_of_a_data_set(train, shapes_splits):
    theirs = shapes_splits["train"]
    assert len(train) == train.num_rows == 60 and len(train.shards) == 7
    assert train.column_names == theirs.column_names and train.features == theirs.features
    for index in (0, 8, 9, 59, -1, -60, np.int64(30)):
        assert train[index]["objects"] == theirs[int(index)]["objects"]
    assert train["image_id"] == list(theirs["image_id"])
    assert train[5:20:7]["width"] == theirs[5:20:7]["width"]
    assert train[[50, 3, 3]]["image_id"] == theirs[[50, 3, 3]]["image_id"]
    assert [row["image_id"] for row in train] == list(theirs["image_id"])
    few = train.select_columns(["image_id", "objects"])
    assert few.column_names == list(few[7]) == ["image_id", "objects"]
    table = few.with_format("arrow")[:]
    assert isinstance(table, pa.Table) and table.equals(theirs.select_columns(few.column_names).with_format("arrow")[:])
    batches = list(few.with_format("arrow").iter(4))
    assert max(map(len, batches)) == 4 and pa.concat_tables(batches).equals(table)
    chosen = train.select([40, 2, 13]).select([2, 0])
    assert [row["image_id"] for row in chosen] == [theirs[13]["image_id"], theirs[40]["image_id"]]
    assert len(train.select(range(0))) == 0 and train.select(range(0))["image_id"] == []
    for wrong in (60, -61):
        with pytest.raises(IndexError, match="is not among 60"):
            train[wrong]
    with pytest.raises(IndexError):
        train.select([60])
    with pytest.raises(ValueError, match="columns"):
        train.select_columns(["picture"])


def test_no_more_files_are_open_than_a_window_needs(folder):
    train = load_detection_dataset(folder, shard_window=2)["train"]
    for index in np.random.default_rng(0).integers(60, size=100):
        train[int(index)]
        assert len(train._open) <= 3


def test_a_copy_for_another_process_reads_the_same(train):
    before = train[33]
    again = pickle.loads(pickle.dumps(train))
    assert again[33] == before and not pickle.loads(pickle.dumps(train))._open
    pid = os.fork()
    if not pid:
        os._exit(0 if train[33] == before and train[0] != before else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_needs_a_scan_elsewhere_reads_the_index(train, shapes_splits):
    theirs = count_split(shapes_splits["train"], "train")
    for ours in (count_split(train, "train"), audit_dataset(train, split="train")):
        assert ours.boxes_per_class == theirs.boxes_per_class and ours.images_per_class == theirs.images_per_class
        assert (ours.num_boxes, ours.small, ours.medium, ours.large, ours.max_boxes) == (
            theirs.num_boxes, theirs.small, theirs.medium, theirs.large, theirs.max_boxes
        )  # fmt: skip
    assert "counted by the index" in str(count_split(train, "train"))
    assert max_objects(train) == max_objects(shapes_splits["train"])
    assert count_objects(train).per_class.tolist() == count_objects(shapes_splits["train"]).per_class.tolist()
    assert not train._open


def test_the_checksum_is_of_rows_and_order(folder, train, tmp_path):
    assert data_hash({"train": train}) == data_hash({"train": load_detection_dataset(folder)["train"]})
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load_detection_dataset(moved)["train"].checksum == train.checksum
    assert load_detection_dataset(folder, shard_window=3)["train"].checksum != train.checksum
    with pytest.raises(DetectionDataError, match="the data is not that of data_hash"):
        load_detection_dataset(folder, data_hash={"kind": "contents", "train": "0" * 64})


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


def loader_keys(loader, epoch, start=0):
    loader.batch_sampler.set_epoch(epoch, start)
    return [(batch["labels"].fields["image_id"].tolist(), batch["pixel_values"]) for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2, 4])
def test_batches_do_not_depend_on_workers_and_resume_in_mid_epoch(folder, num_workers):
    data = load_detection_dataset(folder, shard_window=2)["train"]
    transform = build_train_transform(32, [32], multi_scale="off")

    def make(workers):
        return build_train_dataloader(data, transform, LoaderOptions(batch_size=4, seed=5, num_workers=workers))

    expected, found = loader_keys(make(0), 1), loader_keys(make(num_workers), 1)
    assert sorted(i for ids, _ in expected for i in ids) == sorted(data["image_id"])
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert all((a == b).all() for (_, a), (_, b) in zip(found, expected, strict=True))
    resumed = loader_keys(make(num_workers), 1, start=9)
    assert all((a == b).all() for (_, a), (_, b) in zip(resumed, expected[9:], strict=True))


def test_any_number_of_processes_sees_each_row_once(folder):
    data = load_detection_dataset(folder, shard_window=2)["train"]
    transform = build_train_transform(32, [32], multi_scale="off")

    def ids(world_size, start, end):
        """Of the optimizer steps start to end, of four images each."""
        found = []
        for rank in range(world_size):
            options = LoaderOptions(batch_size=4 // world_size, seed=5, num_workers=0, rank=rank, world_size=world_size)
            loader = build_train_dataloader(data, transform, options)
            loader.batch_sampler.set_epoch(0, start)
            batches = [batch["labels"].fields["image_id"].tolist() for batch in loader]
            found += [image for batch in batches[: end - start] for image in batch]
        return found

    seen = ids(1, 0, 3) + ids(2, 3, 7) + ids(4, 7, 11) + ids(1, 11, 15)
    assert sorted(seen) == sorted(data["image_id"])


def test_evaluation_reads_every_row_once(folder, shapes_splits):
    data = load_detection_dataset(folder)["validation"]
    transform = build_train_transform(32, [32], multi_scale="off")
    found = []
    for rank in range(2):
        options = LoaderOptions(batch_size=2, num_workers=1, rank=rank, world_size=2)
        for batch in build_eval_dataloader(data, transform, options):
            found += batch["labels"].fields["image_id"].tolist()
    assert sorted(found) == sorted(shapes_splits["validation"]["image_id"])


def test_a_share_of_the_shards_is_held_out(folder):
    splits = load_detection_dataset(folder, validation_split=0.3)
    again = load_detection_dataset(folder, validation_split=0.3)
    assert [len(split.shards) for split in splits.values()] == [5, 2]
    assert sum(map(len, splits.values())) == 60
    ids = [set(split["image_id"]) for split in splits.values()]
    assert not ids[0] & ids[1]
    assert [split["image_id"] for split in splits.values()] == [split["image_id"] for split in again.values()]


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


def test_masks_and_keypoints_are_left_out_where_they_are_not_asked_for(data_root, tmp_path):
    convert_dataset(load_real(data_root, "coco_person-masks"), tmp_path / "masks", "parquet", 1)
    plain = load_detection_dataset(tmp_path / "masks")["train"]
    assert sorted(plain[0]["objects"]) == ["area", "bbox", "category", "id", "iscrowd"]
    with pytest.raises(DetectionDataError, match=r"needs the field objects\.keypoints.*--task keypoints"):
        load_detection_dataset(tmp_path / "masks", task="keypoints")
    with pytest.raises(TypeError, match="bbox_format"):
        load_detection_dataset(tmp_path / "masks", bbox_format="xyxy")


@pytest.mark.parametrize("names", [["triangle", "owl", "square", "circle"], ["square", "triangle", "circle"]])
def test_shards_take_the_labels_of_a_model(shapes_splits, folder, names):
    """Rows, ids and counts are those of the same data set that is no shards."""
    expected = load_detection_dataset(DatasetDict(shapes_splits), class_names=names)
    splits = load_detection_dataset(folder, class_names=names)
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


def test_classes_with_objects_cannot_be_left_out_of_shards(folder, tmp_path):
    with pytest.raises(DetectionDataError, match=r"split train has objects of \['square', 'triangle'\]"):
        load_detection_dataset(folder, class_names=["circle"])
    if folder.name != "parquet":
        return
    table = pq.read_table(folder / "data" / "train-00000-of-00007.parquet")
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


# ------------------------------------------------------------------------------------------------------ footers


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


def test_the_audit_does_not_compare_what_nobody_has_counted(shapes_splits, tmp_path):
    shapes_splits["train"].select(range(6)).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    shards = load_detection_dataset(f"file://{tmp_path}")["train"]
    audit = audit_data({"train": shards, "validation": shapes_splits["validation"]}, cache_dir="")
    table = {line.split()[0]: line.split()[1:] for line in str(audit).splitlines() if line.strip()}
    assert table["train"][:5] == ["6", "?", "?", "?", "?"] and table["validation"][0] == "9"
    assert table["circle"][0] == "?" and table["circle"][1].isdigit()
    assert not [each for each in audit.findings if each.kind in ("classes not trained", "classes not scored")]
    assert audit.to_dict()["splits"]["train"]["counted"] is False
    write_audit_page(audit, {"train": shards, "validation": shapes_splits["validation"]}, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count(">?<") == 7


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


DAMAGE = ["removed", "cut", "emptied", "flipped", "another shard", "text"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named(shapes_splits, tmp_path, format, damage):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", 25)
        convert_dataset({"train": shapes_splits["train"]}, tmp_path / "shards", format, 1)
    first, _, last = sorted((tmp_path / "shards" / "data").iterdir())
    content = first.read_bytes()
    if damage == "removed":
        first.unlink()
    elif damage == "another shard":
        first.write_bytes(last.read_bytes())
    elif damage == "flipped" and format == "parquet":
        place = content.index(b"IDAT") + 40  # in a picture
        first.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
    elif damage == "flipped":
        place = content.index(b'"objects"') + 3
        first.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    else:
        first.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "text": b"no shard" * 999}[damage])
    train = load_detection_dataset(tmp_path / "shards")["train"]
    with pytest.raises(DetectionDataError, match=rf"{first.name}.*(cannot be read|missing|rows|bytes)"):
        for index in range(25):
            train[index]
    assert train[30]["objects"] == shapes_splits["train"][30]["objects"]


# ------------------------------------------------------------------------------------------------------- trainer


def test_a_run_on_shards_trains_evaluates_and_goes_on_with_equal_bits(folder, tmp_path, tiny_model, caplog):
    splits = load_detection_dataset(folder, shard_window=2)
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 6,
               "load_best_model_at_end": False}  # fmt: skip

    def trainer(name, **more):
        model = tiny_model(id2label=dict(enumerate(class_names(splits["train"]))))
        arguments = quick_arguments(tmp_path / name, **options | more)
        return RFDETRTrainer(model, arguments, splits["train"], splits["validation"])

    whole = trainer("whole", plots=True, audit="full")
    whole.train()
    assert any("eval_map" in row for row in whole.state.log_history)
    assert "is not written" not in caplog.text
    cut = trainer("cut")
    cut.args.max_steps = 3
    cut.train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert (value == resumed.model.state_dict()[name]).all(), name
    other = load_detection_dataset(folder, shard_window=3)
    again = RFDETRTrainer(
        tiny_model(), quick_arguments(tmp_path / "cut", **options), other["train"], other["validation"]
    )
    with pytest.raises(ValueError, match="shard_window"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_read_side_by_side_and_a_shard_without_its_name(shapes_splits, tmp_path, format, monkeypatch):
    monkeypatch.setattr(writer, "MAX_ROWS", 9)
    monkeypatch.setattr(writer, "_GROUP_BYTES", 2000)
    convert_dataset(shapes_splits, tmp_path / "shards", format, 1)
    data = load_detection_dataset(tmp_path / "shards", shard_window=1)["train"]
    expected = [row["objects"] for row in shapes_splits["train"]]
    order = np.random.default_rng(0).integers(60, size=200).tolist()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda index: data[index]["objects"], order))
    finally:
        sys.setswitchinterval(interval)
    assert found == [expected[index] for index in order]
    if os.name != "nt":
        data[0]
        os.remove(tmp_path / "shards" / str(data.shards.files[0].as_py()).rpartition("shards/")[2])
        assert data[1]["objects"] == expected[1]
