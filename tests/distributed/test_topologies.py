"""The same training on one process and on two, in every way of spreading it."""

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import metrics_rows
from kill import differences
from launching import finish, launch, run, slow, start
from safetensors.torch import load_file

from rfdetr_hf import RFDETRForObjectDetection
from rfdetr_hf.training.preemption import EXIT_CODE

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or not (shutil.which("g++") and shutil.which("ninja")),
    reason="needs deepspeed, g++ and ninja",
)
ZERO = [pytest.param(f"zero{stage}", marks=[pytest.mark.slow, needs_deepspeed]) for stage in range(4)]
# Eight images a step on any number of processes. Both rates at 1e-4: rounding differs from one way of adding up to
# another, and a large rate lets the trainings drift apart.
ONE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CURVE = {"save_strategy": "steps", "save_steps": 20, "learning_rate": 1e-4, "learning_rate_encoder": 1e-4}


def record(job):
    return json.loads(Path(job["record"]).read_text())


@pytest.fixture(scope="module")
def reference(shared_job):
    """Builds the job of one process after its run; in float64, where rounding stays small, or in float32."""

    @functools.cache
    def ran(double):
        one = shared_job(f"one-{double}", double=double, options=CURVE | ONE)
        one["record"] = one["output_dir"] + ".json"
        run(one)
        return one

    return ran


def assert_same_training(one, other):
    """Losses, gradient norms, rates by name, weights and average of 20 steps agree to rounding."""
    ours, theirs = record(one), record(other)
    assert len(ours["losses"]) == 20
    tolerance = 1e-9 if one["double"] else 1e-4
    losses = [torch.tensor(each["losses"], dtype=torch.float64) for each in (theirs, ours)]
    torch.testing.assert_close(*losses, rtol=tolerance, atol=0)
    assert ours["rates"] == theirs["rates"] and len(set(ours["rates"].values())) > 3
    for file in ("checkpoint-20/ema.safetensors", "checkpoint-20/model.safetensors", "last/model.safetensors"):
        first, second = (load_file(Path(each["output_dir"]) / file) for each in (one, other))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            # Where a gradient is mostly rounding, AdamW makes steps of it as large as of any other: with ZeRO-3 in
            # float32 5 of 512 offsets differed by up to 2e-5, the median of them by 3e-8; 20 steps move them by 1e-3.
            atol = 1e-9 if one["double"] else 5e-5
            torch.testing.assert_close(second[name], tensor, rtol=10 * tolerance, atol=atol, msg=f"{file} {name}")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", *ZERO])
def test_two_processes_train_as_one(job, reference, tmp_path, kind):
    double = not kind.startswith("zero")
    two = job(kind, record=str(tmp_path / "two.json"), rank_seeds=True, double=double, options=CURVE | TWO)
    run(two, world=2, kind=kind)
    assert_same_training(reference(double), two)
    RFDETRForObjectDetection.from_pretrained(Path(two["output_dir"]) / "last")


@pytest.mark.slow
def test_adapters_train_on_two_processes_as_on_one(job, tmp_path):
    """The averaged weights included; the merged files are plain models."""
    pytest.importorskip("peft")
    lora = {"lora_r": 2, "max_steps": 4, "learning_rate": 1e-3, "learning_rate_encoder": 1e-3}
    names = ("checkpoint-4/ema.safetensors", "last/model.safetensors", "best/model.safetensors")
    runs = []
    for name, spread, kwargs in (("one", ONE, {}), ("two", TWO, {"world": 2, "kind": "ddp"})):
        options = lora | spread | {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
        made = job(name, rank_seeds=True, double=True, held_out=3, options=options)
        run(made, **kwargs)
        runs.append([load_file(Path(made["output_dir"]) / file) for file in names])
    for file, first, second in zip(names, *runs, strict=True):
        assert first.keys() == second.keys()
        assert any(".lora_" in key for key in first) == file.startswith("checkpoint")
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=1e-6, atol=1e-8, msg=f"{file} {key}")


@pytest.mark.slow
def test_two_launchers_train_as_one_process(job, reference, tmp_path):
    two = job("nodes", record=str(tmp_path / "two.json"), rank_seeds=True, double=True, options=CURVE | TWO)
    codes, outputs = finish(launch(two, nodes=2, processes=1))
    assert codes == [0, 0], outputs
    assert_same_training(reference(True), two)


