"""Options that do nothing beside others."""

import pytest

from rfdetr_hf import RFDETRTrainingArguments, UsageError, parse_arguments

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
