import pytest
import torch

from rfdetr_hf.models.configuration_rfdetr import RFDETRConfig

TINY = {
    "resolution": 64,
    "num_labels": 5,
    "num_queries": 6,
    "group_detr": 3,
    "d_model": 32,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "decoder_ffn_dim": 48,
}
TINY_BACKBONE = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4, "out_indices": [1, 3]}


@pytest.fixture
def tiny_config():
    """Make the configuration of a model with 4 blocks (the last one unused), 6 queries and 3 groups."""

    def make(backbone_config: dict | None = None, **overrides) -> RFDETRConfig:
        backbone = {**TINY_BACKBONE, **(backbone_config or {})}
        return RFDETRConfig.from_variant("nano", **{**TINY, **overrides, "backbone_config": backbone})

    return make


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
