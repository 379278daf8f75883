"""The loss of the evaluation split, a user's own metrics and the test split of a run."""

import contextlib
import csv
import json
import logging
import multiprocessing
import os
import shutil
import signal
from functools import partial

import pytest
import torch
from helpers.runs import metrics_rows, quick_arguments
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from rfdetr_hf import (
    BestModel,
    RFDETRForInstanceSegmentation,
    RFDETRForObjectDetection,
    RFDETRTrainer,
    decode_image,
    make_shapes_dataset,
    read_status,
)
from rfdetr_hf.training.checkpoint.weights import Weights

SHAPES = 8  # images of the fixture `shapes`


@pytest.fixture(scope="module")
def crowded():
    return make_shapes_dataset(7, image_size=64, seed=2, crowd_share=0.5)


arguments = partial(quick_arguments, gradient_accumulation_steps=2, max_steps=2, logging_steps=1)


def test_the_loss_of_a_split_does_not_depend_on_its_batches(tmp_path, tiny_model, crowded):
    found = []
    for batch_size in (1, 3):
        args = arguments(tmp_path, per_device_eval_batch_size=batch_size, eval_loss=True)
        trainer = RFDETRTrainer(tiny_model(), args, eval_dataset=crowded)
        found.append({k: v for k, v in trainer.evaluate().items() if k.startswith("eval_loss")})
    assert {"eval_loss", "eval_loss_ce", "eval_loss_bbox_0", "eval_loss_giou_enc"} <= found[0].keys()
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_rule_of_a_given_best_model_is_compared_at_resume(tmp_path, tiny_model, shapes, caplog):
    """Before, the loss was compared with the AP of the first run, which none could beat."""

    def run(steps, metric, **resume):
        each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        args = arguments(tmp_path, max_steps=steps, eval_loss=True, use_ema=False, **each)
        trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, best_model=BestModel(metric))
        trainer.train(**resume)
        return trainer.state.best

    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        assert run(1, "map_50").metric == "map_50" and read_status(tmp_path)["metric"] == "map_50"
        second = run(2, "loss", resume_from_checkpoint=True)
    assert second.step == 2 and second.score > 0 and read_status(tmp_path)["metric"] == "loss"
    assert any("chosen by metric_for_best_model=loss" in text and "map_50" in text for text in caplog.messages)
    assert any(f"the best: raw weights of step 2, loss {second.score:.4f}" in text for text in caplog.messages)
    caplog.clear()
    third = run(3, "loss", resume_from_checkpoint=True)
    assert third.score <= second.score and not any("is chosen by" in text for text in caplog.messages)


def test_of_the_best_model_only_what_was_saved_is_loaded(tmp_path, tiny_model, shapes):
    """Before, adapters that somebody had put into best/ were merged into the model, or ended the run."""

    class Planting(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            save_file({"adapter.x": torch.zeros(2)}, tmp_path / "best" / "adapters.safetensors")

    args = arguments(tmp_path, use_ema=False, save_strategy="epoch")
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[Planting()])
    trainer.train()
    assert (tmp_path / "best" / "adapters.safetensors").is_file() and read_status(tmp_path)["state"] == "finished"
    best = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items() if name in best)


def test_the_loss_of_a_split_is_the_models_own_without_crowds(tmp_path, tiny_model, crowded):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, eval_loss=True), eval_dataset=crowded)
    metrics = trainer.evaluate()
    model, labels, pixels = trainer.model.eval(), [], []
    for row in crowded:
        keep = [i for i, crowd in enumerate(row["objects"]["iscrowd"]) if not crowd]
        boxes = torch.tensor([row["objects"]["bbox"][i] for i in keep]).reshape(-1, 4) / 64
        boxes[:, :2] += boxes[:, 2:] / 2
        labels.append({"boxes": boxes, "class_labels": torch.tensor([row["objects"]["category"][i] for i in keep])})
        pixels.append(trainer.image_processor(decode_image(row), return_tensors="pt")["pixel_values"][0])
    assert any(any(row["objects"]["iscrowd"]) for row in crowded)
    with torch.no_grad():
        expected = model(torch.stack(pixels), labels=labels)
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    assert "eval_loss" not in RFDETRTrainer(model, arguments(tmp_path), eval_dataset=crowded).evaluate()


def test_the_loss_of_masks(tmp_path, tiny_config):
    dataset = make_shapes_dataset(4, image_size=64, seed=3, task="segmentation")
    model = RFDETRForInstanceSegmentation(tiny_config())
    metrics = RFDETRTrainer(model, arguments(tmp_path, eval_loss=True), eval_dataset=dataset).evaluate()
    assert metrics["eval_loss_mask_dice"] > 0


