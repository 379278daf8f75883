"""The numbers of the official models, version 1.11.2, in float64."""

from types import SimpleNamespace

import pytest
import torch
from helpers.golden import golden_batch, golden_model, golden_wide_batch

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRForObjectDetection,
    build_param_groups,
)
from rfdetr_hf.losses.points import RandomPoints

# A buffer that says which keypoints are in use; it is empty for other models.
OFFICIAL_ONLY = "_kp_active_mask"
OFFICIAL_RATES = SimpleNamespace(
    learning_rate=1e-4, learning_rate_encoder=1.5e-4, layer_decay=0.8, component_decay=0.7, weight_decay=1e-4,
    param_groups="official",
)  # fmt: skip
MODELS = {
    "detection": RFDETRForObjectDetection,
    "segmentation": RFDETRForInstanceSegmentation,
    "keypoints": RFDETRForKeypointDetection,
}
LARGE = ["small", "medium", "large", "large-deprecated"]
LARGE += [f"seg-{size}" for size in ("preview", "small", "medium", "large", "xlarge", "2xlarge")]


def variants(quick, slow):
    return [*quick, *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]) for name in slow)]


@pytest.fixture(scope="module", params=variants(["nano", "base", "seg-nano", "keypoint"], LARGE))
def case(request, golden):
    numbers = golden(request.param)
    variant = "keypoint-preview" if request.param == "keypoint" else request.param
    config = RFDETRConfig.from_variant(variant, num_labels=numbers["num_classes"] + 1)
    return numbers, golden_model(MODELS[numbers["task"]](config))


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_names_and_shapes(case):
    numbers, model = case
    official = {name: tuple(shape) for name, shape in numbers["keys"].items()}
    if numbers["task"] != "keypoints":
        del official[OFFICIAL_ONLY]
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == official


@torch.no_grad()
def test_evaluation(case):
    numbers, model = case
    expected = numbers["eval"]
    output = model.eval()(golden_batch(numbers)[0])
    assert_equal(output.logits, expected["pred_logits"])
    assert_equal(output.pred_boxes, expected["pred_boxes"])
    if numbers["task"] == "segmentation":  # of the first queries, every other or every so many rows and columns
        queries, _, columns = expected["pred_masks"].shape[1:]
        step = -(-output.pred_masks.shape[-1] // columns)
        assert_equal(output.pred_masks[:, :queries, ::step, ::step], expected["pred_masks"])
    if numbers["task"] == "keypoints":
        assert_equal(output.pred_keypoints[:, :25], expected["pred_keypoints"])


@torch.no_grad()
def test_evaluation_of_wide_padded_images(case):
    numbers, model = case
    output = model.eval()(*golden_wide_batch(numbers))
    assert_equal(output.logits, numbers["eval_wide"]["pred_logits"])
    assert_equal(output.pred_boxes, numbers["eval_wide"]["pred_boxes"])


def test_parameter_groups(case):
    numbers, model = case
    groups = build_param_groups(model, OFFICIAL_RATES)
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    assert found == numbers["param_groups"]


@pytest.fixture
def official_points(monkeypatch):
    """Points of torch's generator, in the order in which the official criterion asks for them.

    For each layer one set for the matching of all images; then for each layer those of the pairs, ordered by image and
    query: first all that are chosen from, then all that are taken in any case.
    """

    def for_images(self, layers, count):
        drawn = [torch.rand(1, count, 2, dtype=torch.float64).expand(len(self.keys), -1, -1) for _ in range(layers)]
        return torch.stack(drawn)

    def for_pairs(self, layer, image, query):
        return image * 10_000 + query + 1  # 0 stands for no pair

    def draw(keys, count):
        """Of one layer, as the host takes them."""
        final = count * 4 // 13  # 3 n to choose from and n / 4, rounded up, of the others
        numbers = 3 * final, count - 3 * final
        present = keys.nonzero()[:, 0]
        drawn = torch.cat([torch.rand(len(present), number, 2, dtype=torch.float64) for number in numbers], dim=1)
        order = present[keys[present].argsort()]
        return torch.zeros(len(keys), count, 2, dtype=torch.float64).index_copy_(0, order, drawn)

    monkeypatch.setattr(RandomPoints, "for_images", for_images)
    monkeypatch.setattr(RandomPoints, "for_pairs", for_pairs)
    monkeypatch.setattr(RandomPoints, "draw", staticmethod(draw))


@pytest.mark.parametrize("case", variants(["nano", "base", "seg-nano"], ["keypoint", *LARGE]), indirect=True)
def test_loss_terms_and_gradients(case, official_points):
    numbers, model = case
    expected = numbers["train"]
    pixels, labels = golden_batch(numbers)
    model.zero_grad()
    torch.manual_seed(3)
    output = model.train()(pixels, labels=labels, seed=0)  # so that torch's generator is left to the points
    output.loss.backward()
    assert model.loss_function.weight_dict == expected["weights"]
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
