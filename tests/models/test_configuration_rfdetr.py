import json

import pytest
import torch

import rfdetr_hf
from rfdetr_hf import RFDETRBackboneConfig, RFDETRConfig, RFDETRForObjectDetection

# Published sizes with 91 class logits: number of parameters, their elements.
PUBLISHED = {
    "nano": (465, 30_467_298),
    "small": (487, 32_111_170),
    "medium": (509, 33_687_458),
    "base": (487, 32_174_530),
    "large": (509, 33_933_218),
    "large-deprecated": (533, 135_637_474),
    "seg-preview": (544, 34_153_555),
    "seg-nano": (544, 33_577_475),
    "seg-small": (544, 33_711_107),
    "seg-medium": (572, 35_694_259),
    "seg-large": (572, 35_873_971),
    "seg-xlarge": (600, 38_113_635),
    "seg-2xlarge": (600, 38_648_163),
    "keypoint-preview": (734, 41_044_470),
}


def test_every_published_variant_is_listed():
    variants = RFDETRConfig.variants()
    assert {name: variants[name].parameters for name in PUBLISHED} == {name: PUBLISHED[name][1] for name in PUBLISHED}
    nano = variants["seg-nano"]
    assert (nano.task, nano.resolution, nano.parameters) == ("segmentation", 312, 33_577_475)
    assert nano.license == "Apache-2.0"
    assert variants["keypoint-preview"].task == "keypoints"


@pytest.mark.parametrize("name", PUBLISHED)
def test_variant_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        config = RFDETRConfig.from_variant(name)
        model = getattr(rfdetr_hf, (config.architectures or ["RFDETRForObjectDetection"])[0])(config)
    parameters = list(model.parameters())
    assert (len(parameters), sum(value.numel() for value in parameters)) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "resolution", "divisor", "grid"),
    [
        ("nano", 384, 32, 24),
        ("small", 512, 32, 32),
        ("medium", 576, 32, 36),
        ("base", 560, 56, 37),
        ("seg-nano", 312, 12, 26),
        ("seg-2xlarge", 768, 24, 64),
        ("keypoint-preview", 576, 24, 48),
    ],
)
def test_variant_sizes(name, resolution, divisor, grid):
    config = RFDETRConfig.from_variant(name)
    assert (config.resolution, config.size_divisor, config.backbone_config.position_grid) == (resolution, divisor, grid)
    assert config.num_labels == 91


def test_defaults_are_the_nano_variant():
    assert RFDETRConfig(num_labels=91).to_dict() == RFDETRConfig.from_variant("nano").to_dict()


def test_new_resolution_brings_a_position_table_of_its_size():
    assert RFDETRConfig.from_variant("nano", resolution=512).backbone_config.image_size == 512
    kept = RFDETRConfig.from_variant("nano", resolution=512, backbone_config={"image_size": 384})
    assert kept.backbone_config.image_size == 384
    assert RFDETRConfig.from_variant("base", resolution=616).backbone_config.image_size == 518


def test_overrides_do_not_change_the_table():
    RFDETRConfig.from_variant("base", backbone_config={"num_windows": 1})
    assert RFDETRConfig.from_variant("base").backbone_config.num_windows == 4


def test_resolution_follows_from_the_position_table_when_it_is_not_given():
    backbone = {"patch_size": 14, "num_windows": 4, "image_size": 518}
    assert RFDETRConfig(backbone_config=backbone).resolution == 560


def test_windowed_blocks_are_those_before_the_last_tap_that_are_not_tapped():
    assert RFDETRBackboneConfig().window_block_indexes == [0, 1, 2, 4, 5, 7, 8, 10, 11]
    assert RFDETRBackboneConfig(out_indices=[2, 5, 8, 11]).window_block_indexes == [0, 1, 3, 4, 6, 7, 9, 10]