def test_the_loss_can_choose_the_best_model(tmp_path, tiny_model, shapes, crowded):
    args = arguments(tmp_path, eval_loss=True, metric_for_best_model="loss_giou_0", eval_strategy="steps", eval_steps=1)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, crowded)
    trainer.train()
    losses = [row["eval_loss_giou_0"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(losses) == 2 and trainer.state.best.score == min(losses)


def test_a_users_own_metrics(tmp_path, tiny_model, shapes, crowded):
    seen = []

    def compute_metrics(pair):
        seen.append(pair)
        boxes = sum(len(each["boxes"]) for each in pair.label_ids)
        return {"boxes": boxes, "confident": sum((each["scores"] > 0.5).sum() for each in pair.predictions)}

    args = arguments(tmp_path, metric_for_best_model="boxes")
    trainer = RFDETRTrainer(tiny_model(), args, shapes, crowded, compute_metrics=compute_metrics)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "eval_map" in row)
    assert row["eval_boxes"] == sum(len(row["objects"]["category"]) for row in crowded) == trainer.state.best.score
    assert [each["image_id"] for each in seen[0].predictions] == sorted(crowded["image_id"])
    assert [each["image_id"] for each in seen[0].label_ids] == sorted(crowded["image_id"])


def test_the_test_split_is_scored_once_by_the_best_model(tmp_path, tiny_model, shapes, crowded):
    held_out = make_shapes_dataset(5, image_size=64, seed=5)
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, crowded, test_dataset=held_out)
    result = trainer.train()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["test_map"]]
    assert len(rows) == 1 and float(rows[0]["test_map"]) == result.metrics["test_map"]
    best = RFDETRForObjectDetection.from_pretrained(tmp_path / "best")
    again = RFDETRTrainer(best, arguments(tmp_path / "again"), eval_dataset=held_out).evaluate()
    assert again["eval_map"] == result.metrics["test_map"]
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"| test | mAP | {result.metrics['test_map']:.4f} |" in card


def test_a_split_of_other_classes_is_not_scored(tmp_path, tiny_model, crowded):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), eval_dataset=crowded)
    other = make_shapes_dataset(3, image_size=64, classes=("triangle", "square", "circle"))
    for call in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match=r"the classes of \w+ are \['triangle', 'square', 'circle'\]"):
            call(other)


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("mapp", "did you mean 'map'"),
        ("map_circle", "'map_class_circle', with eval_per_class=True"),
        ("eval_map_class_circle", "'map_class_circle', with eval_per_class=True"),
        ("segm_map", "is in no evaluation"),
        ("loss", "is in no"),
        ("raw_map", "set eval_raw_weights=True"),
        ("loss_giou_0", "set eval_loss=True"),
    ],
)
def test_a_metric_that_no_evaluation_gives_is_refused_at_once(tmp_path, tiny_model, shapes, metric, hint):
    with pytest.raises(ValueError, match=hint):
        RFDETRTrainer(tiny_model(), arguments(tmp_path, metric_for_best_model=metric), shapes, shapes)


@pytest.mark.parametrize(
    ("metric", "near"),
    [("loss_box", "loss_bbox"), ("loss_mask_dice", ""), ("eval_loss_giou_7", "loss_giou_"), ("raw_loss_ce_enc", "")],
)
def test_a_term_that_the_models_loss_has_not_is_refused_at_once(tmp_path, tiny_model, shapes, metric, near):
    args = arguments(tmp_path, metric_for_best_model=metric, eval_loss=True)
    with pytest.raises(ValueError, match=f"in no evaluation of this run; .*{near}"):
        RFDETRTrainer(tiny_model(), args, shapes, shapes)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"accuracy": 0.5}, "(missing); did you mean 'accuracy'?"),
     ({"acuracy": float("nan")}, "(ema nan); choose from map, map_50,")],
)  # fmt: skip
def test_a_users_metric_that_is_no_number_ends_the_run_at_the_first_evaluation(
    tmp_path, tiny_model, shapes, given, message
):
    args = arguments(tmp_path, max_steps=6, metric_for_best_model="acuracy", eval_strategy="steps", eval_steps=2)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes.select(range(2)), compute_metrics=lambda found: given)
    with pytest.raises(ValueError, match="metric_for_best_model='acuracy' is no number") as error:
        trainer.train()
    assert message in str(error.value) and "acuracy" not in str(error.value).partition("choose from")[2]
    assert trainer.state.global_step == 2 and (tmp_path / "checkpoint-2" / "manifest.json").exists()
    assert not (tmp_path / "best").exists()


