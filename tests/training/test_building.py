import pytest
import torch

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForKeypointDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    make_shapes_dataset,
)
from rfdetr_hf.data.schema import class_names, keypoint_schema
from rfdetr_hf.training.arguments import DataArguments, ModelArguments
from rfdetr_hf.training.building import build_model, build_trainer

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


def test_fine_tuning_of_keypoints_starts_with_precision_one(tmp_path, tiny_config):
    dataset = make_shapes_dataset(2, image_size=64, task="keypoints")
    schema = keypoint_schema(dataset)
    model = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=schema.num_keypoints_per_class))
    torch.nn.init.ones_(model.keypoint_embed.layers[-1].weight)
    model.save_pretrained(tmp_path / "saved")
    built = build_model(ModelArguments(str(tmp_path / "saved")), class_names(dataset), schema)
    assert not built.keypoint_embed.layers[-1].weight[4:7].any()
    assert not built.keypoint_embed.layers[-1].bias[4:7].any()


def test_a_keypoint_model_learns_the_names_of_its_keypoints_from_the_data(tmp_path, tiny_config):
    dataset = make_shapes_dataset(2, image_size=64, task="keypoints")
    schema = keypoint_schema(dataset)
    model = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=schema.num_keypoints_per_class))
    RFDETRTrainer(model, RFDETRTrainingArguments(str(tmp_path)), dataset, dataset).save_model(tmp_path / "saved")
    assert RFDETRConfig.from_pretrained(tmp_path / "saved").keypoint_schema == schema.to_dict()
    assert model.config.keypoint_schema is None
    other = RFDETRForKeypointDetection(tiny_config(num_keypoints_per_class=[1, 1, 1]))
    with pytest.raises(ValueError, match=r"num_keypoints_per_class is \[1, 1, 1\]"):
        RFDETRTrainer(other, RFDETRTrainingArguments(str(tmp_path)), dataset, dataset)
