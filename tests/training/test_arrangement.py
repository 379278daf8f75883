"""Values that are set on the arguments of a trainer after its construction."""

import dataclasses

import pytest
import yaml
from helpers.runs import metrics_rows, quick_arguments
from transformers import TrainerCallback

from rfdetr_hf import RFDETRTrainer
from rfdetr_hf.training.callbacks import ProgressCallback

SHORT = {"max_steps": 3, "gradient_accumulation_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
         "save_strategy": "steps", "save_steps": 1, "plots": False}  # fmt: skip


class Listener(TrainerCallback):
    pass


def test_what_is_set_later_holds_as_if_it_had_been_given(tmp_path, tiny_model, shapes):
    """Folder, best model, checkpoints, EMA, scales, early stopping, pictures, repository: of the run, not of before."""
    listener = Listener()
    args = quick_arguments(tmp_path / "first", **SHORT)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[listener, Listener])
    trainer.remove_callback(ProgressCallback)
    before = trainer.args
    later = {
        "output_dir": str(tmp_path / "second"), "metric_for_best_model": "loss", "greater_is_better": False,
        "eval_loss": True, "skip_best_epochs": 0.1, "smooth_alpha": 0.25, "use_ema": False, "save_total_limit": 1,
        "async_save": True, "expanded_scales": False, "early_stopping_patience": 9, "early_stopping_threshold": 0.5,
        "hub_model_id": "me/shapes",
    }  # fmt: skip
    for name, value in later.items():
        setattr(trainer.args, name, value)
    expected = RFDETRTrainer(tiny_model(), dataclasses.replace(args, **later), shapes, shapes)
    trainer.train()
    assert trainer.args is before and not (tmp_path / "first").exists()
    best, wanted = trainer.state.best, expected.state.best
    rule = ("metric", "greater_is_better", "skip_epochs", "smooth_alpha", "smooth_ema", "use_ema")
    assert [getattr(best, name) for name in rule] == [getattr(wanted, name) for name in rule]
    assert best.step > 1 and best.source == "raw"
    assert trainer.scales == expected.scales and trainer.hub.repo_id == "me/shapes"
    folder = tmp_path / "second"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-3"]
    assert len(metrics_rows(folder)) > 3 and yaml.safe_load((folder / "status.json").read_text())["metric"] == "loss"
    kinds = [type(each).__name__ for each in trainer.callback_handler.callbacks]
    assert "EarlyStopping" in kinds and "ProgressCallback" not in kinds
    assert kinds[-2:] == ["Listener", "Listener"] and listener in trainer.callback_handler.callbacks


def test_recipe_and_metric_that_are_set_later(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "run", **SHORT), shapes, shapes)
    trainer.args.recipe = "official"
    trainer.train()
    assert not trainer.state.best.smooth_ema
    trainer.args.output_dir, trainer.args.metric_for_best_model = str(tmp_path / "next"), "map_5"
    with pytest.raises(ValueError, match="metric_for_best_model='map_5' .*did you mean 'map_"):
        trainer.train()
    trainer.args.metric_for_best_model = "map_50"
    trainer.train()
    assert trainer.state.best.metric == "map_50" and (tmp_path / "next" / "best").is_dir()


@pytest.mark.parametrize(("name", "value"), [("square_resize", False), ("bf16", True), ("mixed_precision", "bf16")])
def test_what_comes_too_late_is_refused(tmp_path, tiny_model, shapes, name, value):
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path, **SHORT), shapes, shapes)
    setattr(trainer.args, name, value)
    for action in (trainer.train, trainer.evaluate, trainer.save_model):
        with pytest.raises(ValueError, match=f"{name} .* -> {value!r}: set on trainer.args.*make another trainer"):
            action()
    setattr(trainer.args, name, "no" if name == "mixed_precision" else not value)
    trainer.train()


def test_a_trained_model_is_saved_where_the_arguments_say_by_then(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "run", **SHORT), shapes, shapes)
    trainer.train()
    trainer.args.hub_model_id = "me/other"
    trainer.save_model()  # into last/ of the run itself
    assert trainer.create_model_card() == tmp_path / "run" / "README.md" and trainer.hub.repo_id == "me/other"
    before = (tmp_path / "run" / "last" / "model.safetensors").stat().st_mtime_ns
    trainer.args.output_dir = str(tmp_path / "copy")
    trainer.save_model()
    assert (tmp_path / "copy" / "last" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "last" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_keeps_what_callbacks_set_and_batches_follow(tmp_path, tiny_model, shapes):
    """Within a run nothing moves; arguments in the place of the trainer's, and sizes of which one follows, hold."""

    class Sets(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            args.output_dir = str(tmp_path / "third")

        def on_train_end(self, args, state, control, **kwargs):
            trainer.evaluate()
            trainer.save_model()

    options = SHORT | {"gradient_accumulation_steps": None, "total_train_batch_size": 4}
    args = quick_arguments(tmp_path / "run", **options)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes, callbacks=[Sets()])
    trainer.args.per_device_train_batch_size = 4
    trainer.train()
    assert trainer.args.gradient_accumulation_steps == 1 and trainer.state.identity["images_per_step"] == 4
    assert (tmp_path / "run" / "last").is_dir() and not (tmp_path / "third").exists()
    trainer.args = dataclasses.replace(args, output_dir=str(tmp_path / "fourth"), eval_max_dets=7)
    trainer.train()
    assert any("eval_map_at_7" in row for row in trainer.state.log_history) and (tmp_path / "fourth" / "last").is_dir()


def test_an_accumulation_that_was_given_is_not_forgotten(tmp_path, tiny_model, shapes):
    """It contradicts a batch size that is set later as one that was given with it."""
    args = quick_arguments(tmp_path, **SHORT | {"gradient_accumulation_steps": 2, "total_train_batch_size": 4})
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes)
    assert "gradient_accumulation_steps" not in trainer.args.derived
    trainer.args.per_device_train_batch_size = 1
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2 x 1 process are not total_train_batch_size=4"):
        trainer.train()
    trainer.args.per_device_train_batch_size = 2
    trainer.train()
    assert trainer.state.identity["images_per_step"] == 4


def test_a_seed_that_is_set_later_makes_the_model_too(tmp_path, tiny_model, shapes):
    made = []

    def model_init():
        made.append(tiny_model())
        return made[-1]

    args = quick_arguments(tmp_path, **SHORT)
    trainer = RFDETRTrainer(None, args, shapes, shapes, model_init=model_init)
    trainer.args.seed = 7
    trainer.train()
    assert len(made) == 2