@pytest.mark.parametrize("kind", [slow("ddp"), "fsdp2"])
def test_all_processes_skip_the_same_steps_on_the_device(job, kind):
    """One of them has a loss that is not finite; a checkpoint follows at once."""
    due = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "eval_strategy": "steps"}
    options = {"max_steps": 4, "logging_steps": 2, "eval_steps": 4, "learning_rate": 1e-4} | due | TWO
    jobs = []
    for by in ("device", "host"):
        jobs.append(job(by, held_out=1, skips={"rank": 1, "steps": [1, 3], "by": by}, options=options))
        assert run(jobs[-1], 2, kind)[0].count("skipped: loss or gradient") == 2
    for step in (2, 4):
        assert differences(*(each["output_dir"] for each in jobs), step) == []


def test_what_a_callback_of_one_process_asks_for_all_do(job):
    """It also lets its process know of a skipped step before the other does."""
    ask = {"rank": 0, "step": 2, "flags": ["should_log", "should_save", "should_evaluate", "should_training_stop"]}
    options = {"max_steps": 6, "logging_steps": 100, "save_total_limit": None} | TWO
    made = job("stopped", held_out=2, ask=ask, options=options)
    run(made, 2)
    assert (Path(made["output_dir"]) / "checkpoint-2").is_dir() and len(metrics_rows(made["output_dir"])) > 1
    made = job("broken", ask=ask | {"flags": []}, skips={"rank": 1, "steps": [1, 2], "by": "device"},
               options=options | {"max_skipped_steps": 2})  # fmt: skip
    codes, outputs = finish(start(made, 2))
    assert codes == [1, 1] and all("2 steps in a row had a non-finite loss" in output for output in outputs), outputs


@pytest.mark.parametrize(
    ("step", "event", "last", "options"),
    [
        slow(0, "on_evaluate", 0, {"eval_on_start": True}),
        slow(2, "on_save", 4, {"async_save": True, "save_strategy": "steps", "save_steps": 2}),
    ],
)
def test_all_end_where_an_evaluation_or_a_save_of_one_process_ends_the_run(job, step, event, last, options):
    ask = {"rank": 0, "step": step, "event": event, "flags": ["should_training_stop"]}
    made = job("asked", held_out=2, ask=ask, options={"max_steps": 8} | options | TWO)
    run(made, 2)
    assert json.loads((Path(made["output_dir"]) / "status.json").read_text())["step"] == last


@pytest.mark.parametrize("kind", [slow("ddp"), "fsdp2", *ZERO])
def test_a_group_moves_its_own_weights_and_no_others(job, tmp_path, kind):
    group = {"name": "encoder.layer.1.decay", "path": str(tmp_path / "moved.json")}
    options = {"max_steps": 2} | TWO
    run(job(kind, only_group=group, options=options), world=2, kind=kind)
    found = json.loads((tmp_path / "moved.json").read_text())
    assert found["moved"] == found["group"] and len(found["group"]) > 2


@pytest.mark.parametrize("kind", [slow("ddp"), "fsdp2", *ZERO])
def test_the_average_is_swapped_in_and_out_of_what_the_forward_pass_reads(job, tmp_path, kind):
    path = tmp_path / "swap.json"
    run(job(kind, swap=str(path), options={"max_steps": 3} | TWO), world=2, kind=kind)
    found = json.loads(path.read_text())
    assert found.pop("far") > 1e-3
    assert all(distance < 1e-5 for distance in found.values()), found


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_deepspeed_resumes_exactly_and_another_launch_goes_on(job, kind):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None} | TWO
    evaluated = {"held_out": 3, "options": options | {"eval_strategy": "steps", "eval_steps": 3}}
    whole, cut = job("whole", **evaluated), job("cut", **evaluated)
    run(whole, 2, kind)
    codes, outputs = finish(start(cut | {"signal": {"rank": 1, "step": 3, "name": "SIGTERM"}}, 2, kind))
    assert codes == [EXIT_CODE] * 2, outputs
    run(cut | {"resume": True}, 2, kind)
    assert differences(whole["output_dir"], cut["output_dir"], 6) == []
    outputs = run(cut | {"resume": True, "options": evaluated["options"] | {"max_steps": 8}}, 2, "ddp")
    assert "checkpoint-6 at step 6" in outputs[0] and (Path(cut["output_dir"]) / "checkpoint-8").is_dir()


@pytest.mark.parametrize("kind", [slow("ddp"), slow("fsdp2")])
def test_bf16_and_compiled_blocks_run(job, tmp_path, kind):
    options = {"max_steps": 2, "bf16": True, "torch_compile": True, "torch_compile_backend": "aot_eager"} | TWO
    run(job(kind, record=str(tmp_path / "record.json"), options=options | {"gradient_checkpointing": True}), 2, kind)
    assert len(json.loads((tmp_path / "record.json").read_text())["losses"]) == 2
