"""What a run goes on from, what it refuses, and what it tells."""

import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import models
from helpers.runs import assert_same, quick_arguments, weights
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rfdetr_hf import RFDETRImageProcessor, RFDETRTrainer, load_detection_dataset
from rfdetr_hf.training.checkpoint.directory import CheckpointError, checksum
from rfdetr_hf.training.checkpoint.previous import with_present_names
from rfdetr_hf.training.checkpoint.resume import find_checkpoint
from rfdetr_hf.training.checkpoint.tree import from_json, save_tree

arguments = partial(
    quick_arguments, num_train_epochs=3, gradient_accumulation_steps=2, logging_steps=1, save_total_limit=None,
)  # fmt: skip


class Stop(TrainerCallback):
    """Ends a run, or kills it, at the evaluation or saving of a step."""

    def __init__(self, stop_at=None, die_at=None, end_epoch_at=None):
        self.stop_at, self.die_at, self.end_epoch_at = stop_at, die_at, end_epoch_at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop |= state.global_step == self.end_epoch_at

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop_at

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.die_at:
            raise KeyboardInterrupt


def finish(model, args, data, resume=None, **callback):
    trainer = RFDETRTrainer(model, args, data, data, callbacks=[Stop(**callback)])
    try:
        trainer.train(resume)
    except KeyboardInterrupt:
        assert callback["die_at"]
    return trainer


def test_a_run_that_a_callback_had_ended_stays_ended(tmp_path, tiny_model, shapes):
    finish(tiny_model(), arguments(tmp_path), shapes, stop_at=6, die_at=6)
    trainer = finish(tiny_model(), arguments(tmp_path), shapes, resume=True)
    assert trainer.state.global_step == 6 and (tmp_path / "last").is_dir()


def test_other_rules_of_stopping_let_an_ended_run_go_on(tmp_path, tiny_model, shapes):
    args = {"early_stopping_patience": 1, "early_stopping_threshold": 1.0}
    finish(tiny_model(), arguments(tmp_path, **args), shapes)
    assert not (tmp_path / "checkpoint-18").exists()
    patient = arguments(tmp_path, **args | {"early_stopping_patience": 9})
    assert finish(tiny_model(), patient, shapes, resume=True).state.global_step == 18


@pytest.mark.parametrize("cut", [8, 6, 10])
def test_a_larger_max_steps_continues_the_epoch_that_was_cut_short(tmp_path, tiny_model, shapes, cut):
    whole = finish(tiny_model(), arguments(tmp_path / "whole", max_steps=14), shapes)
    finish(tiny_model(), arguments(tmp_path / "cut", max_steps=cut), shapes)
    trainer = finish(tiny_model(), arguments(tmp_path / "cut", max_steps=14), shapes, resume=True)

    def losses(of):
        return {row["step"]: row["loss_now"] for row in of.state.log_history if "loss_now" in row}

    assert losses(trainer) == losses(whole) and trainer.state.epoch == whole.state.epoch
    first, second = (load_file(tmp_path / name / "checkpoint-14" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_epoch_that_a_callback_ended_is_over(tmp_path, tiny_model, shapes):
    finish(tiny_model(), arguments(tmp_path), shapes, end_epoch_at=3, die_at=3)
    trainer = finish(tiny_model(), arguments(tmp_path), shapes, resume=True)
    assert (trainer.state.epochs_done, trainer.state.global_step) == (3, 15)


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"seed": 7}, 24, "was written with 42 as its seed, this run has 7"),
        ({}, 23, "24 training images, this run has 23"),
        ({}, -24, "image ids"),
        ({"per_device_train_batch_size": 4}, 24, "4 images in an optimizer step, this run has 8"),
        ({"learning_rate": 1e-5}, 24, "learning_rate=0.0001, which its optimizer keeps, and this run has 1e-05"),
        ({"weight_decay": 0.5}, 24, "weight_decay=0.0001, which its optimizer keeps"),
    ],
)
def test_another_run_is_refused(tmp_path, tiny_model, shapes, options, rows, message):
    finish(tiny_model(), arguments(tmp_path, max_steps=2), shapes)
    data = shapes.select(range(24)[::-1]) if rows < 0 else shapes.select(range(rows))
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, **options), data, shapes)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=True)


