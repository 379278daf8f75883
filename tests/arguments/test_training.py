"""The options of a training: defaults, checks, and what follows from what."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from transformers.trainer_utils import SaveStrategy

from rfdetr_hf import RFDETRTrainingArguments, parse_arguments, to_yaml
from rfdetr_hf.arguments.schedules import encoder_rate


def test_the_defaults_are_the_published_recipe():
    args = RFDETRTrainingArguments()
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 16
    assert (args.learning_rate, encoder_rate(args), args.layer_decay, args.component_decay) == (
        1e-4, 1.5e-4, 0.8, 0.7,
    )  # fmt: skip
    assert (args.max_grad_norm, args.ema_decay, args.ema_tau, args.weight_decay) == (0.1, 0.993, 100.0, 1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0}, "learning_rate=0 is not valid"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"layer_decay": 0}, "layer_decay"),
        ({"horizontal_flip": 1.1}, "horizontal_flip"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"eval_steps": 2.5, "eval_strategy": "steps"}, "eval_steps=2.5"),
        ({"warmup_steps": 2.5}, "warmup_steps=2.5 is not valid"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is not valid: it must be a number, zero or more"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 needs max_steps"),
        ({"learning_rate": float("inf")}, "learning_rate=inf is not valid: it must be a number, in"),
        ({"ema_decay": float("nan")}, "ema_decay=nan is not valid"),
        ({"max_steps": 1.5}, "max_steps=1.5 is not valid: it must be a whole number"),
        ({"use_ema": "false"}, "use_ema='false' is not valid: it must be true or false"),
        ({"multi_scale": "sometimes"}, "multi_scale='sometimes' is not known; choose one of per_batch"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type='cosin' is not known"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16"),
        ({"warmup_steps": 5, "warmup_epochs": 1}, "warmup_steps and warmup_epochs"),
        ({"use_ema": False, "metric_for_best_model": "ema_map"}, "needs use_ema=True"),
        ({"metric_for_best_model": "map,map_50"}, "names several scores"),
        ({"metric_for_best_model": "map,raw_map,map"}, "names several scores"),
        ({"eval_strategy": "no", "early_stopping_patience": 3}, "early_stopping_patience needs evaluations"),
        ({"eval_strategy": "no", "save_strategy": "best"}, "save_strategy='best' needs evaluations"),
        ({"lr_scheduler_kwargs": "{"}, "lr_scheduler_kwargs is not valid JSON or YAML"),
        ({"lr_drop_epochs": 5}, "lr_drop_epochs=5 has no effect"),
        ({"drop_path": 0.1, "drop_path_schedule": "linear"}, "drop_path_schedule='linear' has no effect"),
        ({"drop_path": 0.1, "drop_path_cutoff_epochs": 2}, "drop_path_cutoff_epochs=2 has no effect"),
        ({"min_lr_ratio": 0.1}, "min_lr_ratio=0.1 applies"),
    ],
)
def test_invalid_values_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        RFDETRTrainingArguments(**values)


def test_the_arguments_survive_json():
    args = RFDETRTrainingArguments(
        eval_strategy="steps",
        save_strategy="best",
        lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": 2},
    )
    again = RFDETRTrainingArguments(**json.loads(args.to_json_string()))
    assert again == args
    assert again.save_strategy is SaveStrategy.BEST
    assert all(isinstance(v, (bool, int, float, str)) for v in args.to_sanitized_dict().values())


def test_an_augmentation_is_a_preset_a_mapping_or_a_file(tmp_path):
    """Its geometry counts where the options are not given; what contradicts itself and unknown names are refused."""
    args = RFDETRTrainingArguments(augmentation="none")
    assert (args.scale_jitter, args.horizontal_flip) == (False, 0.0)
    assert RFDETRTrainingArguments(augmentation="none", horizontal_flip=0.25).horizontal_flip == 0.25
    path = tmp_path / "mine.yaml"
    path.write_text("preset: industrial\nmosaic: 0.5\n")
    args = RFDETRTrainingArguments(augmentation=str(path))
    assert args.augmentation == {"preset": "industrial", "mosaic": 0.5} and args.horizontal_flip == 0.3
    again = RFDETRTrainingArguments(**args.to_dict())
    assert again.to_dict() == args.to_dict()
    with pytest.raises(ValueError, match="horizontal_flip=0.1 contradicts augmentation, whose horizontal_flip is 0.9"):
        RFDETRTrainingArguments(augmentation={"horizontal_flip": 0.9}, horizontal_flip=0.1)
    for value, message in (("aerail", "did you mean 'aerial'"), ({"mosiac": 1}, "did you mean 'mosaic'")):
        with pytest.raises(ValueError, match=f"augmentation.*{message}"):
            RFDETRTrainingArguments(augmentation=value)
    for value in ("aerial", str(path), '{"mosaic": 0.5}'):
        (parsed,) = parse_arguments((RFDETRTrainingArguments,), ["--augmentation", value])
        assert parsed.augmentation == RFDETRTrainingArguments(augmentation=value).augmentation
    with pytest.raises(ValueError, match="did you mean 'aerial'"):
        parse_arguments((RFDETRTrainingArguments,), ["--augmentation", "aerail"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", -1.0), ("gradient_accumulation_steps", 0), ("recipe", "offical"), ("eval_strategy", "epochs"),
        ("save_strategy", "epochs"), ("logging_strategy", "batch"), ("use_dora", True), ("eval_steps", 1.5),
    ],
)  # fmt: skip
def test_what_is_set_later_is_checked_before_a_run(name, value):
    args = RFDETRTrainingArguments()
    setattr(args, name, value)
    with pytest.raises(ValueError, match=name):
        args.for_run("detection")


def test_what_is_set_later_counts_as_given():
    args = RFDETRTrainingArguments(recipe="official")
    usual = args.for_run("detection")
    assert args.for_run("detection") == usual and usual.for_run("detection") == usual
    args.ema_tau, args.augmentation, args.max_steps, args.eval_strategy = 7.0, "none", 10, "steps"
    run = args.for_run("detection")
    assert (run.ema_tau, run.horizontal_flip, run.max_steps, run.eval_strategy) == (7.0, 0.0, 10, "steps")
    args = RFDETRTrainingArguments()
    args.total_train_batch_size = 32
    assert args.for_run("detection").gradient_accumulation_steps is None, "it follows from the total"


def test_early_drop_path_needs_its_end():
    with pytest.raises(ValueError, match="drop_path_mode='early' has no drop path"):
        RFDETRTrainingArguments(drop_path=0.3, drop_path_mode="early")


@pytest.mark.parametrize("copy", [dataclasses.replace, lambda args, **others: type(args)(**args.to_dict() | others)])
@pytest.mark.parametrize("is_run", [False, True])
def test_what_followed_from_an_option_goes_with_it(copy, is_run, caplog):
    def made(**options):
        args = RFDETRTrainingArguments(**options)
        return args.for_run("keypoints") if is_run else args

    args = copy(made(), augmentation="none", learning_rate=1e-3, eval_strategy="steps", total_train_batch_size=8)
    assert (args.scale_jitter, args.horizontal_flip, args.gradient_accumulation_steps) == (False, 0.0, None)
    assert "scale_jitter True -> False, horizontal_flip 0.5 -> 0.0" in caplog.text
    assert args.for_run("detection").learning_rate_encoder == 1.5e-3
    assert args.for_run("detection").metric_for_best_model == "map"
    args = copy(made(horizontal_flip=0.1, eval_strategy="steps"), augmentation="none", eval_strategy="epoch")
    assert (args.scale_jitter, args.horizontal_flip, args.eval_steps) == (False, 0.1, None), "what was given stays"
    args = copy(made(recipe="official"), seed=1)
    assert (
        args.for_run("keypoints").to_dict()
        == RFDETRTrainingArguments(recipe="official", seed=1).for_run("keypoints").to_dict()
    )
    args = copy(made(recipe="official"), recipe="default")
    assert (args.lr_scheduler_type, args.eval_max_dets, args.skip_best_epochs) == ("constant", 100, 0.0)
    with pytest.raises(ValueError, match="derived names xx, which is no option"):
        RFDETRTrainingArguments(derived={"xx": 1})


def test_the_geometry_of_the_preset_in_a_file_goes_with_it(tmp_path):
    path = tmp_path / "args.yaml"
    path.write_text(to_yaml({"training": RFDETRTrainingArguments().to_dict()}))
    (args,) = parse_arguments([RFDETRTrainingArguments], ["--config", str(path), "--augmentation", "none"])
    assert (args.augmentation, args.scale_jitter, args.horizontal_flip) == ("none", False, 0.0)
    words = ["--config", str(path), "--augmentation", "none", "--horizontal_flip", "0.5"]
    (args,) = parse_arguments([RFDETRTrainingArguments], words)
    assert (args.scale_jitter, args.horizontal_flip) == (False, 0.5)


def test_loaders_have_a_worker_for_each_core_unless_a_number_is_given(monkeypatch):
    def workers(cores, processes="1", **options):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        return RFDETRTrainingArguments(**options).loader_workers

    assert [workers(1), workers(2), workers(6), workers(64), workers(64, "16"), workers(2, "4")] == [1, 2, 6, 8, 4, 1]
    assert workers(2, dataloader_num_workers=5) == 5 and workers(2, dataloader_num_workers=0) == 0
    assert RFDETRTrainingArguments(dataloader_prefetch_factor=3).dataloader_num_workers is None
    with pytest.raises(ValueError, match="no effect with dataloader_num_workers=0"):
        RFDETRTrainingArguments(dataloader_num_workers=0, dataloader_prefetch_factor=3)
    for path in (Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"):
        assert "dataloader_num_workers" not in path.read_text(), "too many for some machine"
