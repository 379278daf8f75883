"""Models that train in seconds on a CPU."""

from pathlib import Path
from typing import Any

import torch

from rfdetr_hf import RFDETRConfig, RFDETRForInstanceSegmentation, RFDETRForKeypointDetection, RFDETRForObjectDetection

NAMES = ("circle", "square", "triangle")
# `config_overrides` of a command that trains a model of 2 blocks and 5 queries, at 64 pixels.
TINY_OVERRIDES = {
    "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 1, "num_queries": 5, "group_detr": 2,
    "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2,
    "backbone_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "num_windows": 1,
        "out_indices": [1, 2],
    },
}  # fmt: skip
KEYPOINT_FIELDS = {"num_keypoints_per_class": [2, 0, 3]}
# The class of each task, the fields that it needs, and what its outputs have more than those of a detector.
MODEL_CLASSES = [
    (RFDETRForObjectDetection, {}, []),
    (RFDETRForInstanceSegmentation, {}, ["pred_masks"]),
    (RFDETRForKeypointDetection, KEYPOINT_FIELDS, ["pred_keypoints"]),
]
# What adapters go to: queries and values of the blocks that are read.
ENCODER_ATTENTION = r".*layer\.[01]\.attention.attention.(query|value)"


def tiny_config(names: tuple[str, ...] = NAMES, **overrides: Any) -> RFDETRConfig:
    """3 blocks, all of which the projector reads, 10 queries, 3 groups and the classes of the synthetic shapes."""
    backbone = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 2,
        "out_indices": [1, 2, 3], "image_size": 64, **overrides.pop("backbone_config", {}),
    }  # fmt: skip
    fields = {
        "resolution": 64, "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "num_queries": 10,
        "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4, "group_detr": 3,
        "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}, **overrides,
    }  # fmt: skip
    return RFDETRConfig.from_variant("nano", backbone_config=backbone, **fields)


def tiny_model(seed: int = 0, **overrides: Any) -> RFDETRForObjectDetection:
    """A model of `tiny_config` with random weights of a seed."""
    torch.manual_seed(seed)
    return RFDETRForObjectDetection(tiny_config(**overrides))


def deep_config(backbone_config: dict[str, Any] | None = None, **overrides: Any) -> RFDETRConfig:
    """4 blocks, the last of which nothing reads, 6 queries, 3 groups and 5 classes; patches and windows of nano."""
    backbone = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4, "out_indices": [1, 3]}
    fields = {
        "resolution": 64, "num_labels": 5, "num_queries": 6, "group_detr": 3, "d_model": 32,
        "decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "decoder_ffn_dim": 48,
    }  # fmt: skip
    return RFDETRConfig.from_variant(
        "nano", **{**fields, **overrides, "backbone_config": {**backbone, **(backbone_config or {})}}
    )


def pixels() -> torch.Tensor:
    """(2, 3, 64, 64) the same pictures each time."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def images(rng: torch.Generator, height: int = 64, width: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(2, 3, height, width) pictures of a generator."""
    return torch.randn(2, 3, height, width, generator=rng, dtype=dtype)


def load_detector(folder: str | Path, **options: Any) -> RFDETRForObjectDetection:
    """A detector of a folder or file."""
    return RFDETRForObjectDetection.from_pretrained(folder, **options)