@pytest.fixture
def yolo(tmp_path):
    """Writes a YOLO folder of four images and loads it: `yolo(names, row)`."""

    def make(names=("cat", "dog"), row="1 0.5 0.5 0.4 0.4"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / "train").mkdir(parents=True, exist_ok=True)
        for number in range(4):
            Image.new("RGB", (64, 64), (60 * number, 90, 30)).save(tmp_path / f"data/images/train/{number}.png")
            (tmp_path / f"data/labels/train/{number}.txt").write_text(f"{number % 2} 0.5 0.5 0.5 0.5\n")
        (tmp_path / "data/labels/train/3.txt").write_text(row + "\n")
        (tmp_path / "data/data.yaml").write_text(f"train: images/train\nnames: {list(names)}\n")
        return load_detection_dataset(tmp_path / "data")["train"]

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("dog", "cat")}, r"for the classes \['cat', 'dog'\], and this run has \['dog', 'cat'\]"),
        ({"row": "0 0.5 0.5 0.4 0.4"}, "labels of the training images .* annotations have changed since"),
        ({"row": "1 0.5 0.5 0.4 0.41"}, "labels of the training images .* annotations have changed since"),
    ],
)
def test_other_class_names_and_annotations_are_refused(tmp_path, tiny_model, yolo, change, message):
    def trainer(names=("cat", "dog"), **changed):
        options = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
        data = yolo(names=names, **changed)
        return RFDETRTrainer(tiny_model(names=names), arguments(tmp_path / "run", **options), data)

    trainer().train()
    with pytest.raises(ValueError, match=message):
        trainer(**change).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))  # as it was, it goes on


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_mean", [0.4, 0.5, 0.6]), ("image_std", [0.2, 0.2, 0.2]), ("rescale_factor", 1 / 65535),
     ("do_normalize", False), ("value_range", [0.0, 4095.0])],
)  # fmt: skip
def test_colours_that_the_weights_do_not_know_are_refused(tmp_path, tiny_model, shapes, field, value):
    size = {"height": 64, "width": 64}
    args = arguments(tmp_path, max_steps=2, eval_strategy="no", save_strategy="steps", save_steps=1)
    RFDETRTrainer(tiny_model(), args, shapes, image_processor=RFDETRImageProcessor(size=size)).train()
    other = RFDETRImageProcessor(size=size, **{field: value})
    with pytest.raises(ValueError, match=f"preprocessor_config.json: the weights .*{field} .*image_processor="):
        RFDETRTrainer(tiny_model(), args, shapes, image_processor=other).train(str(tmp_path / "checkpoint-1"))


def test_other_values_of_the_model_are_told(tmp_path, tiny_model, shapes, caplog):
    args = arguments(tmp_path, max_steps=1, eval_strategy="no", save_strategy="steps", save_steps=1)
    RFDETRTrainer(tiny_model(), args, shapes).train()
    RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=True)
    assert "the model has changed" not in caplog.text
    model = tiny_model(class_loss_coefficient=3.0, backbone_config={"drop_path_rate": 0.5})
    processor = RFDETRImageProcessor(size={"height": 72, "width": 64})
    RFDETRTrainer(model, args, shapes, image_processor=processor).train(resume_from_checkpoint=True)
    for changed in ("class_loss_coefficient 1 -> 3.0", "backbone_config.drop_path_rate 0.0 -> 0.5",
                    "size.height 64 -> 72"):  # fmt: skip
        assert changed in caplog.text
    for name, before, now in (("num_queries", 10, 8), ("decoder_self_attention_heads", 2, 4)):
        with pytest.raises(
            ValueError, match=rf"checkpoint-1 was written with another structure \({name} {before} -> {now}\)"
        ):
            RFDETRTrainer(tiny_model(**{name: now}), args, shapes).train(resume_from_checkpoint=True)


def test_other_pictures_are_told(tmp_path, tiny_model, yolo, caplog):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    args = arguments(tmp_path / "run", **options)
    run = partial(RFDETRTrainer, model_init=partial(tiny_model, names=("cat", "dog")), args=args)
    run(train_dataset=yolo(), eval_dataset=yolo()).train()
    resume = str(tmp_path / "run" / "checkpoint-1")
    run(train_dataset=yolo(), eval_dataset=yolo()).train(resume)
    assert "have changed" not in caplog.text
    data = yolo()
    Image.new("RGB", (64, 65), (1, 2, 3)).crop((0, 0, 64, 64)).save(tmp_path / "data/images/train/3.png")
    trainer = run(train_dataset=data, eval_dataset=data)
    trainer.train(resume)
    assert "have changed since the checkpoint was written: train, validation" in caplog.text
    assert trainer.state.best.step in (None, 2)


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


