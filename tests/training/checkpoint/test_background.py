import json
import threading

import pytest
import torch
from helpers.runs import quick_arguments
from safetensors.torch import load_file
from transformers import TrainerCallback

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.checkpoint import contents
from rfdetr_hf.training.checkpoint.background import host_copy
from rfdetr_hf.training.checkpoint.directory import verify

SHAPES = 12  # images of the fixture `shapes`


@pytest.fixture
def train(tmp_path, tiny_model, shapes):
    """Runs a short training that saves every second step: `train(name, *callbacks, **options)`."""

    def run(name, *callbacks, **options):
        defaults = {
            "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "eval_strategy": "no",
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": 1, "async_save": True,
        }  # fmt: skip
        args = quick_arguments(tmp_path / name, **{**defaults, **options})
        held_out = None if args.eval_strategy == "no" else shapes.select(range(3))
        trainer = RFDETRTrainer(tiny_model(), args, shapes, held_out, callbacks=callbacks)
        trainer.train()
        return trainer

    return run


STATES = (
    "model.safetensors", "ema.safetensors", "optimizer/rank-0.safetensors", "optimizer/index.json", "scheduler.json",
    "rank_states.safetensors",
)  # fmt: skip


class Told(TrainerCallback):
    """What `on_save` is told, and whether the folder is there and whole by then."""

    def __init__(self, folder):
        self.folder, self.steps, self.threads = folder, [], set()

    def on_save(self, args, state, control, **kwargs):
        self.steps.append((state.global_step, len(state.log_history)))
        self.threads.add(threading.current_thread())
        verify(self.folder / f"checkpoint-{state.global_step}")


class Writes:
    """In place of `write_contents`: waits for `go`, or fails at one step."""

    def __init__(self, monkeypatch, fail_at=None):
        self.go, self.fail_at, self.write = threading.Event(), fail_at, contents.write_contents
        monkeypatch.setattr(contents, "write_contents", self)

    def __call__(self, folder, contents):
        assert self.go.wait(60)
        if folder.name.endswith(f"checkpoint-{self.fail_at}"):
            raise OSError(f"no disk for {folder.name}")
        self.write(folder, contents)


@pytest.mark.parametrize("options", [{}, {"eval_strategy": "steps", "eval_steps": 2}, {"save_total_limit": 1}], ids=str)
def test_the_files_are_those_of_the_other_way(tmp_path, train, options):
    train("at_once", async_save=False, **options)
    train("background", **options)
    names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in ("at_once", "background")]
    assert names[0] == names[1]
    for name in [name for name in names[0] if name.startswith("checkpoint-")]:
        ours, theirs = (tmp_path / run / name for run in ("background", "at_once"))
        verify(ours)
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        assert [file for file in STATES if (ours / file).read_bytes() != (theirs / file).read_bytes()] == []
        progress = [json.loads((folder / "progress.json").read_text()) for folder in (ours, theirs)]
        others = {"arguments": None, "seconds": None}
        assert progress[0] | others == progress[1] | others


def test_the_training_goes_on_and_the_checkpoint_keeps_its_step(tmp_path, train, monkeypatch):
    writes = Writes(monkeypatch)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            if state.global_step == 4:
                assert not (tmp_path / "run" / "checkpoint-2").exists()
                writes.go.set()

    watch = Watch()
    train("run", watch, save_steps=2)
    kept, later = (load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    assert all(torch.equal(kept[name], tensor) for name, tensor in watch.weights.items())
    assert not torch.equal(kept["class_embed.weight"], later["class_embed.weight"])


def test_callbacks_are_told_by_the_main_thread_of_complete_folders(tmp_path, train):
    told = Told(tmp_path / "run")
    trainer = train("run", told)
    assert told.steps == [(2, 2), (4, 4), (6, 6)]
    assert told.threads == {threading.main_thread()} and trainer.state.global_step == 6


@pytest.mark.parametrize(("fail_at", "reached"), [(2, 4), (6, 6)])
def test_a_write_that_fails_ends_the_run_at_the_next_wait(tmp_path, train, monkeypatch, fail_at, reached):
    writes, steps = Writes(monkeypatch, fail_at), []
    writes.go.set()

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    with pytest.raises(OSError, match=f"no disk for .*checkpoint-{fail_at}"):
        train("run", Steps())
    assert steps[-1] == reached
    left = sorted(path.name for path in (tmp_path / "run").iterdir() if "checkpoint" in path.name)
    assert left == [f"checkpoint-{step}" for step in range(2, fail_at, 2)]


def test_a_run_that_fails_waits_for_its_checkpoint(tmp_path, train, monkeypatch):
    writes = Writes(monkeypatch)
    threading.Timer(0.5, writes.go.set).start()

    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        train("run", Fail())
    verify(tmp_path / "run" / "checkpoint-2")


def test_a_save_that_is_due_survives_the_news_of_the_one_before(train):
    """An evaluation waits for the checkpoint before; `on_save` takes back `should_save`, which is this step's."""
    trainer = train("run", eval_strategy="steps", eval_steps=2)
    assert trainer.checkpointer.background
    assert sorted(path.name for path in trainer.directory.root.glob("checkpoint-*")) == [
        f"checkpoint-{n}" for n in (2, 4, 6)
    ]


def test_sharded_runs_are_refused(train, monkeypatch):
    monkeypatch.setattr("rfdetr_hf.training.parallel.Parallel.name", "fsdp2")
    with pytest.raises(ValueError, match="async_save=True runs on one process or data parallel, not under fsdp2"):
        train("run")


def test_a_copy_on_the_host_shares_nothing():
    tensor = torch.zeros(2)
    original = {"a": [tensor, 1], "b": (tensor.t(), "x", None)}
    copied = host_copy(original)
    tensor += 1
    assert type(copied["b"]) is tuple and copied["b"][1:] == ("x", None) and copied["a"][1] == 1
    assert not copied["a"][0].any() and not copied["b"][0].any()