def test_a_run_shorter_than_eval_steps_is_evaluated_at_its_end(tmp_path, tiny_model, shapes, caplog):
    args = arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=50)
    RFDETRTrainer(tiny_model(), args, shapes, shapes.select(range(2))).train()
    assert (tmp_path / "best").is_dir() and "no best/" not in caplog.text


def test_an_evaluation_without_images_is_told_and_costs_no_picture(tmp_path, tiny_model, shapes, caplog):
    args = arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, plots=True)
    RFDETRTrainer(tiny_model(), args, shapes, shapes.select([])).train()
    assert "eval_dataset has no object, or crowds alone" in caplog.text
    assert "is not written" not in caplog.text and (tmp_path / "labels.jpg").is_file()


def test_a_model_for_masks_needs_data_with_masks(tmp_path, tiny_config, shapes):
    model = RFDETRForInstanceSegmentation(tiny_config())
    with pytest.raises(ValueError, match="made for segmentation, but the objects of train_dataset have none"):
        RFDETRTrainer(model, arguments(tmp_path), shapes, shapes)


def test_evaluations_and_training_leave_no_workers(tmp_path, tiny_model, shapes, crowded):
    args = arguments(tmp_path, dataloader_num_workers=1, eval_strategy="steps", eval_steps=1)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, crowded)
    workers, others = [], set(multiprocessing.active_children())

    class Count(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            workers.append(len({*multiprocessing.active_children()} - others))

    trainer.add_callback(Count)
    trainer.train()
    assert workers == [1, 1] and {*multiprocessing.active_children()} <= others


def test_detections_of_each_evaluation_as_coco_results(tmp_path, tiny_model, shapes, crowded):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, eval_predictions=True, eval_max_dets=5), shapes, crowded)
    trainer.train()
    assert any("eval_map_at_5" in row for row in trainer.state.log_history)
    results = json.loads((tmp_path / "eval" / "2" / "ema" / "predictions.json").read_text())
    assert {each["image_id"] for each in results} <= set(crowded["image_id"]) and len(results[0]["bbox"]) == 4


def test_a_split_without_objects_chooses_no_best_model(tmp_path, tiny_model, shapes, caplog):
    """Every score is -1 then: once it was kept as the best, and a patience began with it."""
    nothing = {name: [] for name in shapes[0]["objects"]}
    empty = shapes.select(range(2)).map(lambda row: {"objects": nothing}, features=shapes.features)
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    args = quick_arguments(tmp_path / "run", early_stopping_patience=2, **options)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, empty)
    assert "eval_dataset has no object" in caplog.text
    output = trainer.train()
    assert trainer.state.best_metric is None and trainer.state.best_model_checkpoint is None
    assert (tmp_path / "run" / "last").is_dir() and not (tmp_path / "run" / "best").exists()
    assert output.global_step == 2 and "there was no map in 2 evaluations" in caplog.text
    assert "so there is no best/" in caplog.text and "the best:" not in caplog.text


class FailInTest(TrainerCallback):
    """Raises, or sends a signal, in the evaluation of the test split."""

    def __init__(self, error=None):
        self.error, self.ended = error, 0

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if len(eval_dataloader.dataset) == 5:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_end(self, *args, **kwargs):
        self.ended += 1


def test_a_failed_test_evaluation_costs_the_training_nothing(tmp_path, tiny_model, shapes, crowded):
    held_out, fail = make_shapes_dataset(5, image_size=64, seed=5), FailInTest(ValueError("no more test"))
    args = arguments(tmp_path)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, crowded, callbacks=[fail], test_dataset=held_out)
    with pytest.raises(ValueError, match="no more test"):
        trainer.train()
    status = read_status(tmp_path)
    assert status["state"] == "finished" and "test split are missing (ValueError: no more test)" in status["message"]
    assert fail.ended == 1 and "The training ended at step 2 of 2" in (tmp_path / "report.html").read_text()
    assert "eval_map" in metrics_rows(tmp_path)[-1] and not trainer.directory.lock.held


