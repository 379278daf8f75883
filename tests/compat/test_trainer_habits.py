"""Scripts written for transformers' Trainer find what they use: arguments, attributes, logs, metrics and callbacks."""

import math
from functools import partial

import pytest
import torch
import transformers
from helpers.runs import quick_arguments
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from rfdetr_hf import RFDETRImageProcessor, RFDETRTrainer, make_shapes_dataset

SHAPES = 8
arguments = partial(
    quick_arguments, gradient_accumulation_steps=2, logging_steps=1, max_steps=3, save_strategy="no", eval_strategy="no"
)


class Seen(TrainerCallback):
    """What each event came with."""

    def __init__(self):
        self.events, self.logs, self.kwargs = [], [], {}

    def on_event(self, name, args, state, control, **kwargs):
        self.events.append(name)
        self.kwargs[name] = kwargs
        self.args = args
        if name == "on_log":
            self.logs.append(dict(kwargs["logs"]))


for _name in [name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_event"]:
    setattr(Seen, _name, lambda self, *a, _name=_name, **k: self.on_event(_name, *a, **k))


def test_the_run_ends_with_a_log_of_loss_time_and_speed(tmp_path, tiny_model, shapes):
    seen = Seen()
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, callbacks=[seen])
    output = trainer.train()
    names = {"train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    assert names <= seen.logs[-1].keys() and names <= output.metrics.keys()
    assert output.metrics["train_loss"] == pytest.approx(output.training_loss)
    assert output.metrics["train_steps_per_second"] == pytest.approx(3 / output.metrics["train_runtime"], rel=0.01)
    images = 3 * 2 * 2
    assert output.metrics["train_samples_per_second"] == pytest.approx(
        images / output.metrics["train_runtime"], rel=0.01
    )
    last = trainer.state.log_history[-1]
    assert names <= last.keys() and last["step"] == 3
    trainer.log_metrics("train", output.metrics)
    trainer.save_metrics("train", output.metrics)
    trainer.save_state()
    assert {"train_results.json", "all_results.json", "trainer_state.json"} <= {p.name for p in tmp_path.iterdir()}


def test_an_evaluation_tells_its_speed(tmp_path, tiny_model, shapes):
    metrics = RFDETRTrainer(tiny_model(), arguments(tmp_path), eval_dataset=shapes).evaluate()
    assert metrics["eval_samples_per_second"] == pytest.approx(8 / metrics["eval_runtime"], rel=0.01)
    assert metrics["eval_steps_per_second"] == pytest.approx(4 / metrics["eval_runtime"], rel=0.01)


def test_several_evaluation_splits(tmp_path, tiny_model, shapes):
    """A dict of splits: each under its name, as in transformers."""
    splits = {"near": shapes, "far": make_shapes_dataset(4, image_size=64, seed=5)}
    seen = Seen()
    trainer = RFDETRTrainer(
        tiny_model(),
        arguments(tmp_path, eval_strategy="steps", eval_steps=3, metric_for_best_model="near_map"),
        shapes,
        splits,
        callbacks=[seen],
    )
    trainer.train()
    names = {name for logs in seen.logs for name in logs}
    assert {"eval_near_map", "eval_far_map", "eval_near_runtime"} <= names
    metrics = trainer.evaluate()
    assert {"eval_near_map", "eval_far_map"} <= metrics.keys()
    assert "eval_map" in trainer.evaluate(splits["far"])


def test_loaders_without_an_argument(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, shapes)
    assert sum(len(batch["pixel_values"]) for batch in trainer.get_eval_dataloader()) == 8
    assert sum(len(batch["pixel_values"]) for batch in trainer.get_eval_dataloader(shapes.select(range(3)))) == 3
    assert sum(len(batch["pixel_values"]) for batch in trainer.get_test_dataloader(shapes.select(range(5)))) == 5
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["pixel_values"]) == 2
    assert trainer.num_examples(trainer.get_eval_dataloader()) == 8


def test_the_processor_by_its_name_in_transformers(tmp_path, tiny_model, shapes):
    processor = RFDETRImageProcessor(size={"height": 64, "width": 64}, image_mean=[0.4, 0.4, 0.4])
    seen = Seen()
    trainer = RFDETRTrainer(
        tiny_model(), arguments(tmp_path), shapes, shapes, processing_class=processor, callbacks=[seen]
    )
    assert trainer.processing_class is processor
    trainer.train()
    assert seen.kwargs["on_step_end"]["processing_class"] is processor
    trainer.save_model(str(tmp_path / "saved"))
    assert list(RFDETRImageProcessor.from_pretrained(tmp_path / "saved").image_mean) == [0.4, 0.4, 0.4]


