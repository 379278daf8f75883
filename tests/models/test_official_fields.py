"""Every field of the official ModelConfig is honoured, refused by name, or listed as without effect."""

import logging

import pytest
import torch
from helpers.official_files import legacy_payload, official_settings

from rfdetr_hf import RFDETRConfig, RFDETRForInstanceSegmentation, RFDETRForKeypointDetection, RFDETRForObjectDetection
from rfdetr_hf.models.files import official

# The fields of rfdetr 1.11.2; a slow test compares them with the package.
MODEL_CONFIG = """
    amp backbone_lora bbox_reparam ca_nheads compile cuda_graphs dec_layers dec_n_points device dual_projector
    dual_projector_kp_only encoder freeze_encoder fused_optimizer gradient_checkpointing group_detr
    grouppose_keypoint_dim_downscale hidden_dim ia_bce_loss inter_instance_kp_attn keypoint_cross_attn layer_norm
    license lite_refpoint_refine mask_downsample_ratio model_name num_channels num_classes num_decoder_registers
    num_keypoints_per_class num_queries num_select num_windows out_feature_indexes patch_size positional_encoding_size
    postprocess_trace_alpha pretrain_weights projector_scale resolution sa_nheads segmentation_head two_stage
    use_grouppose_keypoints
""".split()
# Of the constants beside it, ModelDefaults, those that shape the network.
MODEL_DEFAULTS = """
    vit_encoder_num_layers window_block_indexes position_embedding rms_norm dim_feedforward decoder_norm use_cls_token
    encoder_only backbone_only
""".split()
BY_TASK = {"dual_projector", "dual_projector_kp_only"}
OTHER = {
    "two_stage": False, "bbox_reparam": False, "lite_refpoint_refine": False, "layer_norm": False,
    "keypoint_cross_attn": False, "inter_instance_kp_attn": True, "grouppose_keypoint_dim_downscale": 2,
    "num_decoder_registers": 4, "backbone_lora": True, "position_embedding": "learned", "decoder_norm": "Identity",
    "use_cls_token": True, "rms_norm": True, "encoder_only": True, "backbone_only": True,
}  # fmt: skip
# The official encoders have heads of 64 channels, which files do not state.
ENCODER = {"hidden_size": 128, "num_attention_heads": 2}


@pytest.fixture
def payload(deep_config):
    """An official-looking file of a tiny model with some fields more: `payload(model_class, place, **fields)`."""

    def make(model_class=RFDETRForObjectDetection, place="model_config", **fields):
        schema = {"num_keypoints_per_class": [3]} if model_class is RFDETRForKeypointDetection else {}
        torch.manual_seed(0)
        model = model_class(deep_config(backbone_config=ENCODER, **schema))
        content = {"model": model.state_dict(), "args": official_settings(model.config) | schema}
        if place == "hyper_parameters":
            content = {
                "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
                "hyper_parameters": content["args"] | fields,
            }
        else:
            content[place] = {**content.get(place, {}), **fields}
        return model, content

    return make


def test_no_field_is_forgotten():
    groups = [official.READ_FIELDS, official.TENSOR_FIELDS, set(official.FIXED_FIELDS), BY_TASK]
    groups += [set(official.OPTION_FIELDS), official.IGNORED_FIELDS]
    groups += [{"window_block_indexes"}]
    assert {*MODEL_CONFIG, *MODEL_DEFAULTS} <= set().union(*groups)
    assert sum(len(group) for group in groups) == len(set().union(*groups)), "a field stands in two groups"
    assert set(OTHER) == set(official.FIXED_FIELDS)


@pytest.mark.slow
def test_fields_are_those_of_the_package():
    config = pytest.importorskip("rfdetr.config")
    assert set(config.ModelConfig.model_fields) == set(MODEL_CONFIG)


