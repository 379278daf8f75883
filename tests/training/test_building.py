import torch

from rfdetr_hf import RFDETRTrainingArguments
from rfdetr_hf.training.arguments import DataArguments, ModelArguments
from rfdetr_hf.training.building import build_trainer

TINY = {
    "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 1, "num_queries": 5, "group_detr": 2,
    "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2,
    "backbone_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "num_windows": 1,
        "out_indices": [1, 2],
    },
}  # fmt: skip


def build(folder, seed):
    model_args = ModelArguments(config_overrides=TINY, resolution=64)
    trainer = build_trainer(model_args, DataArguments(), RFDETRTrainingArguments(str(folder), seed=seed))
    return trainer.model.state_dict()


def test_the_seed_of_a_run_decides_its_first_weights(tmp_path):
    first, again, other = build(tmp_path, 1), build(tmp_path, 1), build(tmp_path, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["query_feat.weight"], other["query_feat.weight"])
