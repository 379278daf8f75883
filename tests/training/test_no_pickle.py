"""No file of a checkpoint runs code, whatever stands in it."""

import hashlib
import json
import pickle
import shutil

import pytest
from helpers.models import tiny_model
from helpers.runs import quick_arguments

from rfdetr_hf import RFDETRTrainer, make_shapes_dataset

# Names that earlier versions, torch's distributed checkpoints and DeepSpeed use.
ELSEWHERE = (
    "optimizer.pt", "scheduler.pt", "scaler.pt", "progress.pt", "rank_states.pt", "optimizer/.metadata",
    "optimizer/groups.pt", "optimizer/__0_0.distcp", "deepspeed/state/mp_rank_00_model_states.pt", "deepspeed/latest",
    "deepspeed/state/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "pytorch_model.bin", "training_args.bin",
    "rng_state.pth", "random_states_0.pkl",
)  # fmt: skip


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


def fit_manifest(folder):
    """A manifest as if the trainer had written the folder as it is now."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("no_pickle")
    args = quick_arguments(root / "run", max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="no")
    data = make_shapes_dataset(4, image_size=64)
    RFDETRTrainer(tiny_model(), args, data).train()
    return root / "run", data


def names_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_nothing_in_a_checkpoint_is_a_pickle(written):
    for name in names_of(written[0] / "checkpoint-1"):
        start = (written[0] / "checkpoint-1" / name).read_bytes()[:2]
        assert start[:1] != b"\x80" and start != b"PK", name


def test_a_payload_in_any_file_does_not_run(tmp_path, written):
    source, data = written
    held = names_of(source / "checkpoint-1")
    assert "optimizer/rank-0.safetensors" in held and "progress.json" in held
    refused = []
    for number, name in enumerate([*held, *ELSEWHERE]):
        if name == "manifest.json":
            continue
        run, marker = tmp_path / str(number), tmp_path / f"marker-{number}"
        shutil.copytree(source / "checkpoint-1", run / "checkpoint-1")
        path = run / "checkpoint-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Payload(marker)))
        if path.suffix == ".pt":  # an earlier name is looked at where the present one is missing
            path.with_suffix(".json").unlink(missing_ok=True)
            path.with_suffix(".safetensors").unlink(missing_ok=True)
        if name == "optimizer.pt":
            shutil.rmtree(run / "checkpoint-1" / "optimizer")
        fit_manifest(run / "checkpoint-1")
        args = quick_arguments(run, max_steps=2, save_strategy="no", eval_strategy="no")
        try:
            RFDETRTrainer(tiny_model(), args, data).train(resume_from_checkpoint=True)
        except (ValueError, OSError) as error:
            assert path.stem in str(error) or path.name in str(error) or "checkpoint-1" in str(error), (name, error)
            refused.append(name)
        assert not marker.exists(), name
    needed = {"model.safetensors", "ema.safetensors", "optimizer/index.json", "optimizer/rank-0.safetensors",
              "scheduler.json", "progress.json", "rank_states.safetensors", "trainer_state.json",
              "optimizer.pt", "scheduler.pt", "progress.pt", "rank_states.pt"}  # fmt: skip
    assert needed <= set(refused)


def test_the_payload_can_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").is_dir()