def test_a_run_whose_optimizer_makes_nan_ends_with_the_names(tmp_path, tiny_model, shapes):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=0.0)  # divides 0 by 0
    args = arguments(tmp_path, max_steps=1, eval_strategy="no", use_ema=False)
    with pytest.raises(CheckpointError, match="NaN or infinite numbers in "):
        RFDETRTrainer(model, args, shapes, optimizers=(optimizer, None)).train()
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "last").exists()


def test_a_model_that_holds_nan_is_not_trained(tmp_path, tiny_model, shapes):
    model = tiny_model()
    model.class_embed.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="the model to train: NaN or infinite numbers in class_embed.bias"):
        finish(model, arguments(tmp_path), shapes)


@pytest.mark.parametrize("fused", [True, False])
def test_how_a_step_is_computed_is_the_runs_own(tmp_path, tiny_model, shapes, fused):
    def train(fused, resume=None):
        model = tiny_model()
        named = [{"params": [(n, p) for n, p in model.named_parameters() if p.requires_grad]}]
        optimizer = torch.optim.AdamW(named, lr=1e-4, fused=fused, foreach=not fused)
        args = arguments(tmp_path, max_steps=1 if resume is None else 2, eval_strategy="no")
        trainer = RFDETRTrainer(model, args, shapes, optimizers=(optimizer, None))
        trainer.train(resume)
        return trainer.optimizer.param_groups[0]

    train(fused)
    group = train(not fused, resume=True)
    assert (group["fused"], group["foreach"]) == (not fused, fused)


def test_changed_arguments_are_told(tmp_path, tiny_model, shapes, caplog):
    finish(tiny_model(), arguments(tmp_path, max_steps=2), shapes)
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        finish(tiny_model(), arguments(tmp_path, max_steps=4, horizontal_flip=0.0), shapes, resume=True)
    assert any("horizontal_flip 0.5 -> 0.0" in text and "max_steps 2 -> 4" in text for text in caplog.messages)


class Scored(RFDETRTrainer):
    """Evaluates to given scores."""

    scores: dict[int, float] = {}

    def evaluate(self, *args, **kwargs):
        return {"eval_map": self.scores[self.state.global_step], "eval_runtime": 0.0}


def test_the_best_model_of_an_abandoned_course_is_not_taken_for_ours(tmp_path, tiny_model, shapes, caplog):
    first = Scored(tiny_model(), arguments(tmp_path), shapes, shapes)
    first.scores = {6: 0.5, 12: 0.6, 18: 0.4}
    first.train()
    of_step_12 = load_file(tmp_path / "best" / "model.safetensors")
    for name in ("checkpoint-12", "checkpoint-18"):
        shutil.rmtree(tmp_path / name)
    second = Scored(tiny_model(), arguments(tmp_path, horizontal_flip=0.0), shapes, shapes)
    second.scores = {12: 0.1, 18: 0.1}
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert second.state.best.step == 6
    assert any("holds other weights than the best of this run (step 6)" in text for text in caplog.messages)
    assert any("the model in memory is the EMA weights of step 18" in text for text in caplog.messages)
    left = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(of_step_12[name], left[name]) for name in left)


def test_a_second_run_is_refused_before_anything_of_the_first_is_touched(tmp_path, tiny_model, shapes):
    finish(tiny_model(), arguments(tmp_path, max_steps=2), shapes)
    (tmp_path / ".tmp-checkpoint-4").mkdir()
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        finish(tiny_model(), arguments(tmp_path, max_steps=2), shapes)
    assert (tmp_path / ".tmp-checkpoint-4").is_dir()


