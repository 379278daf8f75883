"""Runs over shards: from a store that fails, killed and resumed, and on other numbers of processes."""

import json
import random
import time
from collections import Counter

import numpy as np
import pytest
from helpers.relay import Relay
from helpers.store import ACCESS, s3_server
from kill import differences, wait_for_training
from launching import finish, run, start

from rfdetr_hf import convert_dataset, make_shapes_dataset
from rfdetr_hf.data.shards import writer

STEPS, IMAGES, ROWS = 20, 60, 3
PREEMPTED = 75


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def shards(request, tmp_path_factory):
    """Twenty shards of three rows, and one of five for the evaluation."""
    folder = tmp_path_factory.mktemp("shards") / request.param
    splits = {"train": make_shapes_dataset(IMAGES, 64, seed=1), "validation": make_shapes_dataset(3, 64, seed=2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROWS", ROWS)
        convert_dataset(splits, folder, request.param, 1)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_over_a_failing_store_that_is_killed_has_the_bits_of_the_local_one(job, shards, tmp_path, monkeypatch):
    options = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps",
               "eval_steps": 10, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 2,
               "dataloader_num_workers": 1}  # fmt: skip
    place = {"shard_window": 3, "shard_cache": str(tmp_path / "cache")}
    local = job("local", options=options, shards={"name_or_path": str(shards), **place})
    run(local)
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    rng = random.Random(0)
    with s3_server(shards) as port, Relay(port, faults=0.05, latency=0.002, seed=1) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        remote = job("remote", options=options, shards={"name_or_path": "s3://data/shards", **place}, resume="auto")
        for _ in range(3):
            (process,) = start(remote)
            wait_for_training(remote["output_dir"], [process])
            time.sleep(rng.uniform(0, 0.6))
            process.kill()
            codes, outputs = finish([process])
            assert codes == [-9], outputs
        run(remote)
        assert relay.connections > IMAGES // ROWS and relay.failed >= 1
    assert differences(local["output_dir"], remote["output_dir"], STEPS) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_two_and_one_process_see_each_row_of_an_epoch_once(job, shards, tmp_path):
    """Every step has the rows that it has on one process alone, wherever the run was taken up."""

    def part(name, accumulation, **fields):
        options = {"max_steps": 2 * IMAGES // 4, "per_device_train_batch_size": 2, "save_strategy": "no",
                   "gradient_accumulation_steps": accumulation}  # fmt: skip
        seen = str(tmp_path / f"{name}.jsonl")
        return job(
            name, options=options, shards={"name_or_path": str(shards), "shard_window": 3}, images_seen=seen, **fields
        )

    def steps(name):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        return {step: sorted(i for other, _, ids in rows if other == step for i in ids) for step, _, _ in rows}

    run(part("alone", 2))
    for world, stop in ((1, 7), (2, 19), (1, None)):
        fields = {} if stop is None else {"signal": {"rank": 0, "step": stop, "name": "SIGTERM"}}
        codes, outputs = finish(start(part("moved", 2 // world, resume="auto", **fields), world))
        assert codes == [PREEMPTED if stop else 0] * world, outputs
    alone, moved = steps("alone"), steps("moved")
    assert moved == alone and len(alone) == 2 * IMAGES // 4
    for epoch in range(2):
        seen = Counter(i for step in range(epoch * IMAGES // 4, (epoch + 1) * IMAGES // 4) for i in moved[step])
        assert set(seen.values()) == {1} and len(seen) == IMAGES
    assert np.concatenate(list(moved.values())).size == 2 * IMAGES
