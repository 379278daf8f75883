import pytest
import torch
from accelerate import Accelerator

from rfdetr_hf.training.meters import LossMeter, Stopwatch


def step(meter, losses, norm=1.0):
    for loss in losses:
        terms = {"loss_ce": torch.tensor(loss / 2), "class_error": torch.tensor(10 * loss)}
        meter.add(torch.tensor(loss), terms, micro_batches=len(losses))
    meter.end_step(meter.take(), torch.tensor(norm))


def test_losses_add_up_over_micro_batches_and_errors_are_averaged():
    meter = LossMeter()
    step(meter, [1.0, 3.0], norm=2.0)
    step(meter, [4.0, 4.0], norm=4.0)
    assert meter.read(Accelerator()) == pytest.approx(
        {"loss": 6.0, "loss_ce": 3.0, "class_error": 30.0, "loss_now": 8.0, "grad_norm": 3.0}
    )
    meter.reset()
    assert meter.read(Accelerator()) == {}


def test_a_skipped_step_leaves_no_trace():
    meter = LossMeter()
    step(meter, [2.0])
    meter.add(torch.tensor(float("nan")), {"loss_ce": torch.tensor(1.0), "class_error": torch.tensor(1.0)}, 1)
    meter.take()
    step(meter, [4.0])
    assert meter.read(Accelerator())["loss"] == 3.0


def test_the_sums_survive_a_checkpoint():
    meter, again = LossMeter(), LossMeter()
    again.load_state_dict(meter.state_dict())
    assert again.read(Accelerator()) == {}
    step(meter, [2.0])
    again.load_state_dict(meter.state_dict())
    for each in (meter, again):
        step(each, [5.0])
    assert meter.read(Accelerator()) == again.read(Accelerator())


def test_stopwatch_leaves_pauses_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    watch.images, watch.steps, watch.waited, watch.paused = 40, 4, 2.0, 6.0
    now[0] += 16
    assert watch.read(torch.device("cpu"), steps_left=8) == {"images_per_second": 4.0, "data_wait": 0.2, "eta": 20.0}
    watch.reset()
    assert (watch.images, watch.start) == (0, 116.0)
