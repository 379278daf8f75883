"""Options of commands that take seconds, and what commands print."""

import json

from rfdetr_hf.cli.main import main

TINY = {
    "variant": "nano", "from_scratch": True, "resolution": 64, "num_train_epochs": 1,
    "config_overrides": {
        "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "num_queries": 10, "group_detr": 2,
        "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4,
        "backbone_config": {
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 2,
            "out_indices": [1, 2, 3], "image_size": 64,
        },
    },
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "audit": "off",
    "multi_scale": "off", "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2, "max_steps": 4,
    "disable_tqdm": True, "logging_steps": 1,
}  # fmt: skip


def scores_of(argv, capsys):
    """The JSON that a command prints."""
    capsys.readouterr()
    assert main(argv) == 0
    return json.loads(capsys.readouterr().out)
