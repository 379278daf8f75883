"""Checkpoints of the version before `format` and `order`: taken up with equal state, and trained on to stored numbers.

`earlier_checkpoints/<launch>/` holds `checkpoint-4` of a run of a tiny model, and in `run.json` the run's options, the
losses and gradient norms of the steps after it, and the next 100 samples as (epoch, position, image id).
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from launching import run
from safetensors.torch import load_file
from transformers import TrainerCallback
from worker import arguments

from rfdetr_hf import RFDETRConfig, RFDETRForObjectDetection, RFDETRTrainer, make_shapes_dataset

EARLIER = Path(__file__).with_name("earlier_checkpoints")
WORLD = {"single": 1, "ddp": 2}


@pytest.fixture(params=WORLD)
def launch(request):
    return request.param


@pytest.fixture
def stored(launch):
    return json.loads((EARLIER / launch / "run.json").read_text())


@pytest.fixture
def checkpoint(tmp_path, launch):
    """A copy of the checkpoint in the directory of a run."""
    return Path(shutil.copytree(EARLIER / launch / "checkpoint-4", tmp_path / "run" / "checkpoint-4"))


class Stop(TrainerCallback):
    """Looks at a trainer that has taken a run up, and ends it there."""

    def __init__(self, look):
        self.look = look

    def on_train_begin(self, args, state, control, **kwargs):
        self.look()
        raise KeyboardInterrupt


def test_every_part_is_taken_up(checkpoint, launch, stored, caplog):
    if WORLD[launch] > 1:  # one process makes the same optimizer steps in micro-batches
        stored["options"]["gradient_accumulation_steps"] *= WORLD[launch]
    torch.manual_seed(5)
    model = RFDETRForObjectDetection(RFDETRConfig.from_pretrained(checkpoint))
    data = make_shapes_dataset(24, image_size=64, seed=1)
    job = {"output_dir": str(checkpoint.parent), "options": stored["options"]}
    trainer = RFDETRTrainer(model, arguments(job), data, make_shapes_dataset(3, image_size=64, seed=2))
    generators = []
    trainer.add_callback(Stop(lambda: generators.extend((random.getstate(), torch.get_rng_state()))))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=True)

    def assert_equal(ours, theirs):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

    assert_equal(model.state_dict(), load_file(checkpoint / "model.safetensors"))
    assert_equal(trainer.ema.state_dict(), load_file(checkpoint / "ema.safetensors"))
    kept = {file: torch.load(checkpoint / f"{file}.pt", weights_only=True)
            for file in ("optimizer", "scheduler", "progress", "rank_states")}  # fmt: skip
    ours = trainer.optimizer.state_dict()
    for index, state in kept["optimizer"]["state"].items():
        assert_equal(ours["state"][index], state)
    # How a step is computed is this run's own.
    own = ("initial", "fused", "foreach")
    groups, theirs = (
        [{name: value for name, value in group.items() if name not in own} for group in state["param_groups"]]
        for state in (ours, kept["optimizer"])
    )
    assert groups == theirs
    assert trainer.lr_scheduler.state_dict()["last_epoch"] == kept["scheduler"]["last_epoch"] == 4
    assert trainer.ema.num_updates == kept["progress"]["ema_updates"] == 4
    state = trainer.state
    scores = [row for row in state.log_history if "eval_map" in row]
    assert scores and not any("_ema_" in name for row in state.log_history for name in row)
    assert trainer.args.metric_for_best_model == "map"
    assert "the best model so far (step 4, map 0.0000) is not in" in caplog.text  # best/ was not kept with it
    assert "what it calls eval_ema_map is called eval_map now" in caplog.text
    assert "the best model is chosen by" not in caplog.text
    assert (state.global_step, state.epochs_done, state.steps_in_epoch, state.order) == (4, 0, 4, 1)
    if WORLD[launch] == 1:
        version, internal, gauss = kept["rank_states"][0]["generators"]["python"]
        assert generators[0] == (version, tuple(internal), gauss)
        assert torch.equal(generators[1], kept["rank_states"][0]["generators"]["torch"])


def test_the_next_samples_are_the_same(launch, stored):
    from rfdetr_hf.data.pipeline.order import EpochBatchSampler

    ids = make_shapes_dataset(24, image_size=64, seed=1)["image_id"]
    accumulation, sampled = stored["options"]["gradient_accumulation_steps"], []
    sampler = EpochBatchSampler(24, 2, accumulation=accumulation, world_size=WORLD[launch], seed=42, order=1)
    for epoch in range(8):
        sampler.set_epoch(epoch, start_batch=0 if epoch else 4 * accumulation)
        sampled += [[epoch, position, ids[index]] for batch in sampler for epoch, position, index in batch]
    assert sampled[:100] == stored["samples"]


def test_the_training_goes_on_as_it_did(checkpoint, launch, stored, tmp_path):
    record = tmp_path / "record.json"
    run(
        {"output_dir": str(checkpoint.parent), "config": str(checkpoint), "options": stored["options"], "images": 24,
         "held_out": 3, "record": str(record), "resume": True}, WORLD[launch],
    )  # fmt: skip
    steps = json.loads(record.read_text())["losses"]
    assert [step for step, *_ in steps] == [5, 6, 7, 8]
    torch.testing.assert_close(torch.tensor(steps), torch.tensor(stored["losses"]), rtol=1e-6, atol=0)
