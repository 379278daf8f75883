"""Rates that follow from others, and what a schedule takes."""

import pytest

from rfdetr_hf import RFDETRTrainingArguments
from rfdetr_hf.arguments.schedules import encoder_rate


def test_the_encoder_follows_the_rate_that_is_given():
    assert encoder_rate(RFDETRTrainingArguments(learning_rate=1e-6)) == 1.5e-6
    assert encoder_rate(RFDETRTrainingArguments(learning_rate=1e-6, learning_rate_encoder=1e-5)) == 1e-5
    run = RFDETRTrainingArguments(learning_rate=1e-6).for_run("detection")
    assert run.to_dict()["learning_rate_encoder"] == 1.5e-6
    assert RFDETRTrainingArguments().for_run("detection").learning_rate_encoder == 1.5e-4


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("warmup_stable_decay", None, 'needs lr_scheduler_kwargs={"num_decay_steps": …}'),
        ("polynomial", {"powr": 2}, "lr_scheduler_kwargs has 'powr', and .* takes lr_end, power"),
        ("constant_with_warmup", {"num_cycles": 2}, "lr_scheduler_kwargs has 'num_cycles'"),
    ],
)
def test_what_a_schedule_lacks_or_does_not_know_is_named_before_a_run(kind, options, message):
    with pytest.raises(ValueError, match=message):
        RFDETRTrainingArguments(lr_scheduler_type=kind, lr_scheduler_kwargs=options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "linear"}),
        ("inverse_sqrt", {"timescale": 10}),
        ("inverse_sqrt", None),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 0.5}),
        ("linear", {}),
    ],
)
def test_what_a_schedule_takes_is_taken(kind, options):
    assert RFDETRTrainingArguments(lr_scheduler_type=kind, lr_scheduler_kwargs=options).lr_scheduler_type == kind
