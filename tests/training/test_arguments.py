import dataclasses
import json
import os
from pathlib import Path

import pytest
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from rfdetr_hf import DataArguments, ModelArguments, RFDETRTrainingArguments, UsageError, parse_arguments, to_yaml
from rfdetr_hf.arguments.schedules import encoder_rate

TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments)


def test_the_defaults_are_the_published_recipe():
    args = RFDETRTrainingArguments()
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 16
    assert (args.learning_rate, encoder_rate(args), args.layer_decay, args.component_decay) == (
        1e-4, 1.5e-4, 0.8, 0.7,
    )  # fmt: skip
    assert (args.max_grad_norm, args.ema_decay, args.ema_tau, args.weight_decay) == (0.1, 0.993, 100.0, 1e-4)


def test_yaml_and_command_line_are_read_together_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "learning_rate: 1e-3\nbf16: true\nnum_train_epochs: 7\neval_strategy: steps\neval_steps: 10\n"
        "save_total_limit: null\nconfig_overrides: {num_queries: 30, backbone_config: {hidden_size: 64}}\n"
        "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "report_to: [tensorboard, wandb]\nmulti_scale: off\nsave_strategy: no\n"
    )
    model, data, training = parse_arguments(TYPES, ["--config", str(config), "--num_train_epochs", "3"])
    assert (training.learning_rate, training.bf16, training.num_train_epochs) == (1e-3, True, 3)
    assert training.eval_strategy is IntervalStrategy.STEPS and training.eval_steps == 10
    assert training.save_total_limit is None
    assert model.config_overrides == {"num_queries": 30, "backbone_config": {"hidden_size": 64}}
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.trackers == ("tensorboard", "wandb")
    assert training.multi_scale == "off" and training.save_strategy is SaveStrategy.NO
    assert data.dataset_name == "synthetic-shapes"


def test_an_unknown_yaml_key_names_file_key_and_the_nearest_option(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match=r"'learning_rat' in .*run\.yaml; did you mean 'learning_rate'\?"):
        parse_arguments(TYPES, ["--config", str(config)])


@pytest.mark.parametrize("argv", [["--leraning_rate", "1"], ["--leraning_rate=1"]])
def test_an_unknown_command_line_option_names_the_nearest_option(argv):
    with pytest.raises(ValueError, match="'leraning_rate' on the command line; did you mean 'learning_rate'"):
        parse_arguments(TYPES, argv)


def test_a_word_of_no_option_says_how_to_write_several_values():
    with pytest.raises(ValueError, match="'mlflow' on the command line is one word too many: .*join several"):
        parse_arguments(TYPES, ["--report_to", "wandb", "mlflow"])


