"""No file of a checkpoint runs code, whatever stands in it. Two processes: `tests/distributed/test_no_pickle.py`."""

import pickle

import pytest
from helpers.models import tiny_model
from helpers.payloads import Payload, is_named, names_of, plant_all
from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRTrainer, make_shapes_dataset


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("no_pickle")
    args = quick_arguments(root / "run", max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="no")
    data = make_shapes_dataset(4, image_size=64)
    RFDETRTrainer(tiny_model(), args, data).train()
    return root / "run", data


def test_nothing_in_a_checkpoint_is_a_pickle(written):
    for name in names_of(written[0] / "checkpoint-1"):
        start = (written[0] / "checkpoint-1" / name).read_bytes()[:2]
        assert start[:1] != b"\x80" and start != b"PK", name


def test_a_payload_in_any_file_does_not_run(tmp_path, written):
    source, data = written
    held = names_of(source / "checkpoint-1")
    assert "optimizer/rank-0.safetensors" in held and "progress.json" in held
    refused = []
    for run, (names, marker) in plant_all(source / "checkpoint-1", tmp_path).items():
        args = quick_arguments(run, max_steps=2, save_strategy="no", eval_strategy="no")
        try:
            RFDETRTrainer(tiny_model(), args, data).train(resume_from_checkpoint=True)
        except (ValueError, OSError) as error:
            assert is_named(names, str(error)), (names, error)
            refused += names
        assert not marker.exists(), names
    needed = {"model.safetensors", "ema.safetensors", "optimizer/index.json", "optimizer/rank-0.safetensors",
              "scheduler.json", "progress.json", "rank_states.safetensors", "trainer_state.json",
              "optimizer.pt", "scheduler.pt", "progress.pt", "rank_states.pt"}  # fmt: skip
    assert needed <= set(refused) and "pytorch_model.bin" not in refused


def test_the_payload_can_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").is_dir()
