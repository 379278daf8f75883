"""`mixed_precision: auto` on machines that are made up here, and what a resumed run computes in."""

import json
import logging

import pytest
import torch
from helpers.runs import quick_arguments as arguments

from rfdetr_hf import RFDETRTrainer, RFDETRTrainingArguments
from rfdetr_hf.training import precision
from rfdetr_hf.training.precision import keep_precision, settle_precision

SHAPES = 4


@pytest.fixture
def machine(monkeypatch):
    """A machine of a device and of a launcher: `machine("cuda", bf16=False, launcher="no")`."""

    def make(device, bf16=True, launcher=None, **environment):
        monkeypatch.setattr(precision, "_device", lambda: torch.device(device))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED"):
            monkeypatch.delenv(name, raising=False)
        given = environment | ({} if launcher is None else {"ACCELERATE_MIXED_PRECISION": launcher})
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    ("device", "bf16", "launcher", "options", "found"),
    [
        ("cuda", True, None, {}, "bf16"),
        ("cuda", False, None, {}, "fp16"),  # T4, V100
        ("cuda", False, "no", {}, "fp16"),  # what a launcher says that nobody told anything
        ("cuda", False, "bf16", {}, "bf16"),
        ("cuda", True, "bf16", {"mixed_precision": "no"}, "no"),
        ("cuda", True, "bf16", {"fp16": True}, "fp16"),
        ("xpu", True, None, {}, "bf16"),
        ("mps", True, None, {}, "no"),
        ("cpu", True, None, {}, "no"),
        ("cpu", True, "bf16", {}, "bf16"),
        ("cpu", True, None, {"mixed_precision": "bf16"}, "bf16"),
    ],
)
def test_arguments_come_before_the_launcher_and_the_launcher_before_the_device(
    machine, caplog, device, bf16, launcher, options, found
):
    machine(device, bf16, launcher)
    args = RFDETRTrainingArguments(**options)
    assert settle_precision(args) == (not options and launcher in (None, "no"))
    assert (args.mixed_precision, args.bf16, args.fp16) == (found, found == "bf16", found == "fp16")
    named = f"mixed_precision: {found} of the arguments wins over {launcher} of the launcher" in caplog.text
    assert named == (launcher == "bf16" and found != "bf16")
    assert RFDETRTrainingArguments(**{"mixed_precision": found, "bf16": args.bf16, "fp16": args.fp16})


def test_fp16_is_not_chosen_where_it_is_refused(machine):
    machine("cuda", bf16=False, ACCELERATE_USE_DEEPSPEED="true")
    settle_precision(args := RFDETRTrainingArguments())
    assert args.mixed_precision == "no"


@pytest.mark.parametrize(
    ("written", "device", "now", "kept", "message"),
    [
        ({"bf16": True}, "cpu", "no", "bf16", "goes on in bf16, as it began; on this device auto would take float32"),
        ({"fp16": True}, "cuda", "bf16", "fp16", "goes on in fp16, as it began; on this device auto would take bf16"),
        ({"bf16": False}, "cuda", "bf16", "no", "goes on in float32, as it began"),
        ({"fp16": True}, "cpu", "no", "no", "was in fp16, which a CPU does not have; it goes on in float32"),
        ({"bf16": True}, "cuda", "bf16", "bf16", ""),
    ],
)
def test_a_resumed_run_keeps_its_precision(tmp_path, caplog, written, device, now, kept, message):
    (tmp_path / "progress.json").write_text(json.dumps({"arguments": written}))
    args = RFDETRTrainingArguments(mixed_precision=now)
    assert keep_precision(args, tmp_path, torch.device(device)) == (kept != now)
    assert args.mixed_precision == kept and message in caplog.text and bool(message) == bool(caplog.records)


def test_a_run_resumes_in_the_precision_of_its_checkpoint(tmp_path, tiny_model, shapes, caplog):
    """The second part would run in float32 on this CPU by itself."""
    steps = {"gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    RFDETRTrainer(tiny_model(), arguments(tmp_path, max_steps=1, mixed_precision="bf16", **steps), shapes).train()
    with caplog.at_level(logging.WARNING):
        trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, max_steps=2, **steps), shapes)
        assert trainer.args.mixed_precision == "no"
        dtypes = []
        trainer.model.class_embed.register_forward_hook(lambda module, given, out: dtypes.append(out.dtype))
        trainer.train(resume_from_checkpoint=True)
    assert set(dtypes) == {torch.bfloat16} and trainer.accelerator.mixed_precision == "bf16"
    changed = next(message for message in caplog.messages if "arguments changed" in message)
    assert "goes on in bf16" in caplog.text and "precision" not in changed and "bf16" not in changed
    assert trainer.state.identity["arguments"]["mixed_precision"] == "bf16"
