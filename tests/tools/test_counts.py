"""What a step costs a GPU may only fall. Where a change comes from: `benchmarks/counts.py --rows nano-b4 --parts`."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from helpers.scripts import load_script

# The most launches, GB of memory traffic, GB saved outside the encoder and waits of a step with 10 objects an image.
BOUNDS = {
    "nano-b4": (1200, 15.0, 0.62, 1),
    "medium-b16": (1395, 107.2, 4.60, 1),
    "seg-medium-b4": (2288, 52.0, 2.17, 1),
    "keypoint-b4": (2357, 99.7, 5.65, 1),
}
SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def counts():
    return load_script("benchmarks/counts.py")


@pytest.mark.parametrize("name", [pytest.param(row, marks=() if row == "nano-b4" else SLOW) for row in BOUNDS])
def test_a_step_costs_no_more_than_before(counts, name):
    row, (ops, traffic, saved, waits) = counts.count_step(counts.ROWS[name], objects=10), BOUNDS[name]
    assert ops * 0.95 < row["ops"] <= ops, "lower the bound" if row["ops"] <= ops else "more launches"
    assert row["gb"] <= traffic
    assert row["saved_rest_gb"] <= saved
    assert row["waits"] <= waits
    assert row["ops"] == sum(part["ops"] for part in row["parts"].values())


def test_no_wait_where_the_device_solves(counts, monkeypatch):
    solver = SimpleNamespace(batch_linear_assignment=lambda cost: cost.new_zeros(cost.shape[:2], dtype=torch.int64))
    monkeypatch.setitem(sys.modules, "torch_linear_assignment", solver)
    monkeypatch.setattr(counts.matcher, "use_batched_solver", lambda device: True)
    assert counts.count_step(counts.Row("nano", 1), objects=2)["waits"] == 0


def test_ways_that_cannot_be_counted_are_left_out(counts, capsys):
    args = Namespace(rows=["keypoint-b4"], ways=["transformers"], objects=10, parts=False, json=False)
    assert not counts.print_table(args)
    assert capsys.readouterr().err == "keypoint-b4, transformers: left out, transformers has no keypoint model\n"


@pytest.mark.slow
def test_a_step_costs_less_than_that_of_transformers(counts, capsys):
    args = Namespace(rows=["nano-b4"], ways=["ours", "transformers"], objects=10, parts=False, json=False)
    ours, theirs = counts.print_table(args)["nano-b4"].values()
    assert ours["ops"] < 0.4 * theirs["ops"] and ours["waits"] < theirs["waits"]
    assert ours["gflop"] <= theirs["gflop"] and ours["saved_rest_gb"] < 0.7 * theirs["saved_rest_gb"]
    assert f"{ours['ops'] / theirs['ops']:.2f}" in capsys.readouterr().out.splitlines()[-1].split()


def test_what_is_counted(counts):
    counter = counts.Counts()
    with counts.as_on_a_gpu(counter), counter:
        weight = torch.nn.Parameter(torch.empty(4, 3))
        x = torch.empty(5, 4)
        counter.part = "forward"
        with torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor):
            y = (x @ weight).relu().view(15)[:10]
        counter.part = "backward"
        y.sum().backward()
        counter.part = "read"
        float(y.detach().sum())
    row = counts.summary(counter, counter.saved_bytes([weight]))
    forward, backward, read = (row["parts"][part] for part in ("forward", "backward", "read"))
    assert forward["names"] == {"mm": 1, "relu": 1}
    assert forward["gflop"] == pytest.approx(2 * 5 * 4 * 3 / 1e9)
    assert forward["gb"] == pytest.approx(4 * (5 * 4 + 4 * 3 + 5 * 3 + 2 * 5 * 3) / 1e9)
    assert forward["saved_gb"] == pytest.approx(4 * (5 * 4 + 5 * 3) / 1e9)  # x and the output of relu, not the weight
    assert {"sum", "mm", "threshold_backward"} <= set(backward["names"])
    assert row["waits"] == 1 and read["names"] == {"sum": 1, "_local_scalar_dense": 1}
    assert type(torch.empty(2)) is torch.Tensor  # nothing is fake any more
