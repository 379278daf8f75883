"""No file of a checkpoint of two processes runs code when a run is taken up from it, whatever stands in the file."""

import json
from pathlib import Path

import pytest
from helpers.payloads import is_named, names_of, plant_all
from launching import run
from test_topologies import ZERO

OPTIONS = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
PARTS = {"fsdp2": {"optimizer/rank-0.safetensors", "optimizer/rank-1.safetensors"}}
PARTS |= {"zero3": PARTS["fsdp2"]}
READ = {"model.safetensors", "ema.safetensors", "optimizer/index.json", "optimizer/rank-0.safetensors",
        "scheduler.json", "progress.json", "rank_states.safetensors", "trainer_state.json"}  # fmt: skip


SOME = {"optimizer/rank-1.safetensors", "optimizer/.metadata"}


@pytest.mark.parametrize(
    ("kind", "only"),
    [("fsdp2", SOME), *(pytest.param(kind, (), marks=pytest.mark.slow) for kind in ("ddp", "fsdp2")),
     *(pytest.param(*kind.values, (), marks=kind.marks) for kind in ZERO[1:])],
)  # fmt: skip
@pytest.mark.timeout(900)
def test_a_payload_in_any_file_does_not_run(job, tmp_path, kind, only):
    written = job("written", options=OPTIONS | {"save_strategy": "steps", "save_steps": 1})
    run(written, 2, kind)
    source = Path(written["output_dir"]) / "checkpoint-1"
    held = {name for name in names_of(source) if name.startswith("optimizer/rank-")}
    assert held == PARTS.get(kind, {"optimizer/rank-0.safetensors"})
    planted = plant_all(source, tmp_path / "planted", only)
    refusals = tmp_path / "refusals.json"
    run(job("unused", options=OPTIONS, resume_each=[*planted], refusals=str(refusals)), 2, kind)
    messages = json.loads(refusals.read_text())
    assert [names for names, marker in planted.values() if marker.exists()] == []
    refused = [name for folder in messages for name in planted[folder][0]]
    assert (READ | held) & set(only or READ | held) <= set(refused) and "optimizer/.metadata" in refused
    assert all(is_named(planted[folder][0], message) for folder, message in messages.items()), messages
    assert "pytorch_model.bin" not in refused
