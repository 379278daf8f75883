"""Model folders that are damaged, wrapped or full of NaN: right, or a sentence that names the file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rfdetr_hf import RFDETRForObjectDetection, load_class_rows, load_model, load_parts


def change_weights(model_folder, change):
    state = load_file(model_folder / "model.safetensors")
    save_file(change(state), model_folder / "model.safetensors", {"format": "pt"})


def change_config(model_folder, **fields):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["class_embed.bias", "transformer.decoder.norm.weight", "query_feat.weight"])
def test_nan_is_refused_at_load(model_folder, name, value):
    def change(state):
        state[name].view(-1)[1] = value
        return state

    change_weights(model_folder, change)
    with pytest.raises(ValueError, match=f"model: NaN or infinite values in 1 of .*{name}"):
        load_model(model_folder)


def test_nan_is_refused_in_official_files(model_folder, tmp_path):
    model = RFDETRForObjectDetection.from_pretrained(model_folder)
    model.save_official(tmp_path / "good.pth")
    payload = torch.load(tmp_path / "good.pth", weights_only=False)
    payload["model"]["bbox_embed.layers.0.weight"][0, 0] = float("nan")
    torch.save(payload, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="bad.pth: NaN .*bbox_embed.layers.0.weight"):
        load_model(tmp_path / "bad.pth")


def test_nan_is_refused_at_every_other_door(model_folder):
    whole = RFDETRForObjectDetection.from_pretrained(model_folder)

    def change(state):
        for name in ("class_embed.weight", "backbone.0.encoder.encoder.layernorm.weight"):
            state[name].view(-1)[1] = float("nan")
        return state

    state = change({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    change_weights(model_folder, change)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for load in (
        lambda: load_parts(whole, model_folder, ["heads"]),
        lambda: load_parts(whole, model_folder, ["projector", "encoder"]),
        lambda: load_class_rows(whole, model_folder),
        lambda: RFDETRForObjectDetection.from_pretrained(None, config=whole.config, state_dict=state),
    ):
        with pytest.raises(ValueError, match="NaN or infinite values in [12] of"):
            load()
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.state_dict().items())
    load_parts(whole, model_folder, ["projector", "decoder"])


def test_nan_never_reaches_a_file(model_folder, tmp_path):
    model = RFDETRForObjectDetection.from_pretrained(model_folder)
    with torch.no_grad():
        model.class_embed.bias[0] = float("nan")
    for save in (model.save_pretrained, model.save_official):
        with pytest.raises(ValueError, match="new.*NaN .*class_embed.bias"):
            save(tmp_path / "new")
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("encoder.layer.0.", "encoder.layer.0._orig_mod."),
        lambda name: name.replace("transformer.", "transformer._orig_mod.", 1),
    ],
)
def test_keys_of_compiled_and_wrapped_models_are_read(model_folder, wrap):
    expected = RFDETRForObjectDetection.from_pretrained(model_folder).state_dict()
    change_weights(model_folder, lambda state: {wrap(name): tensor for name, tensor in state.items()})
    found = load_model(model_folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9999])
def test_weights_that_are_cut_off(model_folder, share):
    file = model_folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"model.safetensors is no complete safetensors file"):
        load_model(model_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no index of shards"),
        ("{}", "no index of shards"),
        ("[]", "no index of shards"),
        ('{"weight_map": {"a": "lost.safetensors"}}', "lost.safetensors"),
        ('{"weight_map": 3}', "no index of shards"),
    ],
)
def test_index_of_shards(model_folder, text, message):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        load_model(model_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": "detr"}', "\x00\x01"])
def test_configuration_that_is_damaged(model_folder, text):
    (model_folder / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match="config"):
        load_model(model_folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": ["a"]}, "id2label"),
        ({"id2label": 5}, "id2label"),
        ({"num_queries": "many"}, "num_queries"),
        ({"num_queries": -1}, "num_queries"),
        ({"num_queries": True}, "num_queries"),
        ({"decoder_layers": None}, "decoder_layers"),
        ({"backbone_config": []}, "backbone_config"),
        ({"backbone_config": "small"}, "backbone_config"),
        ({"backbone_config": {"out_indices": "3"}}, "out_indices"),
        ({"backbone_config": {"out_indices": ["3"]}}, "out_indices"),
        ({"backbone_config": {"hidden_size": "wide"}}, "hidden_size"),
        ({"backbone_config": {"window_block_indexes": 5}}, "window_block_indexes must be a list"),
        ({"backbone_config": {"out_features": ["third"]}}, "out_features"),
        ({"dtype": 1.5}, "dtype must be a name"),
        ({"backbone_config": {"drop_path_rate": "no"}}, "drop_path_rate"),
        ({"projector_scales": 4}, "projector_scales"),
        ({"projector_scales": ["P9"]}, "projector_scales"),
        ({"d_model": 33}, "d_model"),
        ({"resolution": 65}, "resolution"),
        ({"resolution": "large"}, "resolution"),
        ({"dropout": "no"}, "dropout"),
        ({"focal_alpha": None}, "focal_alpha"),
        ({"class_cost": float("nan")}, "class_cost"),
        ({"num_keypoints_per_class": 3}, "num_keypoints_per_class"),
        ({"dtype": "float33"}, "float33"),
        ({"decoder_layers": 10**9}, "decoder_layers is 1000000000"),
        ({"group_detr": 10**9}, "group_detr"),
        ({"d_model": 2**40}, "d_model"),
        ({"num_keypoints_per_class": [10**9]}, "num_keypoints_per_class"),
    ],
)
def test_fields_that_are_wrong_are_named_with_the_file(model_folder, fields, named):
    change_config(model_folder, **fields)
    with pytest.raises(ValueError) as caught:
        load_model(model_folder)
    assert str(model_folder) in str(caught.value) and named in str(caught.value)


def test_tensor_of_another_shape_or_kind(model_folder):
    change_weights(model_folder, lambda state: {**state, "class_embed.bias": torch.zeros(9)})
    with pytest.raises(ValueError, match="class_embed"):
        load_model(model_folder)


def test_tensor_that_is_lost_or_foreign(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "foreign")
    change_weights(model_folder, lambda state: {k: v for k, v in state.items() if k != "bbox_embed.layers.0.bias"})
    with pytest.raises(ValueError, match="model .*missing: bbox_embed.layers.0.bias"):
        load_model(model_folder)
    change_weights(tmp_path / "foreign", lambda state: {**state, "more": torch.zeros(1)})
    with pytest.raises(ValueError, match="foreign .*not part of the model: more"):
        load_model(tmp_path / "foreign")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_a_type_that_no_model_has(model_folder, dtype):
    def change(state):
        return {**state, "class_embed.weight": state["class_embed.weight"].to(dtype)}

    change_weights(model_folder, change)
    with pytest.raises(ValueError, match=f"model: class_embed.weight is of the type {dtype}"):
        load_model(model_folder)
