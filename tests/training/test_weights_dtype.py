"""Weights are trained in float32 whatever the type of the file."""

import json
import logging

import pytest
import torch
from helpers.runs import quick_arguments
from safetensors.torch import load_file

from rfdetr_hf import RFDETRForObjectDetection, RFDETRTrainer, RFDETRTrainingArguments, make_shapes_dataset


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_narrow_weights_are_widened_with_a_line(tiny_model, tmp_path, caplog, dtype):
    tiny_model().to(dtype).save_pretrained(tmp_path / "narrow")
    model = RFDETRForObjectDetection.from_pretrained(tmp_path / "narrow", dtype=dtype)
    assert model.dtype == dtype
    args = RFDETRTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, multi_scale="off", audit="off",
        dataloader_num_workers=0, eval_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        trainer = RFDETRTrainer(model, args, make_shapes_dataset(4))
        trainer.train()
    assert f"weights are {dtype}: they are trained and saved in float32" in caplog.text
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert {tensor.dtype for tensor in load_file(checkpoint / "model.safetensors").values()} == {torch.float32}
    assert json.loads((checkpoint / "config.json").read_text())["dtype"] == "float32"


def test_weights_that_are_narrowed_after_construction_are_widened_before_a_step(tiny_model, tmp_path, caplog):
    trainer = RFDETRTrainer(
        tiny_model(), quick_arguments(tmp_path, max_steps=1, eval_strategy="no"), make_shapes_dataset(4)
    )
    trainer.model.to(torch.bfloat16)
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert "weights are torch.bfloat16: they are trained and saved in float32" in caplog.text


def test_weights_of_float32_need_no_line(tiny_model, tmp_path, caplog):
    args = RFDETRTrainingArguments(output_dir=str(tmp_path / "run"), eval_strategy="no")
    RFDETRTrainer(tiny_model(), args, make_shapes_dataset(4))
    assert "float32" not in caplog.text


def test_weights_of_float64_stay_with_a_line(tiny_model, tmp_path, caplog):
    args = RFDETRTrainingArguments(output_dir=str(tmp_path / "run"), eval_strategy="no")
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        trainer = RFDETRTrainer(tiny_model().double(), args, make_shapes_dataset(4))
    assert trainer.model.dtype == torch.float64
    assert "the weights are torch.float64: they are trained and saved so" in caplog.text
