import importlib.util
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from helpers.runs import quick_arguments
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rfdetr_hf import (
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    make_shapes_dataset,
)
from rfdetr_hf.data.schema import keypoint_schema
from rfdetr_hf.training import trackers
from rfdetr_hf.training.trackers import TrackerCallback, check_trackers, flatten

SHAPES = 8  # images of the fixture `shapes`


class Memory(GeneralTracker):
    name = "memory"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.logged, self.images, self.finished = {}, [], [], 0

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))

    def log_images(self, values, step=None, **kwargs):
        self.images.append((step, values))

    def finish(self):
        self.finished += 1


arguments = partial(
    quick_arguments, num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=1,
    logging_steps=1, save_strategy="no", report_images=3,
)  # fmt: skip


@pytest.mark.parametrize("task", ["segmentation", "keypoints"])
def test_pictures_of_masks_and_keypoints(tmp_path, tiny_config, task):
    dataset, memory = make_shapes_dataset(3, image_size=64, seed=4, task=task), Memory()
    if task == "keypoints":
        schema = keypoint_schema(dataset)
        config = tiny_config(num_keypoints_per_class=schema.num_keypoints_per_class, keypoint_schema=schema.to_dict())
        model = RFDETRForKeypointDetection(config)
    else:
        model = RFDETRForInstanceSegmentation(tiny_config())
    args = arguments(tmp_path, max_steps=1, num_train_epochs=1)
    RFDETRTrainer(model, args, dataset, dataset, callbacks=[TrackerCallback([memory])]).train()
    assert [np.asarray(picture).shape for picture in memory.images[0][1]["eval/predictions"]] == [(480, 480, 3)] * 3


def test_trackers_end_with_a_run_that_fails(tmp_path, tiny_model, shapes):
    class Broken(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("boom")

    memory = Memory()
    trainer = RFDETRTrainer(
        tiny_model(), arguments(tmp_path), shapes, shapes, callbacks=[TrackerCallback([memory]), Broken()]
    )
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    assert memory.finished == 1


def test_arguments_of_a_tracker_that_is_not_used():
    with pytest.raises(ValueError, match="tracker_kwargs names 'wandb', which is not in report_to='tensorboard'"):
        RFDETRTrainingArguments(report_to="tensorboard", tracker_kwargs='{"wandb": {"entity": "us"}}')


@pytest.mark.parametrize("raw", [False, True])
def test_a_tracker_of_ones_own_gets_numbers_pictures_and_the_end(tmp_path, tiny_model, shapes, raw):
    memory = Memory()
    args = arguments(tmp_path, eval_raw_weights=raw, lr_scheduler_type="cosine_with_restarts",
                     lr_scheduler_kwargs={"num_cycles": 1})  # fmt: skip
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[TrackerCallback([memory])])
    trainer.train()
    assert memory.config["learning_rate"] == 1e-4 and memory.config["lr_scheduler_kwargs/num_cycles"] == 1
    assert memory.config["model/resolution"] == 64 and memory.config["model/backbone_config/patch_size"] == 8
    assert "hub_token" in memory.config and memory.config["hub_token"] == "None"
    steps = [step for step, values in memory.logged if "train/loss" in values]
    assert steps == list(range(1, trainer.state.max_steps + 1))
    scored = [step for step, values in memory.logged if "eval/map" in values]
    assert [step for step, _ in memory.images] == scored and len(scored) == 2
    pictures = memory.images[0][1]["eval/predictions"]
    assert len(pictures) == 3 and all(p.shape == (480, 480, 3) and p.any() for p in pictures)
    assert memory.finished == 1


def test_pictures_show_the_averaged_weights(shapes):
    memory = Memory()
    callback = TrackerCallback([memory])
    callback.trackers = [memory]
    args, loader = SimpleNamespace(report_images=1), SimpleNamespace(dataset=SimpleNamespace(dataset=shapes))
    image_id = shapes[0]["image_id"]

    def step(score):
        found = {"scores": torch.tensor([score]), "labels": torch.tensor([0]), "boxes": torch.ones(1, 4)}
        ids = [image_id, shapes[1]["image_id"]]
        callback.on_prediction_step(args, None, None, eval_dataloader=loader, image_ids=ids, detections=[found, found])

    step(0.9)
    first = dict(callback._found)
    step(0.1)
    assert list(first) == list(callback._found) == [image_id]
    assert callback._found[image_id]["scores"].item() == pytest.approx(0.1)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(tmp_path, tiny_model, shapes):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    args = arguments(tmp_path / "run", report_to="tensorboard", run_name="first")
    RFDETRTrainer(tiny_model(), args, shapes, shapes).train()
    events = EventAccumulator(str(tmp_path / "run" / "runs" / "first"), size_guidance={"images": 0})
    events.Reload()
    assert {"train/loss", "train/learning_rate", "eval/map"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("eval/map")] == [5, 10]
    assert {e.step for tag in events.Tags()["images"] for e in events.Images(tag)} == {5, 10}
    assert list((tmp_path / "run" / "runs" / "first").rglob("hparams.yml"))


