"""Folders that plain transformers writes: its own class, both of its layouts, and the quirks of its `config.json`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rfdetr_hf import RFDETRConfig, RFDETRForInstanceSegmentation, RFDETRForObjectDetection

plain = pytest.importorskip("transformers.models.rf_detr.modeling_rf_detr")
CLASSES = {
    "detection": (plain.RfDetrForObjectDetection, RFDETRForObjectDetection),
    "segmentation": (plain.RfDetrForInstanceSegmentation, RFDETRForInstanceSegmentation),
}
SIZES = {
    "d_model": 32, "decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "decoder_ffn_dim": 48,
    "decoder_layers": 2, "num_queries": 6, "group_detr": 3, "intermediate_size": 128,
    "id2label": {0: "ant", 1: "bee", 2: "cat"}, "label2id": {"ant": 0, "bee": 1, "cat": 2},
}  # fmt: skip
ENCODER = {
    "model_type": "rf_detr_dinov2", "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4,
    "out_indices": [1, 3], "patch_size": 16, "image_size": 128, "num_windows": 2,
}  # fmt: skip


@pytest.fixture(params=CLASSES)
def case(request):
    """A model of transformers with random weights, and our class for its task."""
    from transformers import RfDetrConfig

    theirs, ours = CLASSES[request.param]
    torch.manual_seed(0)
    model = theirs(RfDetrConfig(**SIZES, backbone_config=dict(ENCODER))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
    return model, ours


def assert_equal_outputs(model, theirs) -> None:
    pixels = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = model.eval()(pixels), theirs(pixels)
    for name in ("logits", "pred_boxes", "pred_masks"):
        if name in wanted:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("official_layout", [True, False])
def test_both_layouts_are_read(case, tmp_path, official_layout):
    theirs, ours = case
    theirs.save_pretrained(tmp_path, save_original_format=official_layout)
    model = ours.from_pretrained(tmp_path)
    assert model.config.id2label == SIZES["id2label"] and model.config.resolution == 128
    assert_equal_outputs(model, theirs)


def test_encoder_names_up_to_version_5_17(case, tmp_path):
    theirs, ours = case
    theirs.save_pretrained(tmp_path, save_original_format=False)
    old = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    state = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        for new, spelling in old.items():
            name = name.replace(f".attention.{new}.", f".attention.{spelling}.")
        state[name] = tensor
    assert any(name.endswith("attention.attention.query.weight") for name in state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal_outputs(ours.from_pretrained(tmp_path), theirs)


def test_round_trip_is_equal_and_complete(case, tmp_path):
    theirs, ours = case
    theirs.save_pretrained(tmp_path / "theirs")
    ours.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    written, back = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert written.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in written.items())
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


def edit(folder, **changes) -> RFDETRConfig:
    """Change fields of the written configuration (None removes) and read it."""
    fields = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        target = fields
        if name in ENCODER:
            target = fields["backbone_config"]
        target.pop(name, None) if value is None else target.__setitem__(name, value)
    (folder / "config.json").write_text(json.dumps(fields))
    return RFDETRConfig.from_pretrained(folder)


def test_quirks_of_the_configuration(case, tmp_path):
    """Dropout is a default that no model was trained with; the epsilon is what transformers computes with."""
    theirs, ours = case
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dropout"] == 0.1
    config = edit(tmp_path)
    assert (config.dropout, config.layer_norm_eps, config.decoder_n_points) == (0.0, 1e-5, 4)
    assert ours.from_pretrained(tmp_path, dropout=0.1).config.dropout == 0.1
    assert edit(tmp_path, layer_norm_eps=1e-6).layer_norm_eps == 1e-6


def test_missing_fields_mean_the_defaults_of_transformers(case, tmp_path):
    theirs, _ = case
    theirs.save_pretrained(tmp_path)
    config = edit(tmp_path, layer_norm_eps=None, decoder_n_points=None, decoder_layers=None, dropout=None)
    assert (config.layer_norm_eps, config.decoder_n_points, config.decoder_layers, config.dropout) == (1e-5, 4, 3, 0.0)
    config = edit(tmp_path, patch_size=None, num_windows=None, image_size=None)
    encoder = config.backbone_config
    assert (encoder.patch_size, encoder.num_windows, encoder.image_size) == (14, 4, 224)


def test_our_own_configuration_is_taken_as_it_is(tmp_path):
    RFDETRConfig(dropout=0.1, layer_norm_eps=1e-6, num_labels=2).save_pretrained(tmp_path)
    config = RFDETRConfig.from_pretrained(tmp_path)
    assert (config.dropout, config.layer_norm_eps) == (0.1, 1e-6)


def test_other_intermediate_size_matters_to_segmentation_alone(case, tmp_path):
    """Plain transformers writes 1024 into the file of every detector, whatever its width."""
    theirs, ours = case
    theirs.save_pretrained(tmp_path)
    if ours is RFDETRForInstanceSegmentation:
        with pytest.raises(ValueError, match="intermediate_size 1024 must be"):
            edit(tmp_path, intermediate_size=1024)
    else:
        assert edit(tmp_path, intermediate_size=1024).intermediate_size == 128
