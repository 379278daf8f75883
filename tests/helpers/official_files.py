"""Official-looking checkpoints of a tiny model, for the tests of reading them."""

import argparse
from typing import Any

import torch

from rfdetr_hf import RFDETRForObjectDetection


def official_settings(config) -> dict[str, Any]:
    """What an official file says about the model of `config` beyond its tensors."""
    return {
        "resolution": config.resolution,
        "num_windows": config.backbone_config.num_windows,
        "out_feature_indexes": list(config.backbone_config.out_indices),
        "sa_nheads": config.decoder_self_attention_heads,
        "ca_nheads": config.decoder_cross_attention_heads,
    }


def legacy_payload(model: RFDETRForObjectDetection, names: list[str] | None = None) -> dict[str, Any]:
    """The layout {"model", "args"} with a namespace, as version 1.4 writes it."""
    args = argparse.Namespace(**official_settings(model.config), class_names=names)
    return {"model": {**model.state_dict(), "_kp_active_mask": torch.zeros(0, 0, dtype=torch.bool)}, "args": args}


def lightning_payload(
    model: RFDETRForObjectDetection, averaged: RFDETRForObjectDetection, names: list[str] | None = None
) -> dict[str, Any]:
    """A full Lightning checkpoint of a compiled model, with the state of the averaging callback."""
    average = {f"module.model.{name}": tensor for name, tensor in averaged.state_dict().items()}
    return {
        "state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": {**official_settings(model.config), "class_names": names},
        "callbacks": {
            "BestModel": {"best_model_score": torch.tensor(0.5)},
            "EMA": {"average_model_state_dict": {**average, "n_averaged": torch.tensor(7)}},
        },
        "optimizer_states": [],
        "epoch": 3,
    }


def converted_payload(model: RFDETRForObjectDetection, averaged: RFDETRForObjectDetection) -> dict[str, Any]:
    """A legacy file that the official package converted to Lightning's layout."""
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": official_settings(model.config),
        "legacy_checkpoint_format": True,
        "legacy_ema_state_dict": averaged.state_dict(),
    }
