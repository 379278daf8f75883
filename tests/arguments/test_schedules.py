"""Rates that follow from others, and what a schedule takes."""

from rfdetr_hf import RFDETRTrainingArguments
from rfdetr_hf.arguments.schedules import encoder_rate


def test_the_encoder_follows_the_rate_that_is_given():
    assert encoder_rate(RFDETRTrainingArguments(learning_rate=1e-6)) == 1.5e-6
    assert encoder_rate(RFDETRTrainingArguments(learning_rate=1e-6, learning_rate_encoder=1e-5)) == 1e-5
    run = RFDETRTrainingArguments(learning_rate=1e-6).for_run("detection")
    assert run.to_dict()["learning_rate_encoder"] == 1.5e-6
    assert RFDETRTrainingArguments().for_run("detection").learning_rate_encoder == 1.5e-4
