"""Values of a checkpoint that no run has."""

import json
import re
import shutil

import pytest
from helpers.checkpoints import arguments, finish, rewrite
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.checkpoint.directory import CheckpointError, checksum
from rfdetr_hf.training.checkpoint.resume import find_checkpoint


def spoil(checkpoint, file):
    """Write NaN into a tensor of a checkpoint, as if it had been saved so."""
    path = checkpoint / file
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        name = next(iter(content["numbers"]))
        content["numbers"][name]["step"] = float("nan")
        path.write_text(json.dumps(content))
    else:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(path)
        name = sorted(name for name in tensors if tensors[name].is_floating_point())[0]
        tensors[name].view(-1)[0] = float("nan")
        save_file(tensors, path, metadata=metadata)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][file] = {"size": path.stat().st_size, "sha256": checksum(path)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return name


def test_numbers_that_are_not_finite_are_refused_and_the_checkpoint_before_is_taken(
    tmp_path, tiny_model, shapes, caplog
):
    options = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    finish(tiny_model(), arguments(tmp_path / "run", **options), shapes)
    for file in ("optimizer/rank-0.safetensors", "ema.safetensors", "optimizer/index.json", "model.safetensors"):
        root = tmp_path / file.replace("/", "-")
        shutil.copytree(tmp_path / "run", root)
        name = spoil(root / "checkpoint-2", file)
        with pytest.raises(CheckpointError, match=f"NaN or infinite numbers in {re.escape(name)}"):
            finish(tiny_model(), arguments(root, **options), shapes, resume=str(root / "checkpoint-2"))
        if file == "optimizer/index.json":
            continue
        caplog.clear()
        assert finish(tiny_model(), arguments(root, **options), shapes, resume=True).state.global_step == 2
        assert any("Skipping the checkpoint" in text and name in text for text in caplog.messages)


def step_to(value):
    def change(content):
        next(iter(content["numbers"].values()))["step"] = value

    return change


NAN = float("nan")
ABSURD = [
    ("optimizer/index.json", "step", step_to(NAN)),
    ("optimizer/index.json", "step", step_to(-3.0)),
    ("optimizer/index.json", "step", step_to(1e30)),
    ("optimizer/index.json", "step", step_to(0.5)),
    ("optimizer/index.json", "step", step_to("many")),
    ("optimizer/index.json", "files", lambda content: content.update(files=10**12)),
    ("optimizer/index.json", "groups", lambda content: content.update(groups=7)),
    ("optimizer/index.json", "lr", lambda content: content["groups"][0].update(lr=-1.0)),
    ("optimizer/index.json", "betas", lambda content: content["groups"][0].update(betas=[0.9, NAN])),
    ("optimizer/index.json", "shapes", lambda content: content.update(shapes={"a": ["b"]})),
    ("progress.json", "steps_in_epoch", lambda content: content.update(steps_in_epoch=-1)),
    ("progress.json", "epoch", lambda content: content.pop("epoch")),
    ("progress.json", "ema_updates", lambda content: content.update(ema_updates=1e300)),
    ("progress.json", "best.score", lambda content: content["best"].update(score=NAN)),
    ("progress.json", "arguments", lambda content: content.update(arguments=None)),
    ("trainer_state.json", "global_step", lambda content: content.update(global_step=10**15)),
    ("trainer_state.json", "global_step", lambda content: content.update(global_step=1)),
    ("trainer_state.json", "log_history", lambda content: content.update(log_history=[3])),
    ("trainer_state.json", "epoch", lambda content: content.update(epoch="first")),
    ("trainer_state.json", "stateful_callbacks", lambda content: content.update(stateful_callbacks={"Early": 3})),
    ("progress.json", "due", lambda content: content.update(due={"should_log": "perhaps"})),
    ("scheduler.json", "last_epoch", lambda content: content.update(last_epoch=-5)),
    ("scheduler.json", "last_epoch", lambda content: content.update(last_epoch=10**400)),
    ("scheduler.json", "base_lrs", lambda content: content.update(base_lrs=[{}])),
    ("scheduler.json", "base_lrs", lambda content: content.update(base_lrs=[NAN])),
    ("config.json", "id2label", lambda content: content.update(id2label={"first": "cat"})),
]


@pytest.mark.parametrize(("file", "field", "change"), ABSURD)
def test_values_that_no_run_has_are_refused_and_the_checkpoint_before_is_taken(
    tmp_path, two_checkpoints, file, field, change, caplog
):
    root = tmp_path / "run"
    shutil.copytree(two_checkpoints, root)
    rewrite(root / "checkpoint-2", file, change)
    with pytest.raises(CheckpointError, match=re.escape(f"checkpoint-2/{file}")) as refused:
        find_checkpoint(str(root / "checkpoint-2"), root, None, [])
    assert field in str(refused.value)
    assert find_checkpoint("auto", root, None, []).folder == root / "checkpoint-1"
    assert any("Skipping the checkpoint" in text and file in text for text in caplog.messages)


@pytest.mark.parametrize("file", ["model.safetensors", "scheduler.json", "progress.json"])
def test_without_a_file_that_every_run_writes_the_checkpoint_before_is_taken(tmp_path, two_checkpoints, file):
    root = tmp_path / "run"
    shutil.copytree(two_checkpoints, root)
    manifest = root / "checkpoint-2" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"][file]
    manifest.write_text(json.dumps(content))
    (root / "checkpoint-2" / file).unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"checkpoint-2/{file} is missing")):
        find_checkpoint(str(root / "checkpoint-2"), root, None, [])
    assert find_checkpoint("auto", root, None, []).folder == root / "checkpoint-1"


def test_values_of_a_users_own_parts_are_those_of_a_run(tmp_path, two_checkpoints):
    """Adafactor has two numbers as its `eps` and finds its rate; a callback's best score begins with infinity.

    A file that a user has copied there is none of the checkpoint's.
    """
    root = tmp_path / "run"
    shutil.copytree(two_checkpoints, root)
    settings = {"eps": [1e-30, 1e-3], "lr": None, "weight_decay": 0}
    rewrite(root / "checkpoint-2", "optimizer/index.json", lambda content: content["groups"][0].update(settings))
    rewrite(root / "checkpoint-2", "trainer_state.json", lambda content: content.update(best_metric=float("inf")))
    shutil.copy(root / "checkpoint-1/optimizer/rank-0.safetensors", root / "checkpoint-2/optimizer/rank-1.safetensors")
    assert find_checkpoint(str(root / "checkpoint-2"), root, None, []).folder == root / "checkpoint-2"


@pytest.mark.parametrize(
    ("file", "change"),
    [("optimizer/index.json", lambda content: next(iter(content["numbers"].values())).clear()),
     ("config.json", lambda content: content["backbone_config"].update(dtype=nested(900))),
     ("preprocessor_config.json", lambda content: content.update(size=[]))],
)  # fmt: skip
def test_values_that_only_a_model_knows_are_named(tmp_path, two_checkpoints, tiny_model, shapes, file, change):
    root = tmp_path / "run"
    shutil.copytree(two_checkpoints, root)
    rewrite(root / "checkpoint-2", file, change)
    args = arguments(root, max_steps=3, eval_strategy="no")
    with pytest.raises(CheckpointError, match=file.partition("/")[0]):
        RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=str(root / "checkpoint-2"))


def nested(depth):
    return [nested(depth - 1)] if depth else 1
