from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.operations import Results
from helpers.plain_loss import CONFIG, layer_losses, make_predictions, make_targets, match

from rfdetr_hf.losses import LayerOutput, RFDETRCriterion
from rfdetr_hf.losses import criterion as criterion_module
from rfdetr_hf.losses.criterion import quality_focal_loss

CLASSES = 5
SUFFIXES = ("", "_0", "_1", "_enc")


@pytest.fixture
def criterion():
    return RFDETRCriterion(CONFIG)


def predict(rng, images, rows=(12, 12, 12, 12), dtype=torch.float64):
    return [
        LayerOutput(suffix, *make_predictions(rng, images, count, CLASSES, dtype))
        for suffix, count in zip(SUFFIXES, rows, strict=True)
    ]


def inputs(layers):
    return [tensor for layer in layers for tensor in (layer.logits, layer.boxes)]


@pytest.mark.parametrize(
    ("counts", "rows", "groups"),
    [((3, 0, 2), (12, 12, 12, 12), 2), ((2, 5), (12, 12, 12, 6), 3), ((1,), (4, 4, 4, 4), 1)],
)
@pytest.mark.parametrize(("num_boxes", "at_once"), [(None, 0), (7.5, 2**26)])
def test_equals_plain_loss(criterion, rng, monkeypatch, counts, rows, groups, num_boxes, at_once):
    """Values and gradients of every term; the second case has more objects than queries."""
    monkeypatch.setitem(criterion_module._LOGITS_AT_ONCE, "cpu", at_once)
    layers, targets = predict(rng, len(counts), rows), make_targets(rng, counts, CLASSES)
    losses = criterion(layers, targets, groups, num_boxes)
    divisor = num_boxes or sum(counts) * groups
    expected = {}
    for layer in layers:
        terms = layer_losses(layer.logits, layer.boxes, targets, groups, divisor)
        expected |= dict(
            zip((f"{name}{layer.name_suffix}" for name in ("loss_ce", "loss_bbox", "loss_giou")), terms, strict=True)
        )
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-10, atol=1e-12)
    total = criterion.weighted_sum(losses)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    plain = sum(weights["_".join(name.split("_")[:2])] * value for name, value in expected.items())
    torch.testing.assert_close(total, plain)
    for ours, theirs in zip(
        torch.autograd.grad(total, inputs(layers)), torch.autograd.grad(plain, inputs(layers)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_names_and_weights(criterion, rng):
    losses = criterion(predict(rng, 2), make_targets(rng, (1, 2), CLASSES), 2)
    names = {f"{name}{suffix}" for name in ("loss_ce", "loss_bbox", "loss_giou") for suffix in SUFFIXES}
    assert criterion.weight_dict.keys() == names
    assert losses.keys() == names | {"class_error"} | {f"cardinality_error{suffix}" for suffix in SUFFIXES}
    assert all(losses[name].requires_grad for name in names)
    assert not any(losses[name].requires_grad for name in losses.keys() - names)
    only_last = RFDETRCriterion(SimpleNamespace(**{**vars(CONFIG), "auxiliary_loss": False}))
    assert {name for name in only_last.weight_dict if name.startswith("loss_ce")} == {"loss_ce", "loss_ce_enc"}


@pytest.mark.parametrize("at_once", [0, 2**26])
def test_values_for_the_log(criterion, rng, monkeypatch, at_once):
    monkeypatch.setitem(criterion_module._LOGITS_AT_ONCE, "cpu", at_once)
    layers, targets = predict(rng, 2), make_targets(rng, (3, 2), CLASSES)
    losses = criterion(layers, targets, 2)
    matches = match(layers[0].logits, layers[0].boxes, targets, 2)
    right = [layers[0].logits[b, q].argmax() == targets[b]["class_labels"][t] for b, q, t in matches]
    assert losses["class_error"].item() == pytest.approx(100 - 100 * sum(right).item() / len(right))
    assert 0 < losses["class_error"] < 100
    for layer in layers:
        claimed = (layer.logits.sigmoid().amax(-1) > 0.5).sum(1)
        expected = ((claimed[0] - 3).abs() + (claimed[1] - 2).abs()) / 2
        assert losses[f"cardinality_error{layer.name_suffix}"].item() == expected.item()


def test_images_without_objects(criterion, rng):
    layers, targets = predict(rng, 2), make_targets(rng, (0, 0), CLASSES)
    losses = criterion(layers, targets, 2)
    for layer in layers:
        background = -(layer.logits.sigmoid() ** 2) * (1 - layer.logits.sigmoid()).log()
        torch.testing.assert_close(losses[f"loss_ce{layer.name_suffix}"], background.sum())
        assert losses[f"loss_bbox{layer.name_suffix}"] == 0 and losses[f"loss_giou{layer.name_suffix}"] == 0
    criterion.weighted_sum(losses).backward()
    for layer in layers:
        assert layer.logits.grad.abs().sum() > 0
        assert layer.boxes.grad is not None and layer.boxes.grad.abs().sum() == 0
    assert losses["class_error"] == 100


def test_box_terms_are_zero_only_through_their_own_graph(criterion, rng):
    layers = predict(rng, 1)
    losses = criterion(layers, make_targets(rng, (0,), CLASSES), 2)
    for name in ("loss_bbox", "loss_giou"):
        for layer in layers:
            (grad,) = torch.autograd.grad(losses[name + layer.name_suffix], layer.boxes, retain_graph=True)
            assert grad.abs().sum() == 0


def test_perfect_predictions(criterion, rng):
    targets = make_targets(rng, (4,), CLASSES)
    logits = torch.full((1, 4, CLASSES), -40.0, dtype=torch.float64)
    logits[0, range(4), targets[0]["class_labels"]] = 40.0
    layers = [LayerOutput("", logits, targets[0]["boxes"][None])]
    losses = criterion(layers, targets, 1)
    assert losses["loss_ce"] < 1e-12 and losses["loss_bbox"] == 0 and losses["loss_giou"].abs() < 1e-12
    assert losses["class_error"] == 0 and losses["cardinality_error"] == 0


def test_order_does_not_matter(criterion, rng):
    layers, targets = predict(rng, 3), make_targets(rng, (3, 0, 2), CLASSES)
    before = criterion(layers, targets, 2)
    order = [2, 0, 1]
    moved = [LayerOutput(layer.name_suffix, layer.logits[order], layer.boxes[order]) for layer in layers]
    flipped = [{name: value.flip(0) for name, value in targets[image].items()} for image in order]
    for name, value in criterion(moved, flipped, 2).items():
        torch.testing.assert_close(value, before[name])


def test_groups_are_independent(criterion, rng):
    """The loss of three groups is the mean of the losses of each alone."""
    layers, targets = predict(rng, 2), make_targets(rng, (3, 1), CLASSES)
    together = criterion(layers, targets, 3)
    apart = []
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        alone = [LayerOutput(layer.name_suffix, layer.logits[:, rows], layer.boxes[:, rows]) for layer in layers]
        apart.append(criterion(alone, targets, 1))
    for name in criterion.weight_dict:
        torch.testing.assert_close(together[name], sum(losses[name] for losses in apart) / 3)


def test_micro_batches_add_up_to_the_batch(criterion, rng):
    layers, targets = predict(rng, 4), make_targets(rng, (3, 0, 2, 1), CLASSES)
    whole = criterion.weighted_sum(criterion(layers, targets, 2))
    parts = 0
    for image in range(4):
        part = [LayerOutput(o.name_suffix, o.logits[image : image + 1], o.boxes[image : image + 1]) for o in layers]
        parts = parts + criterion.weighted_sum(criterion(part, targets[image : image + 1], 2, torch.tensor(12.0)))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(parts, inputs(layers)), torch.autograd.grad(whole, inputs(layers)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-15)


def test_a_given_normaliser_is_taken_as_it_is(criterion, rng):
    # One box, one group, two processes: each process divides by half a box.
    layers, targets = predict(rng, 1), make_targets(rng, (1,), CLASSES)
    one = criterion(layers, targets, 2, 1.0)["loss_bbox"]
    for half in (0.5, torch.tensor(0.5)):
        torch.testing.assert_close(criterion(layers, targets, 2, half)["loss_bbox"], 2 * one, rtol=1e-12, atol=0)


def test_default_normaliser_is_the_mean_over_processes(criterion, rng, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(50))
    layers, targets = predict(rng, 2), make_targets(rng, (3, 2), CLASSES)
    averaged = criterion(layers, targets, 2)  # (5 boxes x 2 groups + 50 elsewhere) / 4
    torch.testing.assert_close(averaged, criterion(layers, targets, 2, 15.0))


def test_gradient_of_the_classification_term(rng):
    logits = torch.randn(3, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    index, quality = torch.tensor([1, 6, 11]), torch.tensor([0.01, 0.5, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: quality_focal_loss(x, index, quality, [1, 1, 1]), tuple(logits))
    assert torch.autograd.gradcheck(lambda *x: quality_focal_loss(x, index[:0], quality[:0], [0] * 3), tuple(logits))


def test_gradient_of_the_box_terms(criterion, rng):
    layers, targets = predict(rng, 2), make_targets(rng, (2, 1), CLASSES)

    def box_terms(*boxes):
        moved = [o._replace(logits=o.logits.detach(), boxes=b) for o, b in zip(layers, boxes, strict=True)]
        losses = criterion(moved, targets, 2)
        return tuple(value for name, value in losses.items() if name.startswith(("loss_bbox", "loss_giou")))

    assert torch.autograd.gradcheck(box_terms, tuple(o.boxes for o in layers))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
def test_saturated_logits(criterion, rng, dtype, autocast):
    """Finite and equal to float64 at logits of +-10^4, with gradients, whatever the type of the predictions."""
    targets = make_targets(rng, (3, 0, 2), CLASSES, torch.float32)
    logits = torch.randn(3, 12, CLASSES, generator=rng).mul(1e5).clamp(-1e4, 1e4).to(dtype)
    boxes = make_predictions(rng, 3, 12, CLASSES, torch.float32)[1].detach().to(dtype)
    results = []
    for to, inside in ((dtype, autocast), (torch.float64, None)):
        layers = [LayerOutput("", logits.to(to, copy=True).requires_grad_(), boxes.to(to, copy=True).requires_grad_())]
        with torch.autocast("cpu", inside or torch.bfloat16, enabled=inside is not None):
            losses = criterion(layers, targets, 2)
            total = criterion.weighted_sum(losses)
        total.backward()
        results.append((losses, layers[0].logits.grad, layers[0].boxes.grad))
    (losses, *grads), (expected, *expected_grads) = results
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype and grad.isfinite().all() and grad.abs().sum() > 0
        torch.testing.assert_close(grad.double(), wanted, rtol=torch.finfo(dtype).eps * 2, atol=1e-5)


def test_keeps_one_tensor_of_the_size_of_the_logits(criterion, rng):
    """Between forward and backward: the derivative, in the type of the logits."""
    layers, targets = predict(rng, 2, dtype=torch.bfloat16), make_targets(rng, (1, 2), CLASSES)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        criterion(layers, targets, 2)
    large = [t for t in kept if t.numel() >= layers[0].logits.numel()]
    assert [(t.numel(), t.dtype) for t in large] == [(layer.logits.numel(), torch.bfloat16) for layer in layers]


def test_the_classification_term_computes_in_one_tensor_of_the_size_of_the_logits(rng, monkeypatch):
    """Float32 logits are read where they are, and values exist in pieces that stay in a cache."""
    monkeypatch.setitem(criterion_module._SCORES_AT_ONCE, "cpu", 50)
    logits = torch.randn(2, 40, CLASSES, generator=rng, requires_grad=True)
    with Results() as results:
        quality_focal_loss([logits], torch.tensor([3]), torch.tensor([0.5]), [1])
    assert [name for name, elements in results.made if elements > 50] == ["clone", "index_fill_", "index_put_"]


@pytest.mark.parametrize("cells", [7, 10**6])
def test_classification_term_in_pieces_and_at_large_logits(monkeypatch, cells):
    monkeypatch.setitem(criterion_module._SCORES_AT_ONCE, "cpu", cells)
    values = [-1e4, -90.0, -3.0, 0.0, 0.5, 30.0, 63.0, 90.0, 1e4]
    logits = torch.tensor(values, dtype=torch.float64).view(1, 3, 3).requires_grad_()
    index, quality = torch.tensor([1, 7]), torch.tensor([0.3, 0.9], dtype=torch.float64)
    (loss,) = quality_focal_loss([logits], index, quality, [2])
    loss.backward()
    plain = logits.detach().flatten().requires_grad_()
    background = -F.logsigmoid(-plain)
    terms = plain.sigmoid() ** 2 * background
    matched = -quality * F.logsigmoid(plain[index]) - (1 - quality) * F.logsigmoid(-plain[index])
    expected = terms.sum() - terms[index].sum() + matched.sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.grad.flatten(), plain.grad, rtol=1e-12, atol=1e-15)


def test_bad_label_names_the_image(criterion, rng):
    targets = make_targets(rng, (1, 1), CLASSES)
    targets[1]["class_labels"] += CLASSES
    with pytest.raises(ValueError, match="labels of image 1 of the batch: field 'class_labels'"):
        criterion(predict(rng, 2), targets, 2)


@pytest.mark.gpu
def test_values_on_the_device_are_looked_at_once(criterion, rng):
    """Each look makes the host wait for the device."""
    layers = [LayerOutput(o.name_suffix, o.logits.cuda(), o.boxes.cuda()) for o in predict(rng, 2, dtype=torch.float32)]
    targets = [{k: v.cuda() for k, v in each.items()} for each in make_targets(rng, (3, 1), CLASSES, torch.float32)]
    right = targets[1]["boxes"].clone()
    targets[1]["boxes"] *= 640
    with pytest.raises(ValueError, match="image 1 of the batch: field 'boxes'"):
        criterion(layers, targets, 2)
    assert torch.isfinite(criterion(layers, targets, 2)["loss_bbox"])
    targets[1]["boxes"] = right
    assert criterion(layers, targets, 2)["loss_bbox"] < 100


@pytest.mark.gpu
def test_on_the_device_equals_the_host(criterion, rng):
    layers, targets = (
        predict(rng, 2, dtype=torch.float32),
        make_targets(rng, (3, 1), CLASSES, torch.float32),
    )
    expected = criterion(layers, targets, 2)
    moved = [LayerOutput(o.name_suffix, o.logits.cuda(), o.boxes.cuda()) for o in layers]
    for name, value in criterion(moved, targets, 2).items():
        torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-4, atol=1e-5)
