import copy
import io
import pickle

import pytest
import torch
from helpers.models import images
from safetensors import safe_open
from safetensors.torch import save_file

from rfdetr_hf import RFDETRCriterion, RFDETRForObjectDetection


def some_labels(dtype=torch.float32):
    first = {"class_labels": torch.tensor([1, 4]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.1, 0.1]])}
    second = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.7, 0.2, 0.3, 0.3]])}
    return [{**target, "boxes": target["boxes"].to(dtype)} for target in (first, second)]


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- outputs


def test_evaluation_gives_one_group_and_only_the_last_layer(model, rng):
    output = model.eval()(images(rng))
    assert output.logits.shape == (2, 6, 5)
    assert output.pred_boxes.shape == (2, 6, 4)
    assert output.last_hidden_state.shape == (2, 6, 32)
    assert (output.loss, output.auxiliary_outputs, output.enc_outputs_class) == (None, None, None)


def test_training_gives_all_groups_and_layers(model, rng):
    output = model.train()(images(rng))
    assert output.logits.shape == (2, 18, 5)
    assert [x["pred_boxes"].shape for x in output.auxiliary_outputs] == [(2, 18, 4)]
    assert output.enc_outputs_class.shape == (2, 18, 5)
    assert output.enc_outputs_coord_logits.shape == (2, 18, 4)


def test_labels_bring_loss_and_auxiliary_outputs_in_evaluation_with_one_group(model, rng):
    output = model.eval()(images(rng), labels=some_labels())
    assert output.logits.shape == (2, 6, 5)
    assert len(output.auxiliary_outputs) == 1
    terms = {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in ("", "_0", "_enc")}
    assert terms <= set(output.loss_dict)
    weights = model.loss_function.weight_dict
    total = sum(output.loss_dict[name] * weight for name, weight in weights.items())
    torch.testing.assert_close(output.loss, total)


def test_first_group_of_training_equals_evaluation(lively, rng):
    pixels = images(rng, dtype=torch.float64)
    train, evaluation = lively.train()(pixels), lively.eval()(pixels)
    torch.testing.assert_close(train.logits[:, :6], evaluation.logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(train.pred_boxes[:, :6], evaluation.pred_boxes, atol=1e-12, rtol=0)


def test_output_as_a_tuple(model, rng):
    pixels = images(rng)
    logits, boxes, *_ = model.eval()(pixels, return_dict=False)
    assert torch.equal(logits, model(pixels).logits)
    assert boxes.shape == (2, 6, 4)


def test_without_auxiliary_loss_only_the_last_layer_is_supervised(deep_config, rng):
    model = RFDETRForObjectDetection(deep_config(auxiliary_loss=False)).train()
    output = model(images(rng), labels=some_labels())
    assert output.auxiliary_outputs == []
    assert "loss_ce" in output.loss_dict and "loss_ce_0" not in output.loss_dict


@pytest.mark.parametrize(("training", "queries", "proposals"), [(False, 6, 4), (True, 18, 12)])
def test_fewer_cells_than_queries(lively, rng, training, queries, proposals):
    lively.train(training)
    output = lively(images(rng, 32, 32, torch.float64), labels=some_labels(torch.float64))
    assert output.logits.shape[1] == queries
    assert output.enc_outputs_class.shape[1] == proposals
    rest = lively.refpoint_embed.weight[proposals:queries]
    assert torch.equal(output.init_reference_points[:, proposals:], rest.expand(2, -1, -1))
    assert output.loss.isfinite()


def test_two_level_model_trains(deep_config, rng):
    model = RFDETRForObjectDetection(deep_config(projector_scales=["P3", "P5"], decoder_n_points=4)).train()
    mask = torch.ones(2, 64, 96)
    mask[1, :, 64:] = 0
    model(images(rng, 64, 96), mask, labels=some_labels()).loss.backward()
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()} - model.unused_parameter_names()


# --- padding