@pytest.mark.parametrize("save", ["no", "epoch"])
def test_a_notice_ends_the_test_evaluation(tmp_path, tiny_model, shapes, crowded, save):
    held_out, fail = make_shapes_dataset(5, image_size=64, seed=5), FailInTest()
    options = {"max_steps": -1, "num_train_epochs": 1, "save_strategy": save, "per_device_eval_batch_size": 1}
    args, caught = arguments(tmp_path, **options), []
    make = partial(RFDETRTrainer, args=args, train_dataset=shapes, eval_dataset=crowded, test_dataset=held_out)
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with pytest.raises(SystemExit) if save == "epoch" else contextlib.nullcontext() as left:
            make(tiny_model(), callbacks=[fail]).train()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    status = read_status(tmp_path)
    assert "test split are missing (ended by a notice)" in status["message"] and fail.ended == 1
    assert "The training ended at step 5 of 5" in (tmp_path / "report.html").read_text()
    if save == "no":  # nothing to go on from: the signal has its usual effect, and nobody begins the run anew
        assert status["state"] == "finished" and "score the model in best/" in status["message"]
        assert caught == [signal.SIGTERM]
        return
    assert left.value.code == 75 and status["state"] == "preempted" and caught == []
    result = make(tiny_model()).train(resume_from_checkpoint="auto")
    assert "test_map" in result.metrics and read_status(tmp_path)["state"] == "finished"
    assert not read_status(tmp_path).get("message")


def test_what_an_evaluation_had_begun_is_not_counted_twice(tmp_path, tiny_model, shapes, crowded):
    """The first of two sets was evaluated when the second one failed: a resume evaluates both anew."""

    class Fail(TrainerCallback):
        def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
            if len(eval_dataloader.dataset) == 7:
                raise ValueError("once")

    args = arguments(tmp_path, metric_for_best_model="small_map", early_stopping_patience=9)
    sets = {"small": shapes.select(range(2)), "large": crowded}
    with pytest.raises(ValueError, match="once"):
        RFDETRTrainer(tiny_model(), args, shapes, sets, callbacks=[Fail()]).train()
    trainer = RFDETRTrainer(tiny_model(), args, shapes, sets)
    trainer.train(resume_from_checkpoint=True)
    for name in ("eval_small_map", "eval_large_map"):
        assert len([row for row in trainer.state.log_history if name in row]) == 1


def test_a_notice_in_an_evaluation_of_a_callback_saves(tmp_path, tiny_model, shapes, crowded):
    class Evaluate(TrainerCallback):
        trainer: RFDETRTrainer

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.trainer.evaluate(crowded.select(range(5)))

    callback = Evaluate()
    args = arguments(tmp_path, eval_strategy="no", per_device_eval_batch_size=1)
    callback.trainer = RFDETRTrainer(tiny_model(), args, shapes, callbacks=[callback, FailInTest()])
    with pytest.raises(SystemExit) as left:
        callback.trainer.train()
    assert left.value.code == 75 and read_status(tmp_path)["state"] == "preempted"
    assert RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint="auto").global_step == 2


@pytest.mark.parametrize("lost", [False, True])
def test_best_and_last_are_claimed_as_they_are_there(tmp_path, tiny_model, shapes, caplog, monkeypatch, lost):
    """Somebody may have cleared the folder; and what last/ scores is of the last step, not of the best one."""

    class Falls(RFDETRTrainer):
        def evaluate(self, *args, **kwargs):
            return super().evaluate(*args, **kwargs) | {"eval_map_50": 1 / self.state.global_step}

    class Clears(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for name in ("best", "checkpoint-1") if state.global_step == 2 and lost else ():
                shutil.rmtree(tmp_path / name)

    steps, save = [], Weights.save_pretrained

    def spy(self, target, card, accelerator):
        steps.append(card.metrics.get("step"))
        save(self, target, card, accelerator)

    monkeypatch.setattr(Weights, "save_pretrained", spy)
    each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    given = {"callbacks": [Clears()], "best_model": BestModel("map_50")}
    trainer = Falls(tiny_model(), arguments(tmp_path, save_total_limit=1, **each), shapes, shapes, **given)
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        trainer.train()
    assert any("best/ by map_50," in text for text in caplog.messages)
    assert steps == [None, 3], "best/ has its evaluation, last/ that of its step"
    assert any("best is not there any more" in text for text in caplog.messages) == lost
    page = (tmp_path / "report.html").read_text()
    assert ("The best model, no longer in best/" in page) == lost
    assert f"load_detector(&#x27;{tmp_path / ('last' if lost else 'best')}" in page
    assert trainer._card().metrics["step"] == (3 if lost else 1)