@pytest.mark.parametrize("place", ["model_config", "args", "hyper_parameters"])
@pytest.mark.parametrize("name", OTHER)
def test_what_leaves_no_trace_in_the_tensors_is_refused_by_name(payload, name, place):
    _, content = payload(place=place, **{name: OTHER[name]})
    with pytest.raises(ValueError, match=f"made with {name}={OTHER[name]!r}"):
        RFDETRForObjectDetection.from_official(content, variant="nano")
    _, content = payload(place=place, **{name: official.FIXED_FIELDS[name]})
    RFDETRForObjectDetection.from_official(content, variant="nano")


def test_projectors_of_keypoint_models(payload):
    model, content = payload(RFDETRForKeypointDetection, dual_projector=True, dual_projector_kp_only=True)
    loaded = RFDETRForKeypointDetection.from_official(content, variant="keypoint-preview")
    assert torch.equal(loaded.query_feat.weight, model.query_feat.weight)
    for name in BY_TASK:
        _, content = payload(RFDETRForKeypointDetection, **{name: False})
        with pytest.raises(ValueError, match=f"made with {name}=False"):
            RFDETRForKeypointDetection.from_official(content, variant="keypoint-preview")
    _, content = payload(dual_projector=True)
    with pytest.raises(ValueError, match="made with dual_projector=True"):
        RFDETRForObjectDetection.from_official(content, variant="nano")


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"resolution": 96}, lambda c: c.resolution == 96),
        ({"num_windows": 1}, lambda c: c.backbone_config.num_windows == 1),
        ({"out_feature_indexes": [1, 2]}, lambda c: c.backbone_config.out_indices == [1, 2]),
        ({"sa_nheads": 2}, lambda c: c.decoder_self_attention_heads == 2),
        ({"ca_nheads": 2}, lambda c: c.decoder_cross_attention_heads == 2),
    ],
)
def test_what_leaves_no_trace_and_is_known_is_honoured(payload, fields, value):
    _, content = payload(**fields)
    assert value(RFDETRForObjectDetection.from_official(content, variant="nano").config)


def test_ratio_of_masks_is_honoured(payload):
    _, content = payload(RFDETRForInstanceSegmentation, mask_downsample_ratio=8)
    loaded = RFDETRForInstanceSegmentation.from_official(content, variant="seg-nano")
    assert loaded.config.mask_downsample_ratio == 8


@pytest.mark.parametrize(("name", "value"), [("num_select", 4), ("postprocess_trace_alpha", 0.5)])
def test_options_of_post_processing_are_named(payload, caplog, name, value):
    _, content = payload(**{name: value})
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        RFDETRForObjectDetection.from_official(content, variant="nano")
    assert f"{name}={value} is {official.OPTION_FIELDS[name]} of post-processing" in caplog.text


@pytest.mark.parametrize("name", sorted(official.IGNORED_FIELDS))
def test_fields_without_effect_change_nothing(payload, name):
    value = {"license": "MIT", "model_name": None, "device": "cuda"}.get(name, True)
    model, content = payload(**{name: value})
    loaded = RFDETRForObjectDetection.from_official(content, variant="nano")
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    _, plain = payload()
    assert loaded.config.to_dict() == RFDETRForObjectDetection.from_official(plain, variant="nano").config.to_dict()


def test_fields_of_every_variant_pass(payload):
    for name, variant in RFDETRConfig.variants().items():
        if variant.task == "detection":
            model, content = payload(num_select=variant.fields.get("num_queries"), ia_bce_loss=True, two_stage=True)
            assert RFDETRForObjectDetection.from_official(content, variant=name) is not None
            break
    assert legacy_payload(model)["args"].num_windows == 2


@pytest.mark.parametrize(
    "fields", [{"window_block_indexes": [0, 1]}, {"window_block_indexes": []}, {"encoder": "dinov2_small"},
               {"encoder": "dinov2_registers_windowed_small"}]
)  # fmt: skip
def test_other_windows_are_refused(payload, fields):
    _, content = payload(**fields)
    with pytest.raises(ValueError, match=f"made with {next(iter(fields))}="):
        RFDETRForObjectDetection.from_official(content, variant="nano")