def test_mask_changes_the_padded_image_only(lively, rng):
    pixels = images(rng, 64, 96, torch.float64)
    mask = torch.ones(2, 64, 96)
    mask[1, :, 64:] = 0
    output, plain = lively.eval()(pixels, mask), lively(pixels)
    torch.testing.assert_close(output.logits[0], plain.logits[0])
    assert not torch.allclose(output.logits[1], plain.logits[1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_full_mask_of_any_type_changes_nothing(lively, rng, dtype):
    pixels = images(rng, dtype=torch.float64)
    output = lively.eval()(pixels, torch.ones(2, 64, 64, dtype=dtype))
    assert torch.equal(output.logits, lively(pixels).logits)


@pytest.mark.parametrize("wrong", ["inverted", "bottom right", "none", "nan", "a hole", "255"])
def test_masks_of_another_convention_are_errors(model, rng, wrong):
    mask = torch.zeros(2, 64, 64)
    mask[:, :32, :48] = 1
    mask[1] = {
        "inverted": 1 - mask[1], "bottom right": mask[1].flip(0, 1), "none": 0 * mask[1], "255": 255 * mask[1],
        "nan": mask[1] * float("nan"), "a hole": mask[1] * (1 - torch.eye(64).roll(1, 0)),
    }[wrong]  # fmt: skip
    with pytest.raises(ValueError, match="pixel_mask of image 1 of the batch: 1 .* is the image"):
        model(images(rng), mask)


def test_wrong_shapes_are_errors(model, rng):
    pixels = images(rng)
    with pytest.raises(ValueError, match=r"pixel_mask has the shape \(2, 32, 64\)"):
        model(pixels, torch.ones(2, 32, 64))
    with pytest.raises(ValueError, match="1 labels for a batch of 2 images"):
        model(pixels, labels=some_labels()[:1])
    with pytest.raises(ValueError, match="64 x 72 pixels.*divisible"):
        model(torch.zeros(1, 3, 64, 72))


# --- gradients


def test_every_trainable_parameter_gets_a_gradient_and_the_unused_are_frozen(lively, rng):
    lively.train()(images(rng, dtype=torch.float64), labels=some_labels(torch.float64)).loss.backward()
    unused = lively.unused_parameter_names()
    frozen = {name for name, parameter in lively.named_parameters() if not parameter.requires_grad}
    assert unused == frozen
    assert len(unused) == 1 + 18
    assert all(name.endswith("mask_token") or ".layer.3." in name for name in unused)
    assert set(gradients(lively)) == {name for name, _ in lively.named_parameters()} - unused


def test_images_without_objects_have_a_connected_loss(lively, rng):
    empty = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4, dtype=torch.float64)}
    output = lively.train()(images(rng, dtype=torch.float64), labels=[empty, empty])
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.loss_dict["loss_bbox"] == 0
    assert set(gradients(lively)) == {name for name, _ in lively.named_parameters()} - lively.unused_parameter_names()


def test_num_boxes_divides_the_terms(lively, rng):
    pixels, labels = images(rng, dtype=torch.float64), some_labels(torch.float64)
    own = lively.train()(pixels, labels=labels).loss
    torch.testing.assert_close(lively(pixels, labels=labels, num_boxes=9.0).loss, own)
    doubled = lively(pixels, labels=labels, num_boxes=torch.tensor(18.0)).loss
    torch.testing.assert_close(doubled, own / 2)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_gradient_checkpointing_changes_no_gradient(lively, rng, rate):
    pixels, labels = images(rng, dtype=torch.float64), some_labels(torch.float64)
    lively.train()

    def run():
        torch.manual_seed(1)
        lively.zero_grad()
        lively(pixels, labels=labels, drop_path_rate=rate).loss.backward()
        return {name: gradient.clone() for name, gradient in gradients(lively).items()}

    plain = run()
    lively.gradient_checkpointing_enable()
    layers = [*lively.backbone[0].vit.layers, *lively.transformer.decoder.layers]
    assert all(layer.gradient_checkpointing for layer in layers)
    calls = []
    layers[0].mlp.register_forward_hook(lambda *_: calls.append("encoder"))
    layers[-1].cross_attn.register_forward_hook(lambda *_: calls.append("decoder"))
    checkpointed = run()
    assert calls == ["encoder", "decoder", "decoder", "encoder"]  # forward, and again in the backward pass
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_freeze_backbone_leaves_the_projector(model):
    model.freeze_backbone()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("backbone.0.encoder.") for name in trainable)
    assert any(name.startswith("backbone.0.projector.") for name in trainable)


