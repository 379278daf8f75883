"""What a run says before its first step."""

import logging

import pytest
import torch
from helpers.models import tiny_model as build
from helpers.runs import quick_arguments as arguments

from rfdetr_hf import RFDETRConfig, RFDETRForObjectDetection, RFDETRTrainer, make_shapes_dataset
from rfdetr_hf.training.startup import _variants

SHAPES = 8


def test_the_lines_hold_what_decides_the_run(tmp_path, shapes, caplog):
    saved = build(names=("circle", "zebra"))
    saved.save_pretrained(tmp_path / "model")
    model = RFDETRForObjectDetection.from_pretrained(
        tmp_path / "model", id2label=dict(enumerate(["circle", "square", "triangle"]))
    )
    args = arguments(
        tmp_path / "run", max_steps=3, gradient_accumulation_steps=2, warmup_steps=1, learning_rate=1e-4,
        eval_strategy="no", save_strategy="steps", save_steps=3, logging_steps=1,
    )  # fmt: skip
    trainer = RFDETRTrainer(model, args, shapes, test_dataset=make_shapes_dataset(3, image_size=64, seed=2))
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        trainer.train()
    messages = caplog.messages
    first = next(n for n, message in enumerate(messages) if message.startswith("device "))
    block = messages[first : next(n for n, each in enumerate(messages) if each.startswith("step 1/3"))]
    lines = {line.split()[0]: line for line in block}
    written = (tmp_path / "run" / "train.log").read_text()
    assert 8 <= len(lines) <= 12 and all(f" {line}\n" in written for line in block)
    parameters = sum(each.numel() for each in trainer.model.state_dict().values())
    objects = sum(len(row["category"]) for row in shapes["objects"])
    for name, part in (
        ("device", "cpu ("), ("device", "; float32"), ("model", f"RFDETRForObjectDetection, {parameters / 1e6:.1f} M"),
        ("model", "64 x 64 pixels"), ("weights", f"{tmp_path / 'model'}; class rows: kept 1, new 2 (square, triangle)"),
        ("data", f"train 8 images, {objects} boxes, 0% background; test 3 images"), ("data", "3 classes: "),
        ("batch", "4 images a step = 2 on a device x 2 micro-batches x 1 process, loaded by the process"),
        ("steps", f"{trainer.state.steps_per_epoch} an epoch, 3 in all"),
        ("lr", "head 1.0e-04, encoder "), ("lr", "decoder 7.0e-05; schedule constant, warm-up 1 step"),
        ("memory", " MB = weights 0.4 MB + gradients 0.4 MB + AdamW 0.8 MB + EMA 0.4 MB; not counted"),
        ("output", f"{tmp_path / 'run'}: a checkpoint every 3 steps ("), ("output", "no best/ without evaluations"),
    ):  # fmt: skip
        assert part in lines[name], (part, lines[name])
    line = next(message for message in messages if message.startswith("step 2/3"))
    now, average = (float(line.split(f" {word} ")[1].split()[0]) for word in ("loss", "avg"))
    terms = line.split(" = ")[1].split(" | ")[0].split(" + ")
    assert now == average == pytest.approx(sum(float(term.split()[1]) for term in terms), rel=1e-2)


@pytest.mark.parametrize(("make", "schedule", "kept", "left"), [
    (torch.optim.SGD, "MultiStepLR", "", "what SGD keeps, and "), (torch.optim.Adam, "", "Adam ", ""),
])  # fmt: skip
def test_an_optimizer_and_a_schedule_of_the_user_are_called_so(tmp_path, shapes, caplog, make, schedule, kept, left):
    model = build()
    optimizer = make(model.parameters(), lr=1e-3)
    given = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6]) if schedule else None
    args = arguments(tmp_path, max_steps=1, warmup_steps=1, eval_strategy="no", save_strategy="no")
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        RFDETRTrainer(model, args, shapes, optimizers=(optimizer, given)).train()
    rates, memory = (next(m for m in caplog.messages if m.startswith(name)) for name in ("lr ", "memory "))
    assert rates.endswith(f"given optimizer 1.0e-03; schedule {schedule or 'constant, warm-up 1 step'}")
    assert f"not counted: {left}activations" in memory and "AdamW" not in memory and kept in memory


@pytest.mark.parametrize("variant", RFDETRConfig.variants())
def test_variants_are_recognised(variant):
    config = RFDETRConfig.from_variant(variant)
    task = RFDETRConfig.variants()[variant].task
    assert _variants(config, task) == [variant]
    assert variant in _variants(config.with_fields(resolution=2 * config.resolution), task)
    assert not _variants(config.with_fields(num_queries=7), task)
