"""Attention in one kernel and in plain steps."""

import logging

import pytest
import torch
from helpers.models import MODEL_CLASSES

from rfdetr_hf import RFDETRForObjectDetection


@pytest.mark.parametrize(("model_class", "fields", "extra"), MODEL_CLASSES)
def test_states_and_attention_weights(deep_config, rng, model_class, fields, extra):
    config = deep_config(**fields)
    model = model_class(config).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=rng)
    plain = model(pixels)
    assert not {"hidden_states", "attentions", "cross_attentions"} & set(plain)
    output = model(pixels, output_hidden_states=True, output_attentions=True)
    layers, queries, heads = config.decoder_layers, config.num_queries, config.decoder_self_attention_heads
    assert [state.shape for state in output.hidden_states] == [(2, queries, config.d_model)] * (layers + 1)
    assert [weights.shape for weights in output.attentions] == [(2, heads, queries, queries)] * layers
    points = (config.decoder_cross_attention_heads, 1, config.decoder_n_points)
    assert [weights.shape for weights in output.cross_attentions] == [(2, queries, *points)] * layers
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, heads, queries))
    torch.testing.assert_close(output.logits, plain.logits)
    normed = model.transformer.decoder.norm(output.hidden_states[-1])
    torch.testing.assert_close(normed, output.last_hidden_state)
    model.config.output_hidden_states = True
    assert len(model(pixels).hidden_states) == layers + 1


@pytest.mark.parametrize(("model_class", "fields", "extra"), MODEL_CLASSES)
def test_attention_in_plain_steps_is_equal(deep_config, rng, model_class, fields, extra, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = model_class(deep_config(**fields)).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=rng)
    expected = model(pixels)
    model.set_attn_implementation("eager")
    assert model.config.backbone_config._attn_implementation == "eager" and "undefined behavior" not in caplog.text
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda *args, **kwargs: calls.append(1)
    try:
        found = model(pixels)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    assert not calls
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "foo"])
def test_attention_that_the_models_do_not_have_is_refused(deep_config, name):
    model = RFDETRForObjectDetection(deep_config())
    with pytest.raises((ValueError, ImportError), match="(?i)attention|attn_implementation"):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == "sdpa" and model.config.backbone_config._attn_implementation is None