def test_drop_path_rate_is_an_argument_that_is_checked_and_forgotten(lively, rng):
    pixels = images(rng, dtype=torch.float64)
    lively.train()
    without = lively(pixels).logits
    assert not torch.equal(lively(pixels, drop_path_rate=0.5).logits, without)
    assert torch.equal(lively(pixels).logits, without)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        lively(pixels, drop_path_rate=1)


# --- precision and compilation


def test_bf16_autocast_keeps_geometry_in_float32_and_everything_finite(model, rng):
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(images(rng), labels=some_labels())
    assert output.logits.dtype == torch.bfloat16
    for boxes in (output.pred_boxes, output.enc_outputs_coord_logits, output.init_reference_points):
        assert boxes.dtype == torch.float32
        assert boxes.isfinite().all()
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()} - model.unused_parameter_names()


def test_bf16_model_keeps_geometry_in_float32(model, rng):
    output = model.to(torch.bfloat16).train()(images(rng), labels=some_labels())
    assert (output.logits.dtype, output.pred_boxes.dtype) == (torch.bfloat16, torch.float32)
    output.loss.backward()
    assert output.loss.isfinite()


@pytest.mark.parametrize("training", [False, True])
def test_forward_is_one_graph_without_waiting_for_values(model, rng, training):
    model.train(training)
    pixels, mask = images(rng), torch.ones(2, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels, mask).logits, model(pixels, mask).logits)


def test_forward_runs_on_the_meta_device(deep_config):
    with torch.device("meta"):
        model = RFDETRForObjectDetection(deep_config())
    output = model.train()(torch.zeros(2, 3, 64, 64, device="meta"), torch.ones(2, 64, 64, device="meta"))
    assert output.logits.shape == (2, 18, 5)


# --- what transformers asks of a model


def test_capabilities(model):
    assert model.get_input_embeddings() is None
    assert model.config._attn_implementation == "sdpa"
    names = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= names
    assert isinstance(model.loss_function, RFDETRCriterion)


def test_other_attention_implementations_are_refused(deep_config):
    with pytest.raises(ValueError, match="flash_attention_2|Flash Attention"):
        RFDETRForObjectDetection._from_config(deep_config(), attn_implementation="flash_attention_2")


def test_model_can_be_copied_and_pickled(model, rng):
    pixels = images(rng)
    expected = model.eval()(pixels).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(pixels).logits, expected)


# --- files


def test_save_and_load(lively, rng, tmp_path):
    lively.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(lively.state_dict())
    loaded, info = RFDETRForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = images(rng, dtype=torch.float64)
    assert torch.equal(loaded(pixels).logits, lively.eval()(pixels).logits)
    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen == loaded.unused_parameter_names()


def test_official_keypoint_buffer_is_no_unexpected_key(lively, tmp_path):
    lively.save_pretrained(tmp_path)
    state = {**lively.state_dict(), "_kp_active_mask": torch.zeros(0, 0, dtype=torch.bool)}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = RFDETRForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]


class Outputs(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        found = self.model(pixel_values=pixel_values)
        return found.logits, found.pred_boxes


def test_a_model_is_traced_while_gradients_are_on(lively, rng):
    """As `torch.onnx.export` does with `dynamo=False`, which has no symbols for what autograd functions call."""
    model, pixels = Outputs(lively.float().eval()), images(rng)
    torch.onnx.export(model, (pixels,), file := io.BytesIO(), dynamo=False, opset_version=17)
    assert file.getvalue()
    torch.jit.save(torch.jit.trace(model, pixels), file := io.BytesIO())
    file.seek(0)
    for found, expected in zip(torch.jit.load(file)(pixels), model(pixels), strict=True):
        torch.testing.assert_close(found, expected)
