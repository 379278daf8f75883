"""What a run goes on from, what it refuses, and what it tells."""

import logging
import shutil
from functools import partial

import pytest
import torch
from helpers.checkpoints import arguments, finish, rewrite
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rfdetr_hf import RFDETRImageProcessor, RFDETRTrainer, load_detection_dataset
from rfdetr_hf.training.checkpoint.tree import from_json


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
