"""Keypoints: what the head and the decoder add to the detector, for one class and several."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd.graph import saved_tensors_hooks

from rfdetr_hf import RFDETRForKeypointDetection, RFDETRForObjectDetection, RFDETRImageProcessor
from rfdetr_hf.models.keypoints import INSTANCE_SCALE, place_keypoints
from rfdetr_hf.models.linears import linears

SCHEMA = [3, 0, 2]


@pytest.fixture
def model(deep_config):
    """Three classes with 3, 0 and 2 keypoints, and two more classes beyond the schema."""
    torch.manual_seed(0)
    model = RFDETRForKeypointDetection(deep_config(num_keypoints_per_class=SCHEMA))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def make_labels(generator, counts, classes=5):
    return [
        {
            "class_labels": torch.randint(classes, (n,), generator=generator),
            "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
            "keypoints": torch.cat(
                [torch.rand(n, 3, 2, generator=generator), torch.randint(3, (n, 3, 1), generator=generator)], -1
            ),
        }
        for n in counts
    ]


def test_buffers_of_the_schema(model):
    active = [[True, True, True], [False, False, False], [True, True, False]]
    assert model._kp_active_mask.tolist() == active
    blocked = model.transformer.decoder.keypoint_class_mask
    assert not blocked[0].any() and not blocked[:, 0].any()
    assert blocked[1:, 1:].tolist() == [[False] * 3 + [True] * 2] * 3 + [[True] * 3 + [False] * 2] * 2


def test_padded_layout_and_class_logits(model, rng):
    pixels = torch.randn(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        output = model.eval()(pixels)
        states = model._decode(pixels, None, every_layer=False)
    keypoints = output.pred_keypoints
    assert keypoints.shape == (2, 6, 9, 8)
    unused = [3, 4, 5, 8]
    assert not keypoints[:, :, unused].any() and keypoints[:, :, [0, 1, 2, 6, 7]].all()
    boost = torch.stack([keypoints[..., 3 * c : 3 * c + 3, 7].sum(-1) for c in range(3)], -1)
    plain = model.class_embed(states.hidden_states[-1])
    torch.testing.assert_close(output.logits[..., :3], plain[..., :3] + boost)
    torch.testing.assert_close(output.logits[..., 3:], plain[..., 3:])


def test_classes_do_not_see_each_other(model, rng):
    """A change to the keypoints of one class reaches the instance, and through it the next layer, but no other class
    within the layer."""
    layer, decoder = model.transformer.decoder.layers[0], model.transformer.decoder
    width = model.config.d_model
    x, keypoints = torch.randn(1, 2, width, generator=rng), torch.randn(1, 2, 5, width, generator=rng)
    changed = keypoints.clone()
    changed[:, :, 3:] += 1
    position, attends = torch.randn(6, width, generator=rng), ~decoder.keypoint_class_mask
    own = layer.kp_inst_self_attn
    output, *packed = linears([own.out_proj], tensors=[own.in_proj_weight, own.in_proj_bias])
    rest = position, attends, output, packed
    with torch.no_grad():
        (x1, k1), (x2, k2) = (layer._exchange(x, each, *rest) for each in (keypoints, changed))
    torch.testing.assert_close(k1[:, :, :3], k2[:, :, :3])
    assert not torch.allclose(k1[:, :, 3:], k2[:, :, 3:]) and not torch.equal(x1, x2)


def test_first_group_in_training_equals_evaluation(model, rng):
    pixels = torch.randn(2, 3, 64, 64, generator=rng).double()
    model = model.double()
    with torch.no_grad():
        training, evaluation = model.train()(pixels), model.eval()(pixels, labels=make_labels(rng, (2, 1)))
    torch.testing.assert_close(training.pred_keypoints[:, :6], evaluation.pred_keypoints)
    torch.testing.assert_close(training.enc_outputs_keypoints[:, :6], evaluation.enc_outputs_keypoints)
    torch.testing.assert_close(training.logits[:, :6], evaluation.logits)
    assert training.auxiliary_outputs[0]["pred_keypoints"].shape == (2, 18, 9, 8)


def test_keypoints_read_the_second_projector(model, rng):
    pixels = torch.randn(1, 3, 64, 64, generator=rng)
    with torch.no_grad():
        before = model.eval()(pixels)
        model.backbone[0].cross_attn_projector.stages[0][1].weight.mul_(2)
        after = model(pixels)
    torch.testing.assert_close(before.init_reference_points, after.init_reference_points)
    assert not torch.allclose(before.pred_keypoints, after.pred_keypoints)


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_every_parameter_has_a_gradient(model, rng, counts):
    model.train()(torch.randn(2, 3, 64, 64, generator=rng), labels=make_labels(rng, counts)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == model.unused_parameter_names()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_finite(model, rng, dtype):
    with torch.autocast("cpu", dtype):
        output = model.train()(torch.randn(2, 3, 64, 64, generator=rng), labels=make_labels(rng, (2, 1)))
    output.loss.backward()
    assert output.loss.isfinite() and output.pred_keypoints.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_no_gradient(model, rng):
    pixels, labels = torch.randn(2, 3, 64, 64, generator=rng), make_labels(rng, (2, 1))
    gradients, kept = [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        sizes = []
        with saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss = model.train()(pixels, labels=labels).loss
        kept.append(sum(sizes))
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert kept[1] < 0.5 * kept[0]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_placing():
    deltas = torch.tensor([[[[1.0, -1.0, 2, 3, 4, 5, 6, 7], [float("nan"), 0, float("inf"), 0, 0, 0, 0, 0]]]])
    placed = place_keypoints(deltas, torch.tensor([[[0.5, 0.4, 0.2, 0.1]]]))
    torch.testing.assert_close(placed[0, 0, 0], torch.tensor([0.7, 0.3, 2, 3, 4, 5, 6, 7]))
    torch.testing.assert_close(placed[0, 0, 1], torch.tensor([0.5, 0.4, 0, 0, 0, 0, 0, 0]))


def test_initial_values(deep_config):
    torch.manual_seed(0)
    model = RFDETRForKeypointDetection(deep_config(num_keypoints_per_class=SCHEMA))
    assert not model.keypoint_embed.layers[2].weight.any() and model.keypoint_embed.layers[0].weight.any()
    for head in model.transformer.enc_out_keypoint_embed:
        assert torch.equal(head.layers[0].weight, model.keypoint_embed.layers[0].weight)
    assert model.transformer.decoder.layers[1].instance_kp_layer_scale.item() == pytest.approx(INSTANCE_SCALE)
    modulation = model.transformer.keypoint_query_initializer.adaLN_modulation[2]
    assert modulation.weight.any() and not modulation.bias.any()
    assert model.transformer.decoder.keypoint_pos_embed.std() > 0


def test_saved_and_loaded_without_the_buffers(model, rng, tmp_path):
    pixels = torch.randn(1, 3, 64, 64, generator=rng)
    model.save_pretrained(tmp_path)
    derived = ("_kp_active_mask", "transformer.decoder.keypoint_class_mask")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in derived}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = RFDETRForKeypointDetection.from_pretrained(tmp_path).eval()
    assert again.config.num_keypoints_per_class == SCHEMA
    assert all(torch.equal(x, y) for x, y in zip(again.buffers(), model.buffers(), strict=True))
    with torch.no_grad():
        output = again(pixels)
        torch.testing.assert_close(output.pred_keypoints, model.eval()(pixels).pred_keypoints, rtol=0, atol=0)


def test_precision_is_reset_for_fine_tuning(model, rng):
    model.reset_keypoint_precision()
    with torch.no_grad():
        output = model.train()(torch.randn(1, 3, 64, 64, generator=rng))
    assert not output.pred_keypoints[..., 4:7].any() and not output.enc_outputs_keypoints[..., 4:7].any()
    assert output.pred_keypoints[..., 2].any()


def test_the_class_has_to_fit_the_configuration(deep_config):
    with pytest.raises(ValueError, match="RFDETRForKeypointDetection"):
        RFDETRForObjectDetection(deep_config(num_keypoints_per_class=SCHEMA))
    with pytest.raises(ValueError, match="num_keypoints_per_class is empty"):
        RFDETRForKeypointDetection(deep_config())


@torch.no_grad()
def test_classes_without_keypoints_score_half_as_the_official_package_has_it():
    outputs = SimpleNamespace(
        logits=torch.tensor([[[8.0, -20, -20], [-20, 2.0, -20], [-20, -20, 8.0]]]),
        pred_boxes=torch.full((1, 3, 4), 0.25),
        pred_keypoints=torch.zeros(1, 3, 4, 8),
    )
    found = RFDETRImageProcessor().post_process_keypoint_detection(outputs, [2, 0], 0.0, [(10, 10)])[0]
    by_class = dict(zip(found["labels"].tolist(), found["scores"].tolist(), strict=True))
    plain = torch.tensor([8.0, 2.0]).sigmoid()
    assert by_class[1] == pytest.approx((plain[1] / (1 + plain[1])).item())
    assert by_class[2] == pytest.approx(plain[0].item())
    assert by_class[0] < plain[0] and by_class[1] < 0.5


def test_post_processing_equals_the_official_one(golden):
    """Scores with the keypoints' uncertainty in them, of the golden predictions that the file holds."""
    numbers = golden("keypoint")
    predicted = numbers["eval"]
    ranks = predicted["pred_logits"].sigmoid().flatten(1).sort(descending=True, stable=True).indices[:, :50] // 2
    outputs = SimpleNamespace(logits=predicted["pred_logits"], pred_boxes=predicted["pred_boxes"])
    filler = predicted["pred_keypoints"].new_zeros(2, 75, 17, 8)
    outputs.pred_keypoints = torch.cat([predicted["pred_keypoints"], filler], 1)
    found = RFDETRImageProcessor().post_process_keypoint_detection(outputs, [17], -1, [(480, 640)] * 2)
    for each, official, queries in zip(found, numbers["postprocess"], ranks, strict=True):
        stored = queries < 25
        assert stored.sum() >= 5
        torch.testing.assert_close(each["scores"][:50][stored], official["scores"][stored], rtol=1e-12, atol=0)
        assert torch.equal(each["labels"][:50], official["labels"])
        torch.testing.assert_close(each["boxes"][:50], official["boxes"])