def test_stages_can_be_given_by_name():
    config = RFDETRBackboneConfig(out_features=["stage2", "stage5"])
    assert config.out_indices == [2, 5]
    assert config.out_features == ["stage2", "stage5"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resolution": 400}, r"resolution 400 .*16 x 2 = 32: use 384 or 416"),
        ({"decoder_self_attention_heads": 7}, "decoder_self_attention_heads 7 does not divide d_model 256"),
        ({"decoder_cross_attention_heads": 24}, "decoder_cross_attention_heads 24 does not divide d_model 256"),
        ({"num_queries": 0}, "num_queries must be a positive integer"),
        ({"group_detr": 1.5}, "group_detr must be a positive integer"),
        ({"projector_scales": ["P5", "P3"]}, "projector_scales .* ascending"),
        ({"projector_scales": ["P3", "P5"], "num_feature_levels": 1}, "num_feature_levels 1 differs"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"activation_function": "relu"}, "activation_function is 'relu', but RF-DETR models have 'silu'"),
        ({"backbone_config": {"out_indices": [3, 6, 13]}}, r"out_indices \[3, 6, 13\] .*num_hidden_layers \(12\)"),
        ({"backbone_config": {"out_indices": [6, 3]}}, "ascending"),
        ({"backbone_config": {"out_indices": [0, 3]}}, "within 1"),
        ({"backbone_config": {"num_attention_heads": 5}}, "num_attention_heads 5 does not divide hidden_size 384"),
        ({"backbone_config": {"image_size": 8}}, "image_size 8 is smaller than patch_size 16"),
        ({"backbone_config": {"drop_path_rate": 1.5}}, "drop_path_rate"),
        ({"backbone_config": {"use_swiglu_ffn": True}}, "use_swiglu_ffn is True"),
        ({"backbone_config": {"num_register_tokens": 4}}, "num_register_tokens is 4"),
        ({"backbone_config": {"model_type": "swin"}}, "model_type 'swin'"),
        ({"backbone_config": {"out_features": ["stage1"], "out_indices": [3]}}, "different stages"),
        ({"backbone_config": {"window_block_indexes": [0]}}, "window_block_indexes"),
    ],
)
def test_invalid_combinations_name_the_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        RFDETRConfig(**fields)


def test_unknown_variant_and_unknown_field_are_errors():
    with pytest.raises(ValueError, match="unknown variant 'huge': choose one of nano"):
        RFDETRConfig.from_variant("huge")
    with pytest.raises(ValueError, match=r"unknown fields \['num_querys'\]"):
        RFDETRConfig.from_variant("nano", num_querys=100)


def test_a_field_changed_after_construction_is_checked_by_the_model(deep_config):
    config = deep_config()
    config.d_model = 30
    with pytest.raises(ValueError, match="does not divide d_model 30"):
        RFDETRForObjectDetection(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_save_and_load_keep_every_field(name, tmp_path):
    config = RFDETRConfig.from_variant(name, id2label={0: "cat", 1: "dog"})
    config.save_pretrained(tmp_path)
    loaded = RFDETRConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(loaded.backbone_config, RFDETRBackboneConfig)
    assert loaded.id2label == {0: "cat", 1: "dog"}
    assert loaded.num_labels == 2


def test_file_holds_values_whose_defaults_differ_in_transformers(tmp_path):
    RFDETRConfig.from_variant("nano").save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["model_type"], fields["dropout"], fields["layer_norm_eps"]) == ("rf_detr", 0.0, 1e-6)
    assert fields["decoder_n_points"] == 2
    assert fields["backbone_config"]["out_features"] == ["stage3", "stage6", "stage9", "stage12"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_keypoints_per_class": [0, 0]}, "num_keypoints_per_class"),
        ({"num_keypoints_per_class": [3, -1]}, "num_keypoints_per_class"),
        ({"num_keypoints_per_class": [3, 2, 1], "num_labels": 2}, "num_labels"),
        ({"intermediate_size": 512}, "remove the field"),
        ({"mask_downsample_ratio": 0}, "mask_downsample_ratio"),
    ],
)
def test_impossible_heads_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RFDETRConfig(**fields)


def test_the_keypoint_configuration_survives_the_file(tmp_path):
    schema = {"names": ["tip", "tail"], "flip_pairs": [], "skeleton": [[0, 1]], "sigmas": [0.1, 0.1]}
    config = RFDETRConfig(num_keypoints_per_class=[2, 0], keypoint_schema=schema)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rf_detr_keypoint"
    assert RFDETRConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_models_that_transformers_cannot_represent_have_their_own_model_type(tmp_path):
    config = RFDETRConfig.from_variant("large-deprecated")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rf_detr_multi_level"
    assert RFDETRConfig.from_pretrained(tmp_path).projector_scales == ["P3", "P5"]


def test_file_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr", "d_model": 256}))
    with pytest.raises(ValueError, match="model_type 'detr'"):
        RFDETRConfig.from_pretrained(tmp_path)


def test_config_written_by_transformers_is_read(tmp_path):
    rf_detr = pytest.importorskip("transformers.models.rf_detr.configuration_rf_detr")
    theirs = rf_detr.RfDetrConfig(num_labels=7, dropout=0.0)
    theirs.save_pretrained(tmp_path)
    ours = RFDETRConfig.from_pretrained(tmp_path)
    assert (ours.num_labels, ours.decoder_layers, ours.decoder_n_points) == (7, 3, theirs.decoder_n_points)
    assert ours.backbone_config.out_indices == [2, 5, 8, 11]
    assert ours.backbone_config.hidden_size == theirs.backbone_config.hidden_size
    assert (ours.backbone_config.patch_size, ours.backbone_config.num_windows, ours.resolution) == (14, 4, 560)
