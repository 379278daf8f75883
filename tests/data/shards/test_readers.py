"""Single shards on a local disk, read row by row."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.shards import FORMATS

from rfdetr_hf import convert_dataset, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.shards import writer


def test_no_more_files_are_open_than_a_window_needs(shards_folder):
    train = load_detection_dataset(shards_folder, shard_window=2)["train"]
    for index in np.random.default_rng(0).integers(60, size=100):
        train[int(index)]
        assert len(train._open) <= 3


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
