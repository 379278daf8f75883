"""Adapters of low rank: without effect at first, merged exactly, and never in a file."""

import sys

import pytest
import torch
from helpers.models import ENCODER_ATTENTION, pixels
from transformers import AutoModelForObjectDetection

from rfdetr_hf import RFDETRForObjectDetection, add_lora, merge_adapters
from rfdetr_hf.models.adapters import adapter_state, has_adapters, plain_state, unmerged_state


@torch.no_grad()
def logits(model):
    return model.eval()(pixels()).logits


def train_adapters(model):
    """Give the adapters weights as after training: fresh ones have no effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_start_without_effect_and_merge_exactly(lively_model, use_dora):
    pytest.importorskip("peft")
    names, before = list(lively_model.state_dict()), logits(lively_model)
    add_lora(lively_model, rank=4, alpha=8, target_modules=["query", "value", "fc1"], use_dora=use_dora)
    torch.testing.assert_close(logits(lively_model), before)
    train_adapters(lively_model)
    adapted = logits(lively_model)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_adapters(lively_model)
    assert not has_adapters(lively_model) and list(lively_model.state_dict()) == names
    torch.testing.assert_close(logits(lively_model), adapted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_plain_state_and_back(lively_model, tiny_config, use_dora):
    pytest.importorskip("peft")
    add_lora(lively_model, rank=4, use_dora=use_dora)
    train_adapters(lively_model)
    state = {name: tensor.clone() for name, tensor in lively_model.state_dict().items()}
    plain, adapters = plain_state(lively_model, state), adapter_state(state)
    fresh = RFDETRForObjectDetection(tiny_config(backbone_config={"out_indices": [1, 2]}))
    fresh.load_state_dict(plain)
    torch.testing.assert_close(logits(fresh), logits(lively_model), atol=2e-5, rtol=1e-5)
    restored = unmerged_state(plain, adapters)
    assert restored.keys() == state.keys() and all(torch.equal(restored[name], state[name]) for name in state)


def test_without_adapters_a_state_is_plain(lively_model):
    state = lively_model.state_dict()
    assert plain_state(lively_model, state).keys() == state.keys() and adapter_state(state) == {}
    merge_adapters(lively_model)


def test_adapters_that_do_not_fit(lively_model, monkeypatch):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="dense, fc1, fc2, key, query, value"):
        add_lora(lively_model, target_modules=["q_proj"])
    add_lora(lively_model)
    with pytest.raises(ValueError, match="merge_adapters"):
        add_lora(lively_model)
    merge_adapters(lively_model)
    with pytest.raises(ValueError, match="the encoder uses 2, so none is left"):
        add_lora(lively_model, first_block=2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lora\]'"):
        add_lora(lively_model)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ENCODER_ATTENTION},
        {"target_modules": ENCODER_ATTENTION, "use_dora": True},
        {"target_modules": r"class_embed|.*fc1", "use_rslora": True},
    ],
)
def test_files_of_a_model_with_adapters_are_those_of_a_plain_one(lively_model, tmp_path, options):
    """Whoever put the adapters in, under whatever name."""
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, **options), lively_model, "mine")
    train_adapters(lively_model)
    adapted = logits(lively_model)
    lively_model.save_pretrained(tmp_path / "saved")
    lively_model.save_pretrained(tmp_path / "given", state_dict=lively_model.state_dict())
    lively_model.save_official(tmp_path / "saved.pth")
    read = (
        RFDETRForObjectDetection.from_pretrained(tmp_path / "given"),
        RFDETRForObjectDetection.from_pretrained(tmp_path / "saved"),
        AutoModelForObjectDetection.from_pretrained(tmp_path / "saved"),
        RFDETRForObjectDetection.from_official(tmp_path / "saved.pth", drop_unused_rows=True),
    )
    for plain in read:
        torch.testing.assert_close(logits(plain), adapted, atol=2e-5, rtol=1e-5)
    assert has_adapters(lively_model) and torch.equal(logits(lively_model), adapted)