@pytest.mark.parametrize(
    "fields", [{"window_block_indexes": [0, 2]}, {"window_block_indexes": None}, {"encoder": "dinov2_windowed_small"},
               {"encoder": "dinov2_small", "num_windows": 1}, {"window_block_indexes": [0], "num_windows": 1}]
)  # fmt: skip
def test_the_same_windows_pass(payload, fields):
    _, content = payload(**fields)
    assert RFDETRForObjectDetection.from_official(content, variant="nano").config.backbone_config.out_indices == [1, 3]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"window_block_indexes": 5}, "window_block_indexes=5, which must be a list of numbers"),
        ({"out_feature_indexes": ["1", 3]}, r"out_feature_indexes=\['1', 3\], which must be a list"),
        ({"num_windows": "2"}, "num_windows='2', which must be a number"),
        ({"resolution": 0}, "resolution=0, which must be a number from 1"),
        ({"sa_nheads": 5}, "sa_nheads 5 .*hidden_dim.*torch.load gives"),
        ({"ca_nheads": 5}, "ca_nheads 5 .*torch.load gives"),
        ({"resolution": 100}, "resolution 100 .*torch.load gives"),
        ({"out_feature_indexes": [1, 2, 30]}, r"out_feature_indexes \[1, 2, 30\] .*torch.load gives"),
        ({"class_names": list("abcdefgh")}, "8 names for .*torch.load gives .*from_official"),
    ],
)
def test_fields_of_another_kind_are_refused_by_name(payload, fields, said):
    _, content = payload(place="args", **fields)
    with pytest.raises(ValueError, match=f"the dictionary: .*{said}"):
        RFDETRForObjectDetection.from_official(content, variant="nano")


@pytest.mark.parametrize(
    ("name", "earlier"),
    [("bbox_reparam", False), ("num_windows", 1), ("resolution", 640), ("out_feature_indexes", (3,))],
)
def test_places_that_say_different_things_are_named(payload, caplog, name, earlier):
    _, content = payload(place="args")
    content["model_config"] = {name: content["args"].get(name, official.FIXED_FIELDS.get(name))}
    RFDETRForObjectDetection.from_official(content, variant="nano")
    assert "the latter counts" not in caplog.text
    content["args"][name] = earlier
    RFDETRForObjectDetection.from_official(content, variant="nano")
    assert f"says {name}=" in caplog.text and "in model_config" in caplog.text and "the latter counts" in caplog.text


def test_what_older_files_carry_unused_is_named(payload, caplog):
    _, content = payload(window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10])
    RFDETRForObjectDetection.from_official(content, variant="nano")
    assert "as the official package does when it reads such a file" in caplog.text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"field_of_1_12": True}, "field_of_1_12=True, which this package does not know"),
        ({"patch_size": 14, "dec_layers": 7}, "dec_layers=7, tensors 2, patch_size=14, tensors 16; the tensors count"),
        ({"num_queries": 99}, "num_queries=99, tensors 6"),
        ({"positional_encoding_size": 37}, "positional_encoding_size=37, tensors "),
        (
            {"dec_n_points": 7, "projector_scale": ("P3", "P4")},
            "dec_n_points=7, tensors 2, projector_scale=['P3'",
        ),
        (
            {"segmentation_head": True, "num_channels": 4},
            "num_channels=4, tensors 3, segmentation_head=True",
        ),
    ],
)
def test_fields_that_mean_nothing_here_are_named(payload, caplog, fields, said):
    _, content = payload(**fields)
    RFDETRForObjectDetection.from_official(content, variant="nano")
    assert said in caplog.text
    caplog.clear()
    _, content = payload(num_queries=6, hidden_dim=32)
    RFDETRForObjectDetection.from_official(content, variant="nano")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
