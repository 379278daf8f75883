"""What the jobs of `worker.py` let happen during a run."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback


class Record(TrainerCallback):
    """Writes the loss of each step and, at the end, the learning rate by parameter name."""

    def __init__(self, path, trainer):
        self.path, self.trainer, self.losses = Path(path), trainer, []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append([state.global_step, logs["loss"], logs["grad_norm"]])

    def on_train_end(self, args, state, control, **kwargs):
        groups = self.trainer.optimizer.param_groups
        rates = {name: group["lr"] for group in groups for name in group["param_names"]}
        self.path.write_text(json.dumps({"losses": self.losses, "rates": rates}))


class Signal(TrainerCallback):
    """Sends this process a signal at the end of a step."""

    def __init__(self, step, name):
        self.step, self.name = step, name

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), getattr(signal, self.name))


class SlowEvaluation(TrainerCallback):
    """Takes its time after each batch of the evaluation of a step, and tells that it has begun."""

    def __init__(self, path, step, seconds):
        self.path, self.step, self.seconds = Path(path), step, seconds

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.path.touch()
            time.sleep(self.seconds)


class Fail(TrainerCallback):
    """Raises at the end of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ValueError("this process has had enough")


class Ask(TrainerCallback):
    """Asks for something in an event of a step, on this process alone, and learns how each step went at once."""

    def __init__(self, step, flags, event="on_step_end"):
        self.step, self.flags = step, flags
        setattr(self, event, self._ask)

    def _ask(self, args, state, control, **kwargs):
        for flag in self.flags if state.global_step == self.step else ():
            setattr(control, flag, True)

    def on_optimizer_step(self, args, state, control, **kwargs):
        pass


class FailInEvaluation(TrainerCallback):
    """Raises in the evaluation of a step, while the other processes go on: with the inputs, in forward, or after it."""

    def __init__(self, trainer, step, where="after"):
        self.trainer, self.step, self.where = trainer, step, where
        if where == "inputs":
            trainer.to_device = self._before(trainer.to_device)

    def _raise(self):
        if self.trainer.state.global_step == self.step and not self.trainer.model.training:
            raise ValueError("this process cannot see")

    def _before(self, work):
        def failing(*given):
            self._raise()
            return work(*given)

        return failing

    def on_train_begin(self, args, state, control, **kwargs):
        if self.where == "forward":
            self.trainer.model.register_forward_pre_hook(lambda *_: self._raise())

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.where == "after":
            self._raise()


class OnlyGroup(TrainerCallback):
    """Sets every rate but one group's to zero, and checks at the end which weights have moved."""

    def __init__(self, trainer, group, path):
        self.trainer, self.group, self.path = trainer, group, Path(path)

    def _weights(self):
        from rfdetr_hf.training.checkpoint.sharded import saved_tensors, unsharded_state

        return {name: tensor.clone() for name, tensor in unsharded_state(saved_tensors(self.trainer.model)).items()}

    def on_train_begin(self, args, state, control, **kwargs):
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = group["lr"] if group["name"] == self.group else 0.0
            group["weight_decay"] = 0.0
        self.trainer.lr_scheduler.base_lrs = [group["lr"] for group in self.trainer.optimizer.param_groups]
        self.before = self._weights()

    def on_train_end(self, args, state, control, **kwargs):
        after = self._weights()
        moved = [name for name in after if not torch.equal(self.before[name], after[name])]
        names = next(g["param_names"] for g in self.trainer.optimizer.param_groups if g["name"] == self.group)
        if state.is_world_process_zero:
            self.path.write_text(json.dumps({"moved": sorted(moved), "group": sorted(names)}))


class Swap(TrainerCallback):
    """Compares the outputs of swapped and restored weights with a plain model that has them, after the last step."""

    def __init__(self, trainer, path):
        self.trainer, self.path = trainer, Path(path)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            self._compare(state.is_world_process_zero)

    def _compare(self, is_main):
        from rfdetr_hf.training.checkpoint.sharded import saved_tensors, unsharded_state

        trainer = self.trainer
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        tensors = saved_tensors(trainer.model)
        own, average = unsharded_state(tensors), unsharded_state(tensors, trainer.ema.state_dict())
        own = {name: tensor.clone() for name, tensor in own.items()}
        plain = trainer.weights.model_class(trainer.model.config).eval()
        wrapped = trainer.parallel.wrapped
        wrapped.eval()
        found = {"first": self._distance(wrapped, plain, own, pixels)}
        with trainer.ema.swap():
            found["swapped"] = self._distance(wrapped, plain, average, pixels)
            found["far"] = self._distance(wrapped, plain, own, pixels)
        found["restored"] = self._distance(wrapped, plain, own, pixels)
        if is_main:
            self.path.write_text(json.dumps(found))

    @staticmethod
    @torch.no_grad()
    def _distance(wrapped, plain, weights, pixels):
        plain.load_state_dict(weights)
        return (wrapped(pixels).logits - plain(pixels).logits).abs().max().item()


class SumAndDivide(TrainerCallback):
    """Has FSDP2 average gradients in two steps: asked for an average, torch 2.8's gloo gives the sum."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        for module in self.trainer.parallel.wrapped.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)


def events_of(job, trainer, rank):
    """The callbacks of a job on one rank."""
    events = [SumAndDivide(trainer)] if job.get("fsdp_on_cpu") else []
    if job.get("record") and rank == 0:
        events.append(Record(job["record"], trainer))
    if "signal" in job and rank == job["signal"]["rank"]:
        events.append(Signal(job["signal"]["step"], job["signal"]["name"]))
    if "slow_evaluation" in job:
        events.append(SlowEvaluation(**job["slow_evaluation"]))
    if "fail" in job and rank == job["fail"]["rank"]:
        events.append(Fail(job["fail"]["step"]))
    if "ask" in job and rank == job["ask"]["rank"]:
        events.append(Ask(**{name: value for name, value in job["ask"].items() if name != "rank"}))
    if "fail_in_evaluation" in job and rank == job["fail_in_evaluation"]["rank"]:
        events.append(FailInEvaluation(trainer, **{k: v for k, v in job["fail_in_evaluation"].items() if k != "rank"}))
    if "only_group" in job:
        events.append(OnlyGroup(trainer, job["only_group"]["name"], job["only_group"]["path"]))
    if "swap" in job:
        events.append(Swap(trainer, job["swap"]))
    return events
