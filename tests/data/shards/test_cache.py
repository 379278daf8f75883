"""Shards in a store: fetched from an S3 server on this machine, through a relay that fails."""

import multiprocessing
import os
import time

import fsspec
import numpy as np
import pytest
from helpers.relay import Relay
from helpers.store import ACCESS, s3_server

from rfdetr_hf import convert_dataset, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.shards import cache as cache_module
from rfdetr_hf.data.shards import writer
from rfdetr_hf.data.shards.cache import ReadAhead, ShardCache
from rfdetr_hf.data.shards.index import INDEX

SHARDS, ROWS = 50, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fifty shards of four rows."""
    path = tmp_path_factory.mktemp("store") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", ROWS)
        convert_dataset({"train": make_shapes_dataset(SHARDS * ROWS, image_size=48, seed=1)}, path, "parquet", 1)
    return path


@pytest.fixture(scope="module")
def server(folder):
    """The port of an S3 server that has the shards in the bucket `data`."""
    with s3_server(folder) as port:
        yield port


@pytest.fixture
def use(monkeypatch):
    """`use(port)` makes the store of this process and of its workers that of a port."""
    monkeypatch.setattr(cache_module, "FIRST_DELAY", 0.01)
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)

    def of(port):
        import s3fs

        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        s3fs.S3FileSystem.clear_instance_cache()

    return of


def batches(data, num_workers=0, **place):
    options = LoaderOptions(**{"batch_size": 8, "seed": 3, "num_workers": num_workers, **place})
    loader = build_train_dataloader(data, build_train_transform(32, [32], multi_scale="off"), options)
    loader.batch_sampler.set_epoch(1)
    return [(batch["labels"].fields["image_id"].tolist(), batch["pixel_values"]) for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fifty_shards_from_a_store_that_fails_give_the_bits_of_the_local_ones(
    folder, server, use, tmp_path, num_workers
):
    expected = batches(load_detection_dataset(folder, shard_window=5)["train"])
    with Relay(server, faults=0.05, latency=0.002, seed=num_workers) as relay:
        use(relay.port)
        data = load_detection_dataset("s3://data/shards", shard_window=5, shard_cache=str(tmp_path / "cache"))["train"]
        found = batches(data, num_workers)
        assert relay.connections > SHARDS and relay.failed >= 1
    assert [ids for ids, _ in found] == [ids for ids, _ in expected] and len(found) == SHARDS * ROWS // 8
    assert all((a == b).all() for (_, a), (_, b) in zip(found, expected, strict=True))
    assert len(list((tmp_path / "cache").glob("*.parquet"))) == SHARDS
    assert not list((tmp_path / "cache").glob("*.part"))


def test_what_no_attempt_mends_is_named(server, use, tmp_path):
    use(server)
    data = load_detection_dataset("s3://data/shards", shard_cache=str(tmp_path / "cache"))["train"]
    with Relay(server, faults=1.0) as relay:
        use(relay.port)
        with pytest.raises(
            DetectionDataError, match=r"s3://data/shards/data/train-.*: (cannot be read, 6 attempts|.*503)"
        ):
            data[0]
    use(server)
    assert data[0]["image_id"] == 0
    with pytest.raises(DetectionDataError, match="s3://data/nothing: no Parquet file"):
        load_detection_dataset("s3://data/nothing")


def test_footers_alone_in_a_store(folder, server, use, tmp_path, caplog):
    use(server)
    with caplog.at_level("INFO", logger="rfdetr_hf"):
        data = load_detection_dataset("s3://data/shards/data", shard_cache=str(tmp_path / "cache"))["train"]
    assert f"the footers of {SHARDS} files were read with {SHARDS + 1} requests" in caplog.text
    assert len(data) == SHARDS * ROWS and data.counts.images == len(data)
    assert data[17]["objects"] == load_detection_dataset(folder)["train"][17]["objects"]


@pytest.fixture
def files(tmp_path):
    """Twenty files of a hundred bytes by their address."""
    (tmp_path / "store").mkdir()
    found = {}
    for number in range(20):
        path = tmp_path / "store" / f"{number:02d}.parquet"
        path.write_bytes(bytes([number]) * 100)
        found[f"file://{path}"] = path.read_bytes()
    return found


def kept(folder):
    return sorted(path.read_bytes()[0] for path in folder.glob("*.parquet"))


def test_the_files_that_were_not_used_for_longest_go(files, tmp_path):
    cache = ShardCache(tmp_path / "cache", 550)
    addresses = list(files)
    for address in addresses[:5]:
        assert open(cache.fetch(address, 100), "rb").read() == files[address]
        time.sleep(0.01)
    cache.fetch(addresses[0], 100)
    time.sleep(0.01)
    cache.fetch(addresses[7], 100)
    assert kept(tmp_path / "cache") == [0, 2, 3, 4, 7]
    opened = open(cache.fetch(addresses[2], 100), "rb")
    for address in addresses[8:]:
        cache.fetch(address, 100)
    assert len(kept(tmp_path / "cache")) == 5
    assert opened.read() == files[addresses[2]]
    opened.close()


def test_a_file_of_another_size_is_not_taken(files, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "FIRST_DELAY", 0.001)
    address = next(iter(files))
    with pytest.raises(DetectionDataError, match=r"00\.parquet.* 6 attempts failed, the last with OSError: 100 bytes"):
        ShardCache(tmp_path / "cache", 1000).fetch(address, 101)
    assert kept(tmp_path / "cache") == []
    with pytest.raises(DetectionDataError, match="FileNotFoundError"):
        ShardCache(tmp_path / "cache", 1000).fetch(address.replace("00", "77"), 100)


def fetch_all(folder, addresses, order, limit):
    cache = ShardCache(folder, limit)
    for place in order:
        with open(cache.fetch(addresses[place], 100), "rb") as file:
            if file.read() != bytes([place]) * 100:
                os._exit(3)


def test_processes_share_a_folder_and_a_killed_one_harms_nobody(files, tmp_path):
    context = multiprocessing.get_context("spawn")
    rng = np.random.default_rng(0)
    jobs = [
        context.Process(
            target=fetch_all, args=(tmp_path / "cache", list(files), rng.integers(20, size=60).tolist(), 3000)
        )
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    jobs[0].kill()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs[1:]] == [0, 0]
    fetch_all(tmp_path / "cache", list(files), range(20), 3000)
    assert kept(tmp_path / "cache") == list(range(20))


def test_reading_ahead_keeps_to_what_fits_and_to_the_latest_wish(files, tmp_path):
    cache = ShardCache(tmp_path / "cache", 500)
    ahead = ReadAhead(cache)
    ahead.fetch([(address, 100, None) for address in files])
    deadline = time.monotonic() + 20
    while len(kept(tmp_path / "cache")) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # a sixth would come now
    assert kept(tmp_path / "cache") == [0, 1, 2, 3, 4]


def test_a_window_that_does_not_fit_is_refused(folder, server, use, tmp_path, monkeypatch):
    use(server)
    from rfdetr_hf.data.formats import shards as source

    monkeypatch.setattr(source, "ShardCache", lambda folder, limit: ShardCache(folder, 100))
    with pytest.raises(DetectionDataError, match="8 shards of split train .* lower shard_window"):
        load_detection_dataset("s3://data/shards", shard_cache=str(tmp_path / "cache"))
    assert (folder / INDEX).is_file()


@pytest.mark.parametrize("index", [True, False])
def test_the_copy_of_a_shard_that_was_written_anew_is_not_taken(tmp_path, index):
    rows = make_shapes_dataset(3, image_size=48, seed=1)

    def moved(row):
        return {"objects": {**row["objects"], "id": [n + 100 for n in row["objects"]["id"]]}}

    store, found = fsspec.filesystem("memory"), []
    for name, data in (("a", rows), ("b", rows.map(moved, features=rows.features, load_from_cache_file=False))):
        convert_dataset({"train": data}, tmp_path / name, "webdataset" if index else "parquet", 1)
        for path in (tmp_path / name).rglob("*.*"):
            if index or path.name != INDEX:
                store.pipe(f"/anew{index}/{path.relative_to(tmp_path / name)}", path.read_bytes())
        train = load_detection_dataset(f"memory://anew{index}", shard_cache=str(tmp_path / "cache"))["train"]
        found.append(([row["objects"]["id"] for row in train], train.shards.sizes.tolist()))
    assert index is False or found[0][1] == found[1][1]  # of the same size
    assert found[1][0] == [[n + 100 for n in ids] for ids in found[0][0]]
