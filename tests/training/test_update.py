"""A skip decided on the device comes out as one that the host decides; a CPU's kernels heed the flag too."""

import json
import logging
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import assert_same, quick_arguments, weights
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import TrainerCallback

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.optimization import FusedAdamW
from rfdetr_hf.training.parallel import Parallel
from rfdetr_hf.training.update import Flag

SHAPES = 16
arguments = partial(
    quick_arguments, max_steps=8, gradient_accumulation_steps=2, logging_steps=3, save_strategy="steps", save_steps=4,
    save_total_limit=None, eval_strategy="no", lr_scheduler_type="cosine", learning_rate=1e-3, ema_tau=4,
)  # fmt: skip


class Broken(RFDETRTrainer):
    """The loss of the steps `no_loss`, or a gradient of `no_gradient`, is NaN."""

    no_loss = no_gradient = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True)
        if self.state.global_step in self.no_loss:
            loss = loss * math.nan
        if self.state.global_step in self.no_gradient:
            loss = loss + (0 * self.model.class_embed.bias.sum()).sqrt()
        return loss, outputs


@pytest.fixture
def settled(monkeypatch):
    """The steps that were counted when the host asked whether one was skipped, of the runs of `run`."""
    asked, ask = [], Flag.__bool__
    monkeypatch.setattr(Flag, "__bool__", lambda self: asked.append(asked[0].global_step) or ask(self))
    return asked


def run(folder, model, data, settled, resume=None, callbacks=(), **bad):
    options = {name: bad.pop(name) for name in list(bad) if not name.startswith("no_")}
    trainer = Broken(model, arguments(folder, **options), data, callbacks=list(callbacks))
    vars(trainer).update(bad)
    settled[:] = [trainer.state]
    trainer.train(resume)
    return trainer


def checkpoint(folder, step):
    """What `checkpoint-<step>` holds, but for paths and times."""
    at = folder / f"checkpoint-{step}"
    tensors = {}
    for name in ("model", "ema", "optimizer/rank-0", "rank_states"):
        tensors |= {f"{name}: {key}": value for key, value in load_file(at / f"{name}.safetensors").items()}
    progress = json.loads((at / "progress.json").read_text())
    del progress["arguments"], progress["seconds"]
    return tensors, progress, (at / "scheduler.json").read_text()


def assert_equal_runs(one, two, *steps):
    for step in steps:
        (first, *ours), (second, *theirs) = checkpoint(one, step), checkpoint(two, step)
        assert_same(first, second)
        assert ours == theirs
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()


# The first step, two in a row with a log event between them, after which comes a checkpoint, and the last step.
BAD = {"no_loss": (0, 3), "no_gradient": (2, 7)}


@pytest.mark.parametrize("bad", [{}, BAD], ids=["finite", "not finite"])
def test_a_skip_on_the_device_comes_out_as_one_by_the_host(tmp_path, tiny_model, shapes, settled, monkeypatch, bad):
    late = run(tmp_path / "late", tiny_model(), shapes, settled, **bad)
    assert late.parallel.skips_on_device
    # Each when the next step has been queued, or at a log event or checkpoint.
    assert settled[1:] == [1, 2, 3, 4, 5, 6, 7, 8] and late.state.skipped_steps == sum(map(len, bad.values()))
    monkeypatch.setattr(Parallel, "skips_on_device", False)
    at_once = run(tmp_path / "at once", tiny_model(), shapes, settled, **bad)
    assert settled[1:3] == [0, 0]  # by the update, and what follows it
    assert_equal_runs(tmp_path / "late", tmp_path / "at once", 4, 8)
    assert_same(weights(late.model), weights(at_once.model))
    assert late.state.log_history[-1]["train_skipped_steps"] == late.state.skipped_steps


class Die(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("async_save", [False, True])
def test_a_run_killed_at_the_save_after_a_skip_goes_on_exactly(tmp_path, tiny_model, shapes, settled, async_save):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"async_save": async_save} | BAD
    run(whole, tiny_model(), shapes, settled, **options)
    with pytest.raises(KeyboardInterrupt):
        run(killed, tiny_model(), shapes, settled, callbacks=[Die()], **options)
    run(killed, tiny_model(), shapes, settled, resume=str(killed / "checkpoint-4"), **options)
    assert_equal_runs(whole, killed, 4, 8)


def test_moments_of_a_resume_lie_in_memory_as_the_weights_do(tmp_path, tiny_model, shapes, settled):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def model():
        return tiny_model().to(memory_format=torch.channels_last)

    run(whole, model(), shapes, settled)
    with pytest.raises(KeyboardInterrupt):
        run(killed, model(), shapes, settled, callbacks=[Die()])
    run(killed, model(), shapes, settled, resume=str(killed / "checkpoint-4"))
    assert_equal_runs(whole, killed, 4, 8)


def test_too_many_skips_name_step_and_images_also_one_step_late(tmp_path, tiny_model, shapes, settled, caplog):
    messages = []
    options = {"max_skipped_steps": 2, "no_loss": (1, 4, 5)}
    caplog.set_level(logging.WARNING, logger="rfdetr_hf")
    for folder, callbacks in (("late", []), ("at once", [Listen("on_optimizer_step")])):
        with pytest.raises(RuntimeError, match="2 steps in a row") as e:
            run(tmp_path / folder, tiny_model(), shapes, settled, callbacks=callbacks, **options)
        skips = [text for text in caplog.messages if "skipped: loss or gradient" in text]
        messages.append([str(e.value), *skips])
        caplog.clear()
    assert messages[0] == messages[1] and len(messages[0]) == 4
    assert messages[0][-1].startswith("step 6 skipped") and messages[0][-1].split("images ")[1] in messages[0][0]