def test_scores_of_earlier_checkpoints_get_their_present_names(tmp_path, caplog):
    """Raw and EMA weights, two data sets: the best of both competed under the name of the raw ones."""
    arguments = {"use_ema": True, "eval_raw_weights": True, "metric_for_best_model": "map"}
    row = {"eval_map": 0.1, "eval_ema_map": 0.2, "eval_day_map": 0.3, "eval_day_ema_map": 0.4, "eval_runtime": 5.0}
    stopping = {"args": {"metric": "ema_map", "patience": 1}, "attributes": {"best": 0.2}}
    callbacks = {"log_history": [{"loss": 1.0, "step": 1}, row], "stateful_callbacks": {"EarlyStopping": stopping}}
    progress, now = with_present_names(tmp_path, {"format": 2, "arguments": arguments}, callbacks)
    assert progress["arguments"]["metric_for_best_model"] == "map,raw_map"
    assert now["log_history"] == [
        {"loss": 1.0, "step": 1},
        {"eval_raw_map": 0.1, "eval_map": 0.2, "eval_day_raw_map": 0.3, "eval_day_map": 0.4, "eval_runtime": 5.0},
    ]
    assert now["stateful_callbacks"]["EarlyStopping"]["args"]["metric"] == "map"
    assert "is called eval_map now" in caplog.text
    for version, use_ema in ((3, True), (2, False)):
        kept = {"format": version, "arguments": arguments | {"use_ema": use_ema}}
        assert with_present_names(tmp_path, kept, callbacks) == (kept, callbacks)


def rewrite(checkpoint, file, change):
    """Change a JSON file of a checkpoint as if it had been saved so."""
    path = checkpoint / file
    if change is not None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][file] = {"size": path.stat().st_size, "sha256": checksum(path)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


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


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory, shapes):
    root = tmp_path_factory.mktemp("two")
    options = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    finish(models.tiny_model(), arguments(root, **options), shapes)
    return root


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


class ByStep:
    """A schedule that keeps the rates of steps by number."""

    def __init__(self, optimizer):
        self.optimizer, self.rates, self.steps = optimizer, {}, 0

    def step(self):
        self.steps += 1
        self.rates[self.steps] = 1e-4 / (1 + len(self.rates))
        self.optimizer.param_groups[0]["lr"] = self.rates[self.steps]

    def get_last_lr(self):
        return [self.optimizer.param_groups[0]["lr"]]

    def state_dict(self):
        return {"rates": self.rates, "pair": (1, 2), "steps": self.steps}

    def load_state_dict(self, state):
        assert state["pair"] == (1, 2) and state["rates"][1]
        self.rates, self.steps = state["rates"], state["steps"]


@pytest.mark.parametrize("as_text", [False, True], ids=["now", "earlier"])
@pytest.mark.parametrize("name", ["steps", "joined", "later", "own"])
def test_a_resumed_schedule_has_the_rates_of_one_that_was_not_interrupted(tmp_path, tiny_model, shapes, name, as_text):
    """Milestones are a `Counter` with numbers as keys, which JSON takes for texts; `later` begins after the resume."""
    if name == "own" and as_text:
        pytest.skip("nobody knows which keys it had")
    rates = torch.optim.lr_scheduler

    def make(optimizer):
        steps = rates.MultiStepLR(optimizer, [3] if name == "steps" else [1])
        constant = rates.ConstantLR(optimizer, 0.5, 2)
        joined = rates.SequentialLR(optimizer, [constant, steps], [2 if name == "joined" else 3])
        return {"steps": steps, "own": ByStep(optimizer)}.get(name, joined)

    def run(folder, resume=None):
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)
        options = {"max_steps": 5, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2}
        given = (optimizer, make(optimizer))
        trainer = RFDETRTrainer(model, arguments(folder, **options), shapes, optimizers=given)
        trainer.train(resume)
        return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]

    whole = run(tmp_path / "run")
    assert len(set(whole)) > 1
    checkpoint = tmp_path / "run" / "checkpoint-2"
    if as_text:
        rewrite(checkpoint, "scheduler.json", lambda content: content.update(from_json(content)))
    assert run(tmp_path / "resumed", str(checkpoint)) == whole