def test_wandb(tmp_path, tiny_model, shapes, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    options = {"report_to": "wandb", "tracker_kwargs": {"wandb": {"tags": ["small"]}}}
    RFDETRTrainer(tiny_model(), arguments(tmp_path / "run", **options), shapes, shapes).train()
    pictures = (tmp_path / "wandb").glob("offline-run-*/files/media/images/eval/predictions_*.png")
    assert sorted(path.name.split("_")[1] for path in pictures) == ["10"] * 3 + ["5"] * 3
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_mlflow(tmp_path, tiny_model, shapes, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    args = arguments(tmp_path / "run", report_to="mlflow", run_name="first", project="shapes")
    RFDETRTrainer(tiny_model(), args, shapes, shapes).train()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("shapes").experiment_id])
    assert run.info.run_name == "first" and run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.0001"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "eval/map")] == [5, 10]


def test_trackio(tmp_path, tiny_model, shapes, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    args = arguments(tmp_path / "run", report_to="trackio", run_name="first", project="shapes")
    RFDETRTrainer(tiny_model(), args, shapes, shapes).train()
    logged = SQLiteStorage.get_logs("shapes", "first")
    assert [entry["step"] for entry in logged if "eval/map" in entry] == [5, 10]


def test_nothing_is_reported_by_default(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, max_steps=1), shapes, shapes)
    assert not any(isinstance(c, TrackerCallback) for c in trainer.callback_handler.callbacks)
    assert arguments(tmp_path, report_to=[]).trackers == arguments(tmp_path, report_to="none").trackers == ()
    assert arguments(tmp_path, report_to=["wandb", "mlflow"]).trackers == ("wandb", "mlflow")
    assert arguments(tmp_path, report_to="wandb, tensorboard").trackers == ("wandb", "tensorboard")


def test_a_missing_tracker_names_the_extra_before_the_run(tmp_path, tiny_model, shapes, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match=r"report_to=wandb .* pip install -e '\.\[trackers\]'"):
        RFDETRTrainer(tiny_model(), arguments(tmp_path, report_to="wandb"), shapes, shapes)
    with pytest.raises(ImportError, match="pip install aim"):
        check_trackers(["aim"])


def test_an_unknown_tracker_names_the_nearest():
    with pytest.raises(ValueError, match="'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])


def test_nested_values_become_flat():
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": True}) == {
        "a/b/c": 1, "a/d": "None", "e": "[1, 2]", "f": True,
    }  # fmt: skip


def test_all_events_fire_in_their_order(tmp_path, tiny_model, shapes):
    events = []

    class Recorder(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                return lambda *args, **kwargs: events.append((name, set(kwargs)))
            return super().__getattribute__(name)

    args = arguments(tmp_path, max_steps=1, per_device_eval_batch_size=4, save_strategy="epoch")
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[Recorder()])
    trainer.train()
    names = [name for name, _ in events]
    assert names == [
        "on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin", "on_pre_optimizer_step",
        "on_optimizer_step", "on_step_end", "on_log", "on_epoch_end", "on_prediction_step", "on_prediction_step",
        "on_log", "on_evaluate", "on_save", "on_log", "on_train_end",
    ]  # fmt: skip
    events.clear()
    trainer.predict(shapes)
    assert [name for name, _ in events] == ["on_prediction_step", "on_prediction_step", "on_predict"]
    assert "metrics" in events[-1][1] and {"eval_dataloader", "image_ids", "detections"} <= events[0][1]


def test_at_the_end_of_training_the_best_model_is_in_memory_and_saved(tmp_path, tiny_model, shapes):
    seen = []

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            seen.append((model.class_embed.bias.clone(), (tmp_path / "last" / "model.safetensors").is_file()))

    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path), shapes, shapes, callbacks=[Watch()])
    trainer.train()
    assert seen[0][1] and torch.equal(seen[0][0], trainer.model.class_embed.bias)


def test_the_state_of_callbacks_survives_a_resume(tmp_path, tiny_model, shapes):
    class Counter(TrainerCallback, ExportableState):
        def __init__(self):
            self.steps = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1
            if self.steps == 7:
                raise KeyboardInterrupt

        def state(self):
            return {"args": {}, "attributes": {"steps": self.steps}}

    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    with pytest.raises(KeyboardInterrupt):
        RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[Counter()]).train()
    again = Counter()
    again.on_step_begin = lambda *a, **k: events.append(again.steps)
    events = []
    with pytest.raises(KeyboardInterrupt):
        RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[again]).train(resume_from_checkpoint=True)
    assert events == [6]


def test_pictures_are_arrays_of_one_size(shapes):
    found = {"scores": torch.tensor([0.9]), "labels": torch.tensor([1]), "boxes": torch.tensor([[1.0, 1, 30, 30]])}
    config = SimpleNamespace(id2label={1: "square"}, keypoint_schema=None)
    pictures = trackers._pictures(shapes, {row["image_id"]: found for row in shapes.select([2, 5])}, config)
    assert np.stack(pictures).shape == (2, 480, 480, 3)


@pytest.mark.parametrize(("save_steps", "resume"), [(2, True), (5, "auto")])
def test_tensorboard_shows_a_step_once_after_a_run_that_died(tmp_path, tiny_model, shapes, save_steps, resume):
    """Past its checkpoint, or before any was written, so that `auto` starts over."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Die(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise RuntimeError("killed")

    args = quick_arguments(
        tmp_path, max_steps=5, gradient_accumulation_steps=1, eval_strategy="no", save_strategy="steps",
        save_steps=save_steps, logging_steps=1, report_to="tensorboard",
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="killed"):
        RFDETRTrainer(tiny_model(), args, shapes, callbacks=[Die()]).train()
    RFDETRTrainer(tiny_model(), args, shapes).train(resume_from_checkpoint=resume)
    events = EventAccumulator(str(next((tmp_path / "runs").glob("*"))))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
