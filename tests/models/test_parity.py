"""The numbers of the official model, version 1.11.2, in float64."""

import pytest
import torch
from parity import golden_batch, golden_model, golden_wide_batch

from rfdetr_hf.models.configuration_rfdetr import RFDETRConfig
from rfdetr_hf.models.modeling_rfdetr import RFDETRForObjectDetection

# A buffer of the official model that says which keypoints are in use; it is empty for a detector.
OFFICIAL_ONLY = "_kp_active_mask"


LONG = [pytest.mark.slow, pytest.mark.timeout(1200)]
SLOW = [pytest.param(name, marks=LONG) for name in ("small", "medium", "large", "large-deprecated")]


@pytest.fixture(scope="module", params=["nano", "base", *SLOW])
def case(request, golden):
    numbers = golden(request.param)
    config = RFDETRConfig.from_variant(request.param, num_labels=numbers["num_classes"] + 1)
    return numbers, golden_model(RFDETRForObjectDetection(config))


def test_names_and_shapes(case):
    numbers, model = case
    official = {name: tuple(shape) for name, shape in numbers["keys"].items() if name != OFFICIAL_ONLY}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == official


@torch.no_grad()
def test_evaluation(case):
    numbers, model = case
    output = model.eval()(golden_batch(numbers)[0])
    torch.testing.assert_close(output.logits, numbers["eval"]["pred_logits"], atol=1e-8, rtol=0)
    torch.testing.assert_close(output.pred_boxes, numbers["eval"]["pred_boxes"], atol=1e-8, rtol=0)


@torch.no_grad()
def test_evaluation_of_wide_padded_images(case):
    numbers, model = case
    output = model.eval()(*golden_wide_batch(numbers))
    torch.testing.assert_close(output.logits, numbers["eval_wide"]["pred_logits"], atol=1e-8, rtol=0)
    torch.testing.assert_close(output.pred_boxes, numbers["eval_wide"]["pred_boxes"], atol=1e-8, rtol=0)


def test_loss_terms_and_gradients(case):
    numbers, model = case
    expected = numbers["train"]
    pixels, labels = golden_batch(numbers)
    model.zero_grad()
    output = model.train()(pixels, labels=labels)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected["total"], rel=1e-7)
    for name in expected["weights"]:
        assert output.loss_dict[name].item() == pytest.approx(expected["loss_dict"][name], rel=1e-7), name
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == expected["grads"].keys()
    assert norms == pytest.approx(expected["grads"], rel=1e-6, abs=1e-12)


@pytest.mark.slow
def test_five_training_steps(golden):
    """The official recipe: AdamW over the official groups, gradients clipped to a norm of 0.1, constant rates."""
    numbers = golden("nano")
    model = golden_model(RFDETRForObjectDetection(RFDETRConfig.from_variant("nano", num_labels=6))).train()
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[name]], "lr": lr, "weight_decay": decay}
        for name, (lr, decay) in numbers["param_groups"].items()
    ]
    optimizer = torch.optim.AdamW(groups)
    for step, (loss, norm) in enumerate(zip(numbers["curve"]["loss"], numbers["curve"]["grad_norm"], strict=True)):
        pixels, labels = golden_batch(numbers, step)
        output = model(pixels, labels=labels)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(loss, rel=1e-6), step
        clipped = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert clipped.item() == pytest.approx(norm, rel=1e-6), step
        optimizer.step()
        optimizer.zero_grad()
    final = {name: parameter.norm().item() for name, parameter in parameters.items()}
    assert final == pytest.approx(numbers["curve"]["weights"], rel=1e-8, abs=1e-12)
