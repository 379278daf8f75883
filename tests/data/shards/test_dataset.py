"""Shards as a data set: rows by number, columns, selections, and what a training asks."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from datasets import Image
from helpers.real_data import REAL, assert_equal_splits, load_real
from helpers.runs import quick_arguments
from helpers.shards import FORMATS

from rfdetr_hf import (
    RFDETRTrainer,
    audit_data,
    audit_dataset,
    class_names,
    convert_dataset,
    load_detection_dataset,
    write_audit_page,
)
from rfdetr_hf.data.audit import count_objects, count_split
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_eval_dataloader, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.schema import max_objects
from rfdetr_hf.data.shards.dataset import ShardedDataset


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", REAL)
def test_rows_are_those_that_were_converted(data_root, tmp_path, name, format):
    splits = load_real(data_root, name)
    convert_dataset(splits, tmp_path / "shards", format, 1)
    loaded = load_detection_dataset(tmp_path / "shards", task=REAL[name].get("task", "detection"))
    assert all(isinstance(split, ShardedDataset) for split in loaded.values())
    assert_equal_splits(loaded, splits)


def test_rows_columns_and_batches_are_those_of_a_data_set(sharded_train, shapes_splits):
    theirs = shapes_splits["train"]
    assert len(sharded_train) == sharded_train.num_rows == 60 and len(sharded_train.shards) == 7
    assert sharded_train.column_names == theirs.column_names and sharded_train.features == theirs.features
    for index in (0, 8, 9, 59, -1, -60, np.int64(30)):
        assert sharded_train[index]["objects"] == theirs[int(index)]["objects"]
    assert sharded_train["image_id"] == list(theirs["image_id"])
    assert sharded_train[5:20:7]["width"] == theirs[5:20:7]["width"]
    assert sharded_train[[50, 3, 3]]["image_id"] == theirs[[50, 3, 3]]["image_id"]
    assert [row["image_id"] for row in sharded_train] == list(theirs["image_id"])
    few = sharded_train.select_columns(["image_id", "objects"])
    assert few.column_names == list(few[7]) == ["image_id", "objects"]
    table = few.with_format("arrow")[:]
    assert isinstance(table, pa.Table) and table.equals(theirs.select_columns(few.column_names).with_format("arrow")[:])
    batches = list(few.with_format("arrow").iter(4))
    assert max(map(len, batches)) == 4 and pa.concat_tables(batches).equals(table)
    chosen = sharded_train.select([40, 2, 13]).select([2, 0])
    assert [row["image_id"] for row in chosen] == [theirs[13]["image_id"], theirs[40]["image_id"]]
    assert len(sharded_train.select(range(0))) == 0 and sharded_train.select(range(0))["image_id"] == []
    for wrong in (60, -61):
        with pytest.raises(IndexError, match="is not among 60"):
            sharded_train[wrong]
    with pytest.raises(IndexError):
        sharded_train.select([60])
    with pytest.raises(ValueError, match="columns"):
        sharded_train.select_columns(["picture"])


def test_a_copy_for_another_process_reads_the_same(sharded_train):
    before = sharded_train[33]
    again = pickle.loads(pickle.dumps(sharded_train))
    assert again[33] == before and not pickle.loads(pickle.dumps(sharded_train))._open
    pid = os.fork()
    if not pid:
        os._exit(0 if sharded_train[33] == before and sharded_train[0] != before else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_needs_a_scan_elsewhere_reads_the_index(sharded_train, shapes_splits):
    theirs = count_split(shapes_splits["train"], "train")
    for ours in (count_split(sharded_train, "train"), audit_dataset(sharded_train, split="train")):
        assert ours.boxes_per_class == theirs.boxes_per_class and ours.images_per_class == theirs.images_per_class
        assert (ours.num_boxes, ours.small, ours.medium, ours.large, ours.max_boxes) == (
            theirs.num_boxes, theirs.small, theirs.medium, theirs.large, theirs.max_boxes
        )  # fmt: skip
    assert "counted by the index" in str(count_split(sharded_train, "train"))
    assert max_objects(sharded_train) == max_objects(shapes_splits["train"])
    assert count_objects(sharded_train).per_class.tolist() == count_objects(shapes_splits["train"]).per_class.tolist()
    assert not sharded_train._open


def loader_keys(loader, epoch, start=0):
    loader.batch_sampler.set_epoch(epoch, start)
    return [(batch["labels"].fields["image_id"].tolist(), batch["pixel_values"]) for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2, 4])
def test_batches_do_not_depend_on_workers_and_resume_in_mid_epoch(shards_folder, num_workers):
    data = load_detection_dataset(shards_folder, shard_window=2)["train"]
    transform = build_train_transform(32, [32], multi_scale="off")

    def make(workers):
        return build_train_dataloader(data, transform, LoaderOptions(batch_size=4, seed=5, num_workers=workers))

    expected, found = loader_keys(make(0), 1), loader_keys(make(num_workers), 1)
    assert sorted(i for ids, _ in expected for i in ids) == sorted(data["image_id"])
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert all((a == b).all() for (_, a), (_, b) in zip(found, expected, strict=True))
    resumed = loader_keys(make(num_workers), 1, start=9)
    assert all((a == b).all() for (_, a), (_, b) in zip(resumed, expected[9:], strict=True))


def test_any_number_of_processes_sees_each_row_once(shards_folder):
    data = load_detection_dataset(shards_folder, shard_window=2)["train"]
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


def test_evaluation_reads_every_row_once(shards_folder, shapes_splits):
    data = load_detection_dataset(shards_folder)["validation"]
    transform = build_train_transform(32, [32], multi_scale="off")
    found = []
    for rank in range(2):
        options = LoaderOptions(batch_size=2, num_workers=1, rank=rank, world_size=2)
        for batch in build_eval_dataloader(data, transform, options):
            found += batch["labels"].fields["image_id"].tolist()
    assert sorted(found) == sorted(shapes_splits["validation"]["image_id"])


def test_a_share_of_the_shards_is_held_out(shards_folder):
    splits = load_detection_dataset(shards_folder, validation_split=0.3)
    again = load_detection_dataset(shards_folder, validation_split=0.3)
    assert [len(split.shards) for split in splits.values()] == [5, 2]
    assert sum(map(len, splits.values())) == 60
    ids = [set(split["image_id"]) for split in splits.values()]
    assert not ids[0] & ids[1]
    assert [split["image_id"] for split in splits.values()] == [split["image_id"] for split in again.values()]


def test_masks_and_keypoints_are_left_out_where_they_are_not_asked_for(data_root, tmp_path):
    convert_dataset(load_real(data_root, "coco_person-masks"), tmp_path / "masks", "parquet", 1)
    plain = load_detection_dataset(tmp_path / "masks")["train"]
    assert sorted(plain[0]["objects"]) == ["area", "bbox", "category", "id", "iscrowd"]
    with pytest.raises(DetectionDataError, match=r"needs the field objects\.keypoints.*--task keypoints"):
        load_detection_dataset(tmp_path / "masks", task="keypoints")
    with pytest.raises(TypeError, match="bbox_format"):
        load_detection_dataset(tmp_path / "masks", bbox_format="xyxy")


# ------------------------------------------------------------------------------------------------------ footers


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


# ------------------------------------------------------------------------------------------------------- trainer


def test_a_run_on_shards_trains_evaluates_and_goes_on_with_equal_bits(shards_folder, tmp_path, tiny_model, caplog):
    splits = load_detection_dataset(shards_folder, shard_window=2)
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
    other = load_detection_dataset(shards_folder, shard_window=3)
    again = RFDETRTrainer(
        tiny_model(), quick_arguments(tmp_path / "cut", **options), other["train"], other["validation"]
    )
    with pytest.raises(ValueError, match="shard_window"):
        again.train(resume_from_checkpoint=True)
