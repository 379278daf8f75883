"""Checkpoints taken up by the same and by other numbers of processes, notices of an early end, and failures."""

import re
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same, metrics_rows
from kill import differences, wait_for_training
from launching import finish, launch, run, slow, start
from safetensors.torch import load_file

from rfdetr_hf.training.preemption import EXIT_CODE

SAVING = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6, "save_total_limit": None}
ONE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
STARTUP = 60
MIDDLE = {"signal": {"rank": 0, "step": 5, "name": "SIGUSR1"}}


def assert_close(one, other, file="checkpoint-12/ema.safetensors"):
    ours, theirs = (load_file(Path(each["output_dir"]) / file) for each in (one, other))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def whole(shared_job):
    """An undisturbed run of one process."""
    one = shared_job("whole", options=SAVING | ONE)
    run(one)
    return one


@pytest.mark.parametrize(
    ("first", "then", "kind"), [(2, 1, "fsdp2"), (1, 2, "ddp"), slow(2, 1, "ddp"), slow(1, 2, "fsdp2")]
)
def test_save_under_some_processes_and_resume_under_others(job, whole, kind, first, then):
    options = {1: SAVING | ONE, 2: SAVING | TWO}
    cut = job("cut", **MIDDLE, options=options[first])
    codes, outputs = finish(start(cut, first, kind if first == 2 else "ddp"))
    assert codes == [EXIT_CODE] * first, outputs
    checkpoint = Path(cut["output_dir"]) / "checkpoint-6"
    sharded = kind == "fsdp2" and first == 2
    assert len(list(checkpoint.glob("optimizer/rank-*.safetensors"))) == (2 if sharded else 1)
    resumed = job("cut", resume=True, options=options[then])
    outputs = run(resumed, then, kind if then == 2 else "ddp")
    assert f"was written by {first} processes" in outputs[0]
    assert_close(whole, cut)
    assert_close(whole, cut, "last/model.safetensors")


@pytest.mark.parametrize(("world", "kind"), [slow(1, "ddp"), slow(2, "ddp"), (2, "fsdp2")])
def test_a_notice_saves_at_the_end_of_the_step_and_the_rest_keeps_every_bit(job, world, kind):
    options = {"logging_steps": 5, "eval_strategy": "steps", "eval_steps": 6, "drop_path": 0.1} | SAVING | TWO
    undisturbed, noticed = (job(name, held_out=5, options=options) for name in ("undisturbed", "noticed"))
    run(undisturbed, world, kind)
    # The notice of one rank is enough. It comes in the step after which an evaluation is due.
    signal = {"signal": {"rank": world - 1, "step": 5, "name": "SIGTERM"}}
    codes, outputs = finish(start(noticed | signal, world, kind))
    assert codes == [EXIT_CODE] * world
    assert "preempted: saved step 6; exit code 75" in outputs[0]
    run(noticed | {"resume": True}, world, kind)
    assert differences(undisturbed["output_dir"], noticed["output_dir"], 12) == []


def test_a_launcher_passes_the_notice_on_and_loader_workers_outlive_it(job):
    """A launcher signals whole process groups, workers of the loaders too."""
    options = {"max_steps": 2000, "dataloader_num_workers": 1, "save_strategy": "steps", "save_steps": 2000} | TWO
    long = job("long", options=options)
    launchers = launch(long, nodes=1, processes=2)
    wait_for_training(long["output_dir"], launchers)
    launchers[0].terminate()
    codes, outputs = finish(launchers)
    assert codes != [0] and "preempted: saved step" in outputs[0], outputs[0][-3000:]
    assert len(list(Path(long["output_dir"]).glob("checkpoint-*/manifest.json"))) == 1


def test_a_broken_checkpoint_is_passed_over_by_name(job):
    broken = job("broken", options={"max_steps": 6, "save_strategy": "steps", "save_steps": 3})
    run(broken)
    file = Path(broken["output_dir"]) / "checkpoint-6" / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    output = run(broken | {"resume": True})[0]
    assert "Skipping the checkpoint" in output and str(file) in output
    assert "checkpoint-3 at step 3" in output


@pytest.mark.parametrize("kind", [slow("ddp"), "fsdp2"])
def test_every_image_is_scored_once_whatever_the_tail(job, kind):
    """Three images on two processes in batches of one, then a single image: the second process has fewer, then none."""
    for images in (3, 1):
        options = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1}
        run(job(f"tail{images}", held_out=images, options=options | {"eval_raw_weights": True} | TWO), 2, kind)


def test_a_process_that_fails_takes_the_others_down(job):
    """Under the launcher, as users start it."""
    started = time.monotonic()
    codes, outputs = finish(launch(job("failing", fail={"rank": 1, "step": 2}, options=TWO), nodes=1, processes=2))
    assert codes != [0]
    first = outputs[0].index("this process has had enough")
    assert outputs[0].index("process 1 of 2 failed") < first
    others = [outputs[0].find(text) for text in ("Connection closed by peer", "process 0 of 2 failed")]
    assert all(position < 0 or position > first for position in others)
    assert time.monotonic() - started < 60 + STARTUP


@pytest.mark.parametrize(
    ("kind", "where"), [("ddp", "after"), slow("ddp", "forward"), slow("fsdp2", "after"), ("fsdp2", "inputs")]
)
def test_an_evaluation_that_fails_on_one_of_two_processes_costs_no_step(job, kind, where):
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1} | TWO
    undisturbed, failing = (job(name, held_out=6, options=options) for name in ("undisturbed", "failing"))
    run(undisturbed, 2, kind)
    codes, outputs = finish(start(failing | {"fail_in_evaluation": {"rank": 1, "step": 2, "where": where}}, 2, kind))
    assert codes == [1, 1], outputs
    assert all("ValueError: this process cannot see" in output for output in outputs)
    run(failing | {"resume": True}, 2, kind)
    last = [load_file(Path(each["output_dir"]) / "last" / "model.safetensors") for each in (undisturbed, failing)]
    assert_same(*last)
    assert metrics_rows(undisturbed["output_dir"]) == metrics_rows(failing["output_dir"])


@pytest.mark.parametrize("kind", ["fsdp2", slow("zero3")])
def test_a_forward_pass_of_all_that_fails_on_one_process_says_that_there_is_no_checkpoint(job, kind):
    options = {
        "max_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
    } | TWO
    failing = job("failing", held_out=6, options=options)
    where = {"fail_in_evaluation": {"rank": 1, "step": 2, "where": "forward"}}
    codes, outputs = finish(start(failing | where, 2, kind))
    assert all(codes) and "ValueError: this process cannot see" in outputs[1], outputs
    told = (
        r"evaluation of step 2 failed on process 1 of 2, .* no checkpoint of this step .* resume from .*checkpoint-1\n"
    )
    assert re.search(told, outputs[1]), outputs[1]
    assert not (Path(failing["output_dir"]) / "checkpoint-2").exists()
