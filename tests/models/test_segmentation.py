"""Instance segmentation: what the head adds to the detector."""

import json

import pytest
import torch

from rfdetr_hf import RFDETRForInstanceSegmentation


@pytest.fixture
def model(deep_config):
    torch.manual_seed(0)
    model = RFDETRForInstanceSegmentation(deep_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def make_labels(generator, counts, classes=5, size=(20, 24)):
    return [
        {
            "class_labels": torch.randint(classes, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
            "masks": torch.rand(n, *size, generator=generator) > 0.5,
        }
        for n in counts
    ]


def test_training_makes_no_dense_masks(model, rng):
    pixels = torch.randn(2, 3, 64, 64, generator=rng)
    output = model.train()(pixels, labels=make_labels(rng, (2, 1)))
    assert output.pred_masks is None
    assert output.logits.shape[1] == model.config.group_detr * model.config.num_queries
    with torch.no_grad():
        assert model.eval()(pixels).pred_masks.shape == (2, model.config.num_queries, 16, 16)


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_every_parameter_has_a_gradient(model, rng, counts):
    model.train()(torch.randn(2, 3, 64, 64, generator=rng), labels=make_labels(rng, counts)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == model.unused_parameter_names()
    if sum(counts):
        assert all(p.grad.any() for name, p in model.named_parameters() if name.startswith("segmentation_head"))


def test_evaluation_with_labels_uses_one_group(model, rng):
    pixels, labels = torch.randn(2, 3, 64, 64, generator=rng), make_labels(rng, (2, 1))
    with torch.no_grad():
        output = model.eval()(pixels, labels=labels)
        plain = model(pixels)
    assert (
        output.loss.isfinite() and {"loss_mask_ce", "loss_mask_dice_0", "loss_mask_ce_enc"} <= output.loss_dict.keys()
    )
    torch.testing.assert_close(output.pred_masks, plain.pred_masks)


def test_auxiliary_loss_off(deep_config, rng):
    model = RFDETRForInstanceSegmentation(deep_config(auxiliary_loss=False)).train()
    output = model(torch.randn(2, 3, 64, 64, generator=rng), labels=make_labels(rng, (2, 1)))
    masks = {name for name in output.loss_dict if "mask" in name}
    assert masks == {"loss_mask_ce", "loss_mask_dice", "loss_mask_ce_enc", "loss_mask_dice_enc"}


def test_layers_have_the_blocks_up_to_theirs(model, rng):
    """The head by itself: encoder features see no block, decoder layer i the first i + 1."""
    head, width = model.segmentation_head, model.config.d_model
    level, states = torch.randn(1, width, 4, 4, generator=rng), torch.randn(2, 1, 3, width, generator=rng)
    *layers, encoder = head(level, (64, 64), states, states[0])
    torch.testing.assert_close(layers[0].queries, encoder.queries)
    torch.testing.assert_close(head(level, (64, 64), states[1:], None)[0].dense(), layers[1].dense())
    with torch.no_grad():
        head.blocks[1].pwconv1.weight.add_(1)
    *changed, same = head(level, (64, 64), states, states[0])
    assert torch.equal(same.features, encoder.features) and torch.equal(changed[0].features, layers[0].features)
    assert not torch.equal(changed[1].features, layers[1].features)


def test_padded_batch_tells_the_loss_where_the_image_ends(model, rng):
    pixels, mask = torch.randn(2, 3, 64, 96, generator=rng), torch.ones(2, 64, 96)
    mask[1, 48:], mask[1, :, 72:] = 0, 0
    states = model._decode(pixels, mask, every_layer=False)
    layers = model._layers(states, pixels, mask, supervised=False)
    assert layers[0].masks.image_share.tolist() == [[1, 1], [0.75, 0.75]]
    assert model.train()(pixels, mask, labels=make_labels(rng, (2, 1))).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite(model, rng, dtype):
    with torch.autocast("cpu", dtype):
        output = model.train()(torch.randn(2, 3, 64, 64, generator=rng), labels=make_labels(rng, (2, 1)))
    output.loss.backward()
    assert output.loss.isfinite() and output.loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_saved_and_loaded(model, rng, tmp_path):
    pixels = torch.randn(1, 3, 64, 64, generator=rng)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["RFDETRForInstanceSegmentation"]
    again = RFDETRForInstanceSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).pred_masks, model.eval()(pixels).pred_masks, rtol=0, atol=0)


def test_initial_head(deep_config):
    torch.manual_seed(0)
    head = RFDETRForInstanceSegmentation(deep_config()).segmentation_head
    assert head.bias.item() == 0 and head.blocks[0].norm.weight.eq(1).all()
    assert 0.3 < head.blocks[0].dwconv.weight.abs().max() <= 1 / 3  # torch's default: a fan-in of 9
    width = head.query_features_proj.weight.shape[1]
    assert 0.9 / width**0.5 < head.query_features_proj.weight.abs().max() <= 1 / width**0.5