def test_options_can_not_be_abbreviated():
    with pytest.raises(ValueError, match="unknown option 'ema_dec'"):
        parse_arguments(TYPES, ["--ema_dec", "0.9"])


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "must hold a mapping"), ("a: [", "not valid YAML")], ids=["list", "broken"]
)
def test_a_broken_yaml_file_is_named(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments(TYPES, ["--config", str(config)])


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("run_name: yes", "run_name", "yes"),
        ("run_name: 01", "run_name", "01"),
        ("run_name: 12:30", "run_name", "12:30"),
        ("run_name: 2020-01-01", "run_name", "2020-01-01"),
        ("run_name: null", "run_name", None),
        ("run_name: 'null'", "run_name", "null"),
        ("report_to: [tensorboard, wandb]", "report_to", "tensorboard,wandb"),
        ("save_strategy: no", "save_strategy", "no"),
        ("multi_scale: OFF", "multi_scale", "off"),
        ("resume_from_checkpoint: True", "resume_from_checkpoint", "true"),
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: '1e-3'", "learning_rate", 1e-3),
        ("max_steps: 010", "max_steps", 10),
        ("bf16: yes", "bf16", True),
        ("bf16: 'true'", "bf16", True),
    ],
)
def test_a_value_of_a_file_is_what_is_written(tmp_path, line, name, value):
    config = tmp_path / "run.yaml"
    config.write_text(line + "\n")
    (args,) = parse_arguments((RFDETRTrainingArguments,), ["--config", str(config)])
    assert getattr(args, name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: null", r"run\.yaml: learning_rate: 'null' must be a number"),
        ("learning_rate:", r"run\.yaml: learning_rate: '' must be a number"),
        ("learning_rate: true", r"run\.yaml: learning_rate: 'true' must be a number"),
        ("learning_rate: [1, 2]", r"run\.yaml: learning_rate: .* must be a number"),
        ("learning_rate: {a: 1}", r"run\.yaml: learning_rate: .* must be a number"),
        ("learning_rate: 1e400", r"run\.yaml: learning_rate=inf is not valid: it must be a number, in \(0, 10\]"),
        ("learning_rate: .nan", r"run\.yaml: learning_rate: '\.nan' must be a number"),
        ("lora_r: 12:30", r"run\.yaml: lora_r: '12:30' must be a whole number"),
        ("max_steps: 3.5", r"run\.yaml: max_steps: '3\.5' must be a whole number"),
        ("max_steps: 99999999999999999999", r"run\.yaml: max_steps=99999999999999999999 is not valid"),
        ("seed: -1", r"run\.yaml: seed=-1 is not valid: it must be a whole number, in \[0, 4\.29497e\+09\]"),
        ("bf16: maybe", r"run\.yaml: bf16: 'maybe' must be true or false"),
        ("seed: 1\nseed: 2", r"run\.yaml is not valid YAML: 'seed' stands there twice"),
        ("run_name: {a: 1}", r"run\.yaml: run_name: .* must be a text or null"),
        ("audit: sometimes", r"run\.yaml: audit='sometimes' is not known; choose one of full"),
        ("eval_strategy: always", r"run\.yaml: eval_strategy='always' is not known; choose one of no"),
        ("seed: " + "[" * 3000, r"run\.yaml is not valid YAML"),
        ("1: 2", r"unknown option '1' in .*run\.yaml"),
        ("!!python/object:os.system x", r"run\.yaml is not valid YAML"),
        ("run_name: 2020-99-99", r"run\.yaml is not valid YAML: month"),
    ],
)
def test_what_a_file_must_not_hold_is_named_with_file_and_option(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text + "\n")
    with pytest.raises(UsageError, match=message):
        parse_arguments((RFDETRTrainingArguments,), ["--config", str(config)])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "none.yaml", "No such file")):
        with pytest.raises(UsageError, match=f"--config {path}: {message}"):
            parse_arguments((RFDETRTrainingArguments,), ["--config", str(path)])
    (tmp_path / "latin.yaml").write_bytes(b"run_name: \xe9\n")
    with pytest.raises(UsageError, match=r"latin\.yaml is not valid YAML: 'utf-8' codec"):
        parse_arguments((RFDETRTrainingArguments,), ["--config", str(tmp_path / "latin.yaml")])


def test_the_encoder_follows_the_rate_that_is_given():
    assert encoder_rate(RFDETRTrainingArguments(learning_rate=1e-6)) == 1.5e-6
    assert encoder_rate(RFDETRTrainingArguments(learning_rate=1e-6, learning_rate_encoder=1e-5)) == 1e-5
    run = RFDETRTrainingArguments(learning_rate=1e-6).for_run("detection")
    assert run.to_dict()["learning_rate_encoder"] == 1.5e-6
    assert RFDETRTrainingArguments().for_run("detection").learning_rate_encoder == 1.5e-4


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


@pytest.mark.parametrize(
    ("values", "prefixes", "task", "metric"),
    [
        ({}, ("",), "detection", "map"),
        ({"eval_raw_weights": True}, ("raw_", ""), "segmentation", "segm_map"),
        ({"use_ema": False}, ("",), "keypoints", "keypoint_map"),
    ],
)
def test_task_and_evaluated_weights_decide_the_metric_of_the_best_model(values, prefixes, task, metric):
    args = RFDETRTrainingArguments(**values)
    assert args.evaluated_prefixes == prefixes
    assert args.for_run(task).metric_for_best_model == metric


@pytest.mark.parametrize(
    ("earlier", "sets", "now"),
    [
        ("ema_map", None, "map"), ("eval_ema_segm_map", None, "eval_segm_map"), ("map", None, "map"),
        ("day_ema_map_50", {"day": 1, "night": 2}, "day_map_50"), ("ema_map", {"ema": 1}, "ema_map"),
    ],
)  # fmt: skip
def test_a_metric_with_its_earlier_name_is_understood_and_named(earlier, sets, now, caplog):
    args = RFDETRTrainingArguments(metric_for_best_model=earlier)
    assert args.for_run("detection", sets).metric_for_best_model == now
    assert (f"{earlier} is called {now} now" in caplog.text) == (earlier != now)