class Listen(TrainerCallback):
    """Notes at an event of each step how many were skipped, and where the schedule stands."""

    def __init__(self, event):
        self.seen = []
        setattr(self, event, self.note)

    def note(self, args, state, control, lr_scheduler=None, **kwargs):
        self.seen.append((state.skipped_steps, lr_scheduler.last_epoch))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ("on_step_end", [(1, 0), (1, 1), (2, 1), (2, 2)]),
        ("on_step_begin", [(0, 0), (1, 0), (1, 1), (2, 1)]),
        ("on_optimizer_step", [(1, 0), (2, 1)]),
    ],
)
def test_who_listens_to_steps_sees_them_settled(tmp_path, tiny_model, shapes, settled, event, expected):
    callback, options = Listen(event), {"max_steps": 4, "logging_steps": 9}
    run(tmp_path, tiny_model(), shapes, settled, callbacks=[callback], no_loss=(0, 2), **options)
    assert callback.seen == expected
    # At once, or when the next step begins.
    assert settled[1:] == ([1, 2, 3, 4] if event != "on_optimizer_step" else [0, 1, 2, 3])


def test_the_average_is_that_of_the_latest_step_within_the_next(tmp_path, tiny_model, shapes, settled):
    seen = []

    class Teacher(Broken):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.append(self.ema.num_updates)
            return super().compute_loss(model, inputs, return_outputs)

    trainer = Teacher(tiny_model(), arguments(tmp_path, max_steps=3), shapes)
    trainer.no_loss = (1,)
    settled[:] = [trainer.state]
    trainer.train()
    assert seen == [0, 0, 1, 1, 1, 1]


def test_a_loss_of_ones_own_sees_the_state_settled(tmp_path, tiny_model, shapes, settled):
    seen = []

    class Looks(Broken):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.append((self.state.skipped_steps, self.lr_scheduler.last_epoch, self.get_learning_rates()[0]))
            return super().compute_loss(model, inputs, return_outputs)

    options = {"gradient_accumulation_steps": 1, "warmup_steps": 4, "max_steps": 4}
    trainer = Looks(tiny_model(), arguments(tmp_path, **options), shapes)
    trainer.no_loss = (1,)
    settled[:] = [trainer.state]
    trainer.train()
    assert [each[:2] for each in seen] == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert seen[1][2] == seen[2][2] > seen[0][2]


@pytest.mark.parametrize("skipped", [False, True])
def test_the_rates_are_those_after_the_latest_step(tmp_path, tiny_model, shapes, settled, skipped):
    rates = []

    class Asks(Broken):
        def training_step(self, window, state):
            result = super().training_step(window, state)
            rates.append(self.get_learning_rates()[0])
            return result

    options = {"gradient_accumulation_steps": 1, "warmup_steps": 4, "max_steps": 3}
    trainer = Asks(tiny_model(), arguments(tmp_path, **options), shapes)
    trainer.no_loss = (1,) if skipped else ()
    settled[:] = [trainer.state]
    trainer.train()
    assert (rates[0] == rates[1]) == skipped


class Own(torch.optim.AdamW):
    """Somebody's, whose step may not know the flag."""


@pytest.mark.parametrize(
    ("make", "possible"),
    [
        (partial(FusedAdamW, fused=True), True),
        (partial(torch.optim.AdamW, fused=True), True),
        (partial(torch.optim.Adam, fused=True), True),
        (torch.optim.AdamW, False),
        (partial(torch.optim.SGD, lr=0.1, fused=True), False),
        (partial(Own, fused=True), False),
    ],
)
def test_only_kernels_that_heed_the_flag_skip_on_the_device(make, possible):
    def skips(scaler=None, device="cpu"):
        accelerator = SimpleNamespace(num_processes=1, scaler=scaler, device=torch.device(device))
        parallel = Parallel(accelerator, SimpleNamespace(), torch.nn.Linear(2, 2))
        parallel.optimizer = optimizer
        return parallel.skips_on_device

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make([{"params": []}, {"params": [weight]}])
    assert skips() == skips(device="cuda") == possible
    assert not skips(torch.amp.GradScaler("cpu")) and not skips(device="mps")
    # A step that is none on the device would call the hooks all the same, also those of all optimizers.
    every = register_optimizer_step_pre_hook, register_optimizer_step_post_hook
    for register in (*every, optimizer.register_step_post_hook):
        hook = register(lambda *_: None)
        assert not skips()
        hook.remove()
    assert skips() == possible
    if possible:
        parallel = Parallel(SimpleNamespace(num_processes=1, scaler=None), SimpleNamespace(), torch.nn.Linear(2, 2))
        parallel.optimizer = optimizer
        for skip, expected in ((0, False), (1, True)):
            weight.grad, before = torch.full((2,), 1.0 if not skip else math.nan), weight.detach().clone()
            parallel.step(torch.tensor(float(skip)))
            assert torch.equal(weight, before) == expected and optimizer.state[weight]["step"] == 1
            assert weight.grad is None and not hasattr(optimizer, "found_inf")
        optimizer.register_step_post_hook(lambda *_: None)
        assert not skips()