def test_an_optimizer_and_a_schedule_of_ones_own(tmp_path, tiny_model, shapes):
    model = tiny_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    trainer = RFDETRTrainer(model, arguments(tmp_path, use_ema=False), shapes, optimizers=(optimizer, schedule))
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert len(rates) == 3 and rates[0] in (0.5, pytest.approx(0.05)) and rates[1] == pytest.approx(rates[0] / 10)
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert inner is optimizer and trainer.lr_scheduler is not None


def test_a_model_made_by_the_trainer(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(args=arguments(tmp_path), train_dataset=shapes, model_init=lambda: tiny_model(seed=3))
    assert torch.equal(trainer.model.query_feat.weight, tiny_model(seed=3).query_feat.weight)
    assert math.isfinite(trainer.train().training_loss)


def test_what_callbacks_read_of_the_arguments(tmp_path, tiny_model, shapes):
    seen = Seen()
    RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, callbacks=[seen]).train()
    args = seen.args
    assert args.device.type in ("cpu", "cuda", "mps")
    assert (args.world_size, args.process_index, args.local_process_index) == (1, 0, 0)
    assert args.n_gpu in (0, 1) and args.train_batch_size == 2 and args.eval_batch_size == 2
    assert args.should_save is True and args.should_log is True
    assert isinstance(args.to_dict(), dict) and isinstance(args.to_json_string(), str)
    for name in ("model", "optimizer", "lr_scheduler", "train_dataloader"):
        assert seen.kwargs["on_step_end"][name] is not None, name


def test_callbacks_hear_the_events_of_a_run(tmp_path, tiny_model, shapes):
    seen = Seen()
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="steps", save_steps=3)
    RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[seen]).train()
    for name in ("on_init_end", "on_train_begin", "on_evaluate", "on_save", "on_train_end"):
        assert seen.events.count(name) == 1, name
    assert seen.events.count("on_step_begin") == seen.events.count("on_step_end") == 3
    assert seen.events.count("on_substep_end") == 3
    assert seen.events.count("on_pre_optimizer_step") == seen.events.count("on_optimizer_step") == 3
    assert seen.events.index("on_evaluate") < seen.events.index("on_save")
    assert seen.events[-1] == "on_train_end"


def test_callbacks_are_added_found_and_removed(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, shapes)
    trainer.add_callback(Seen)
    found = trainer.pop_callback(Seen)
    assert isinstance(found, Seen)
    trainer.add_callback(found)
    trainer.remove_callback(Seen)
    trainer.train()
    assert "on_train_begin" not in found.events


def test_a_callback_ends_the_run(tmp_path, tiny_model, shapes):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, callbacks=[Stop()])
    assert trainer.train().global_step == 2


def test_early_stopping_of_transformers(tmp_path, tiny_model, shapes):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=5, learning_rate=1e-9,
                     learning_rate_encoder=1e-9, metric_for_best_model="map")  # fmt: skip
    callback = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[callback])
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_model_card_on_demand(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, shapes)
    trainer.train()
    trainer.create_model_card(model_name="A name of mine")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "A name of mine" in text and str(tmp_path) not in text


def test_a_loss_of_ones_own(tmp_path, tiny_model, shapes):
    class Doubled(RFDETRTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    options = {"use_ema": False, "max_steps": 1, "learning_rate": 1e-4}
    plain = RFDETRTrainer(tiny_model(), arguments(tmp_path / "a", **options), shapes).train().training_loss
    doubled = Doubled(tiny_model(), arguments(tmp_path / "b", **options), shapes).train().training_loss
    assert doubled == pytest.approx(2 * plain, rel=1e-4)


# ---------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("wrong", "fragment"),
    [
        ({"args": TrainingArguments(output_dir="x", report_to="none")}, "RFDETRTrainingArguments"),
        ({"model": "path/to/model"}, "from_pretrained"),
        ({"model": torch.nn.Linear(2, 2)}, "RFDETRForObjectDetection"),
        ({"train_dataset": "path/to/data"}, "load_detection_dataset"),
        ({"train_dataset": [{"pixel_values": torch.zeros(3, 64, 64)}]}, "load_detection_dataset"),
        ({"train_dataset": {"train": None}}, "train"),
    ],
)
def test_another_thing_than_ours_gets_a_sentence(tmp_path, tiny_model, shapes, wrong, fragment):
    parts = {"model": tiny_model(), "args": arguments(tmp_path), "train_dataset": shapes, **wrong}
    with pytest.raises((TypeError, ValueError), match=fragment):
        RFDETRTrainer(**parts).train()


def test_a_native_model_gets_a_sentence(tmp_path, tiny_model, shapes):
    pytest.importorskip("transformers.models.rf_detr")
    tiny_model().save_pretrained(tmp_path / "model")
    native = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "model")
    with pytest.raises((TypeError, ValueError), match=r"RFDETRForObjectDetection\.from_pretrained"):
        RFDETRTrainer(native, arguments(tmp_path / "run"), shapes).train()
