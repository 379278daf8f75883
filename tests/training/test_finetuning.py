import sys

import pytest
import torch

from rfdetr_hf import RFDETRForInstanceSegmentation, RFDETRForObjectDetection, RFDETRTrainingArguments
from rfdetr_hf.training.finetuning import (
    adapter_state,
    add_lora,
    freeze_encoder_blocks,
    has_adapters,
    load_parts,
    merge_adapters,
    part_of,
    plain_state,
    train_only,
    unmerged_state,
)
from rfdetr_hf.training.optimization import build_param_groups


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def pixels():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model.eval()(pixels()).logits


@pytest.fixture
def model(tiny_model):
    """Three blocks, of which the last is not used; no parameter at zero."""
    model = tiny_model(backbone_config={"out_indices": [1, 2]})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def train_adapters(model):
    """Give the adapters weights as after training: fresh ones have no effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


# ---------------------------------------------------------------------------------------------------- freezing


def test_every_parameter_has_a_part(model):
    parts = {name: part_of(name) for name, _ in model.named_parameters()}
    assert parts["backbone.0.encoder.encoder.embeddings.cls_token"] == "encoder"
    assert parts["backbone.0.projector.stages.0.0.cv1.conv.weight"] == "projector"
    assert parts["transformer.decoder.norm.weight"] == parts["query_feat.weight"] == "decoder"
    heads = {name.split(".")[0] for name, part in parts.items() if part == "heads"}
    assert heads == {"class_embed", "bbox_embed", "transformer"}


def test_train_only(model):
    everything = trainable(model)
    train_only(model, ["heads"])
    assert trainable(model) == {name for name in everything if part_of(name) == "heads"}
    train_only(model, ["encoder", "projector", "decoder", "heads"])
    assert trainable(model) == everything
    for parts in (["head"], []):
        with pytest.raises(ValueError, match="encoder, projector, decoder, heads"):
            train_only(model, parts)


def test_freeze_encoder_blocks(model):
    everything = trainable(model)
    freeze_encoder_blocks(model, 0)
    assert trainable(model) == everything
    freeze_encoder_blocks(model, 1)
    frozen = {name.split("encoder.encoder.")[1].split(".")[0:3][0] for name in everything - trainable(model)}
    assert frozen == {"embeddings", "encoder"}
    assert any("layer.1." in name for name in trainable(model))
    assert not any("layer.0." in name or "embeddings" in name for name in trainable(model))
    with pytest.raises(ValueError, match="freeze_encoder_blocks=3.*uses 2 blocks"):
        freeze_encoder_blocks(model, 3)


def test_gradients_reach_what_is_trained_and_nothing_else(model):
    freeze_encoder_blocks(model, 1)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}] * 2
    model.train()(pixels(), labels=labels).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable(model)


# ---------------------------------------------------------------------------------------------------- parts of files


def test_load_parts(model, tiny_config, tmp_path):
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    other = RFDETRForInstanceSegmentation(tiny_config(("cell",), backbone_config={"out_indices": [1, 2]}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    load_parts(other, tmp_path, ["encoder", "decoder"])
    source = model.state_dict()
    for name, tensor in other.state_dict().items():
        expected = source[name] if part_of(name) in ("encoder", "decoder") else before[name]
        assert torch.equal(tensor, expected), name


def test_load_parts_that_do_not_fit(model, tiny_config, tmp_path):
    model.save_pretrained(tmp_path)
    other = RFDETRForObjectDetection(tiny_config(("cell",), backbone_config={"out_indices": [1, 2]}))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"leave out the part heads"):
        load_parts(other, tmp_path, ["heads", "encoder"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    segmentation = RFDETRForInstanceSegmentation(tiny_config(backbone_config={"out_indices": [1, 2]}))
    with pytest.raises(ValueError, match="has no segmentation_head"):
        load_parts(segmentation, tmp_path, ["heads"])


# ---------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_start_without_effect_and_merge_exactly(model, use_dora):
    pytest.importorskip("peft")
    names, before = list(model.state_dict()), logits(model)
    add_lora(model, rank=4, alpha=8, target_modules=["query", "value", "fc1"], use_dora=use_dora)
    torch.testing.assert_close(logits(model), before)
    train_adapters(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_adapters(model)
    assert not has_adapters(model) and list(model.state_dict()) == names
    torch.testing.assert_close(logits(model), adapted, atol=2e-5, rtol=1e-5)


def test_adapters_are_what_is_trained_of_the_encoder(model):
    pytest.importorskip("peft")
    outside = {name for name in trainable(model) if part_of(name) != "encoder"}
    add_lora(model, rank=2)
    encoder = trainable(model) - outside
    assert outside <= trainable(model) and encoder and all(".lora_" in name for name in encoder)
    assert not any("layer.2." in name for name in encoder)
    args = RFDETRTrainingArguments()
    groups = build_param_groups(model, args)
    assert {name for group in groups for name in group["param_names"]} == trainable(model)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["encoder.layer.0.decay"] == pytest.approx(rates["encoder.layer.1.decay"] * args.layer_decay)


@pytest.mark.parametrize("use_dora", [False, True])
def test_plain_state_and_back(model, tiny_config, use_dora):
    pytest.importorskip("peft")
    add_lora(model, rank=4, use_dora=use_dora)
    train_adapters(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, adapters = plain_state(model, state), adapter_state(state)
    fresh = RFDETRForObjectDetection(tiny_config(backbone_config={"out_indices": [1, 2]}))
    fresh.load_state_dict(plain)
    torch.testing.assert_close(logits(fresh), logits(model), atol=2e-5, rtol=1e-5)
    restored = unmerged_state(plain, adapters)
    assert restored.keys() == state.keys() and all(torch.equal(restored[name], state[name]) for name in state)


def test_without_adapters_a_state_is_plain(model):
    state = model.state_dict()
    assert plain_state(model, state).keys() == state.keys() and adapter_state(state) == {}
    merge_adapters(model)


def test_adapters_that_do_not_fit(model, monkeypatch):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="dense, fc1, fc2, key, query, value"):
        add_lora(model, target_modules=["q_proj"])
    add_lora(model)
    with pytest.raises(ValueError, match="merge_adapters"):
        add_lora(model)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"rfdetr-hf\[lora\]"):
        add_lora(model)
