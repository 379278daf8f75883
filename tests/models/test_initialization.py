"""The first values of weights."""

import math

import pytest
import torch
from helpers.models import images

from rfdetr_hf import RFDETRForObjectDetection


def bounds(tensor):
    return tensor.abs().max().item()


def test_initialisation_of_the_encoder(deep_config):
    torch.manual_seed(0)
    wide = {"hidden_size": 192, "num_attention_heads": 3}
    vit = RFDETRForObjectDetection(deep_config(backbone_config=wide)).backbone[0].vit
    layer = vit.layers[0]
    for weight in (layer.mlp.fc1.weight, layer.attention.attention["query"].weight, vit.embeddings.position_embeddings):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert weight.mean().item() == pytest.approx(0, abs=2e-3)
    assert bounds(layer.mlp.fc1.bias) == bounds(vit.embeddings.mask_token) == 0
    assert (layer.layer_scale1.lambda1 == 1).all() and (layer.norm1.weight == 1).all()
    assert bounds(vit.layernorm.bias) == 0


def test_initialisation_of_projector_and_transformer(deep_config):
    torch.manual_seed(0)
    model = RFDETRForObjectDetection(deep_config(projector_scales=["P3", "P5"]))
    projector, transformer = model.backbone[0].projector, model.transformer
    conv = projector.stages[0][0].cv1.conv.weight
    assert bounds(conv) == pytest.approx(1 / math.sqrt(conv.shape[1]), rel=0.01)
    up = projector.stages_sampling[0][0][0]
    assert bounds(up.weight) == pytest.approx(1 / math.sqrt(24 * 4), rel=0.02)
    layer = transformer.decoder.layers[0]
    assert bounds(layer.self_attn.in_proj_weight) == pytest.approx(math.sqrt(6 / (4 * 32)), rel=0.02)
    assert bounds(layer.linear1.weight) == pytest.approx(math.sqrt(6 / (32 + 48)), rel=0.02)
    assert 0 < bounds(layer.linear1.bias) <= 1 / math.sqrt(32)
    assert bounds(transformer.enc_output[2].weight) == pytest.approx(math.sqrt(6 / 64), rel=0.02)
    cross = layer.cross_attn
    zero = [cross.sampling_offsets.weight, cross.attention_weights.weight, cross.attention_weights.bias]
    zero += [cross.value_proj.bias, cross.output_proj.bias, layer.self_attn.in_proj_bias, layer.self_attn.out_proj.bias]
    assert all(bounds(x) == 0 for x in zero)
    assert bounds(cross.value_proj.weight) == pytest.approx(math.sqrt(6 / 64), rel=0.02)


def test_sampling_points_start_in_a_direction_for_each_head(deep_config):
    config = deep_config(decoder_cross_attention_heads=16, projector_scales=["P3", "P5"])
    attention = RFDETRForObjectDetection(config).transformer.decoder.layers[0].cross_attn
    bias = attention.sampling_offsets.bias.reshape(16, 2, 2, 2)
    near = torch.tensor([[1.0, 0.0], [1.0, math.tan(math.pi / 8)]])
    torch.testing.assert_close(bias[:2, 0, 0], near, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(bias[:, :, 1], 2 * bias[:, :, 0])
    assert torch.equal(bias[:, 0], bias[:, 1])


def assert_fresh_heads(model):
    transformer = model.transformer
    torch.testing.assert_close(model.class_embed.bias, torch.full((5,), -math.log(99)))
    assert 0 < bounds(model.class_embed.weight) <= 1 / math.sqrt(32)
    for head in transformer.enc_out_class_embed:
        assert torch.equal(head.weight, model.class_embed.weight) and torch.equal(head.bias, model.class_embed.bias)
    for head in transformer.enc_out_bbox_embed:
        for twin, original in zip(head.parameters(), model.bbox_embed.parameters(), strict=True):
            assert torch.equal(twin, original)
            assert twin.data_ptr() != original.data_ptr()


def test_initialisation_of_the_heads_and_queries(deep_config):
    torch.manual_seed(0)
    model = RFDETRForObjectDetection(deep_config(num_queries=50))
    assert_fresh_heads(model)
    assert bounds(model.bbox_embed.layers[2].weight) == bounds(model.bbox_embed.layers[2].bias) == 0
    assert bounds(model.refpoint_embed.weight) == 0
    assert model.query_feat.weight.std().item() == pytest.approx(1, rel=0.05)


def test_boxes_start_at_their_anchors(model, rng):
    output = model.train()(images(rng))
    for boxes in (output.pred_boxes, output.enc_outputs_coord_logits):
        torch.testing.assert_close(boxes[..., 2:], torch.full((2, 18, 2), 0.05))


def test_every_parameter_is_initialised_after_loading_an_empty_checkpoint(deep_config):
    """Nothing may be left at what the memory happened to hold."""
    torch.manual_seed(0)
    empty = {"nothing": torch.zeros(1)}
    model = RFDETRForObjectDetection.from_pretrained(None, config=deep_config(), state_dict=empty)
    assert_fresh_heads(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(bounds(parameter) < 6 for parameter in model.parameters())
    assert model.query_feat.weight.std().item() == pytest.approx(1, rel=0.1)


def test_new_classes_get_new_heads_with_the_prior_bias(lively, tmp_path):
    lively.save_pretrained(tmp_path)
    names = {0: "cup", 1: "plate"}
    model = RFDETRForObjectDetection.from_pretrained(
        tmp_path, id2label=names, label2id={"cup": 0, "plate": 1}, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    assert model.class_embed.weight.shape == (2, 32)
    assert torch.allclose(model.class_embed.bias, torch.full((2,), -math.log(99)))
    assert all(torch.equal(x.weight, model.class_embed.weight) for x in model.transformer.enc_out_class_embed)
    trained = lively.bbox_embed.layers[2].weight.float()
    assert torch.equal(model.bbox_embed.layers[2].weight, trained)