@pytest.mark.parametrize(
    ("metric", "larger"),
    [(None, True), ("hair_loss_iou", True), ("hair_loss_iou_loss", False), ("hair_loss", False)],
)
def test_the_name_of_an_evaluation_set_decides_no_direction(metric, larger):
    args = RFDETRTrainingArguments(metric_for_best_model=metric)
    assert args.for_run("detection", {"hair_loss": 1, "hair": 2}).greater_is_better is larger


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


IDLE = [
    ("lora_r", {}, {"use_dora": True, "lora_alpha": 32.0, "lora_dropout": 0.1, "lora_target_modules": "dense"}),
    ("freeze_backbone", {"freeze_backbone": True},
     {"freeze_encoder_blocks": 1, "learning_rate_encoder": 1e-3, "layer_decay": 0.5}),
    ("lr_scheduler_type", {"lr_scheduler_type": "cosine"}, {"lr_drop_epochs": 5}),
    ("use_ema", {"use_ema": False},
     {"ema_decay": 0.9, "ema_tau": 7, "ema_update_interval": 2, "eval_raw_weights": True}),
    ("drop_path", {}, {"drop_path_mode": "late"}),
    ("drop_path_mode", {"drop_path": 0.1}, {"drop_path_cutoff_epochs": 2, "drop_path_schedule": "linear"}),
    ("augmentation", {"augmentation": "aerial"}, {"close_strong_augmentation_epochs": 5}),
    ("cache_images", {}, {"cache_images_gb": 1, "cache_images_dir": "x"}),
    ("cache_images", {"cache_images": "ram"}, {"cache_images_dir": "x"}),
    ("dataloader_num_workers", {"dataloader_num_workers": 0}, {"dataloader_prefetch_factor": 4}),
    ("torch_compile", {}, {"torch_compile_backend": "eager"}),
    ("eval_strategy", {"eval_strategy": "no"}, {"eval_steps": 5, "eval_delay": 2}),
    ("eval_strategy", {}, {"eval_steps": 5}),
    ("save_strategy", {}, {"save_steps": 5}),
    ("logging_strategy", {"logging_strategy": "epoch"}, {"logging_steps": 5}),
    ("early_stopping_patience", {}, {"early_stopping_threshold": 0.5}),
    ("push_to_hub", {}, {"hub_strategy": "end"}),
]  # fmt: skip


@pytest.mark.parametrize(("by", "others", "idle"), IDLE, ids=[by for by, _, _ in IDLE])
def test_options_that_do_nothing_are_refused_or_named(by, others, idle, caplog):
    for name, value in idle.items():
        if name in ("eval_delay", "eval_steps", "hub_strategy", "logging_steps", "save_steps", "torch_compile_backend"):
            RFDETRTrainingArguments(**others, **{name: value}).for_run("detection")
            assert caplog.text.count(f"{name}={value!r} has no effect with {by}=") == 1
            continue
        with pytest.raises(ValueError, match=f"{name}={value!r} has no effect with {by}="):
            RFDETRTrainingArguments(**others, **{name: value})


def test_early_drop_path_needs_its_end():
    with pytest.raises(ValueError, match="drop_path_mode='early' has no drop path"):
        RFDETRTrainingArguments(drop_path=0.3, drop_path_mode="early")


def test_what_the_command_line_makes_idle_in_a_file_goes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("ema_decay: 0.9\neval_strategy: steps\neval_steps: 5\nlora_r: 4\n")
    words = ["--config", str(path), "--no_use_ema", "--eval_strategy", "epoch"]
    (args,) = parse_arguments([RFDETRTrainingArguments], words)
    assert (args.use_ema, args.ema_decay, args.eval_steps, args.lora_r) == (False, 0.993, None, 4)
    with pytest.raises(UsageError, match="lora_alpha=3.0 has no effect with lora_r=0"):
        parse_arguments([RFDETRTrainingArguments], [*words, "--lora_r", "0", "--lora_alpha", "3"])
    path.write_text("lora_alpha: 3\n")
    with pytest.raises(UsageError, match=r"run\.yaml: lora_alpha=3.0 has no effect"):
        parse_arguments([RFDETRTrainingArguments], ["--config", str(path), "--no_use_ema"])


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