class Counting(ExportableState, TrainerCallback):
    """A user's callback; earlier versions saved states without "args"."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


def test_states_of_callbacks_without_arguments_are_taken_from_earlier_checkpoints(
    tmp_path, two_checkpoints, tiny_model, shapes, caplog
):
    root, counting = tmp_path / "run", Counting()
    shutil.copytree(two_checkpoints, root)
    earlier = {"Counting": {"attributes": {"steps": 40}}, "Gone": {"attributes": {"a": 1}}}
    rewrite(root / "checkpoint-2", "trainer_state.json", lambda content: content.update(stateful_callbacks=earlier))
    args = arguments(root, max_steps=3, eval_strategy="no")
    RFDETRTrainer(tiny_model(), args, shapes, callbacks=[counting]).train(resume_from_checkpoint=True)
    assert counting.steps == 41
    assert "has a state of Counting without its arguments: the attributes are restored" in caplog.text
    assert "has a state of Gone, and this run has no such callback" in caplog.text


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


def test_a_state_that_cannot_be_taken_up_names_its_file(tmp_path, two_checkpoints, tiny_model, shapes):
    root = tmp_path / "run"
    shutil.copytree(two_checkpoints, root)
    save_tree(root / "checkpoint-2" / "rank_states.safetensors", [{"generators": {"python": [1]}, "losses": {}}])
    rewrite(root / "checkpoint-2", "rank_states.safetensors", None)
    args = arguments(root, max_steps=3, eval_strategy="no")
    with pytest.raises(CheckpointError, match=r"rank_states.* cannot be taken up: .*; resume from another checkpoint"):
        RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=str(root / "checkpoint-2"))


class OwnOptimizer(RFDETRTrainer):
    """Names no parameters, has states of other shapes than theirs, and logs what a loss is."""

    def create_optimizer(self):
        return torch.optim.Adafactor(self.model.parameters(), lr=1e-3)

    def compute_loss(self, *args, **kwargs):
        self.log({"mine": torch.tensor(1.5), "array": np.ones(1, np.float32)})
        return super().compute_loss(*args, **kwargs)


def test_an_optimizer_of_another_make_and_logs_of_tensors_are_saved_and_taken_up(tmp_path, tiny_model, shapes):
    options = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    straight = OwnOptimizer(tiny_model(), arguments(tmp_path / "straight", max_steps=2, **options), shapes)
    straight.train()
    OwnOptimizer(tiny_model(), arguments(tmp_path / "run", max_steps=1, **options), shapes).train()
    trainer = OwnOptimizer(tiny_model(), arguments(tmp_path / "run", max_steps=2, **options), shapes)
    assert trainer.train(resume_from_checkpoint=True).global_step == 2
    assert_same(weights(straight.model), weights(trainer.model))
    assert {row["mine"] for row in trainer.state.log_history if "mine" in row} == {1.5}
    with pytest.raises(TypeError, match=r"log\(\): mine is a Tensor: give a number or a text"):
        trainer.log({"mine": torch.ones(2)})


@pytest.mark.parametrize(
    ("state", "message"),
    [({"count": 1}, "must return .*'args'.*'attributes'"), (None, "must return"),
     ({"args": {}, "attributes": {"seen": {1}}}, "holds what JSON cannot")],
)  # fmt: skip
def test_a_callback_whose_state_cannot_be_saved_is_named_before_the_first_step(
    tmp_path, tiny_model, shapes, state, message
):
    class Counter(TrainerCallback, ExportableState):
        def state(self):
            return state

        def on_step_begin(self, *args, **kwargs):
            pytest.fail("a step was begun")

    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, eval_strategy="no"), shapes, callbacks=[Counter()])
    with pytest.raises(TypeError, match=rf"Counter.state\(\) {message}"):
        trainer.train()


def test_a_resume_reads_each_file_once(two_checkpoints, tmp_path, tiny_model, shapes, monkeypatch):
    root, read = tmp_path / "run", []
    shutil.copytree(two_checkpoints, root)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    for reader in ("reading.safe_open", "tree.load_file", "reading.checksum"):
        name = f"rfdetr_hf.training.checkpoint.{reader}"
        inner = pytest.importorskip(name.rpartition(".")[0]).__dict__[name.rpartition(".")[2]]
        monkeypatch.setattr(name, lambda path, *more, inner=inner: read.append(Path(path).name) or inner(path, *more))
    args = arguments(root, max_steps=2, eval_strategy="no", save_strategy="no")
    trainer = RFDETRTrainer(tiny_model(), args, shapes)
    trainer.train(resume_from_checkpoint=True)
    large = [name for name in read if name.endswith(".safetensors")]
    assert sorted(large) == ["ema.safetensors", "model.safetensors", "rank-0.safetensors", "rank_states.safetensors"]
