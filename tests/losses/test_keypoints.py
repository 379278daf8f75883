import math
from types import SimpleNamespace

import pytest
import torch
from helpers.plain_loss import CONFIG, make_predictions, make_targets
from torch.distributions import MultivariateNormal

from rfdetr_hf.losses import LayerOutput, RFDETRCriterion, pack_objects
from rfdetr_hf.losses import keypoints as keypoint_losses
from rfdetr_hf.losses.keypoints import TERMS, KeypointTerms, KeypointTruth, keypoint_terms

SCHEMA = [3, 0, 2]  # the fourth class is beyond the schema
CLASSES, ROWS, GROUPS, SLOTS = 4, 8, 2, 3
KEYPOINT_CONFIG = SimpleNamespace(
    **vars(CONFIG),
    num_keypoints_per_class=SCHEMA,
    keypoint_l1_loss_coefficient=1,
    keypoint_findable_loss_coefficient=2,
    keypoint_visible_loss_coefficient=3,
    keypoint_nll_loss_coefficient=4,
)
SUFFIXES = ("", "_0", "_enc")


@pytest.fixture
def criterion():
    return RFDETRCriterion(KEYPOINT_CONFIG, KeypointTerms(KEYPOINT_CONFIG))


def predict(rng, images, dtype=torch.float64):
    layers = []
    for suffix in SUFFIXES:
        logits, boxes = make_predictions(rng, images, ROWS, CLASSES, dtype)
        keypoints = torch.randn(images, ROWS, len(SCHEMA) * SLOTS, 8, generator=rng, dtype=dtype)
        layers.append(LayerOutput(suffix, logits, boxes, keypoints=(0.5 * keypoints).requires_grad_()))
    return layers


def with_keypoints(targets, rng, count=SLOTS):
    for target in targets:
        n = len(target["boxes"])
        target["keypoints"] = torch.rand(n, count, 3, generator=rng, dtype=target["boxes"].dtype)
        target["keypoints"][..., 2] = torch.randint(0, 3, (n, count), generator=rng)
    return targets


def softplus(x):
    return math.log1p(math.exp(x))


def plain_terms(slots, label, box, truth):
    """The four terms of one pair, keypoint by keypoint."""
    count = SCHEMA[label] if label < len(SCHEMA) else 0
    area, sums, labelled = box[2] * box[3], [0.0] * 4, 0
    for j in range(count):
        x, y, findable, visible, log_l11, l21, log_l22, _ = slots[label * SLOTS + j].tolist()
        tx, ty, v = truth[j].tolist()
        sums[1] += (softplus(findable) - findable * (v > 0)) / count
        sums[2] += (softplus(visible) - visible * (v > 1)) / count
        if v > 0:
            labelled += 1
            dx, dy = x - tx, y - ty
            sums[0] += (abs(dx) + abs(dy)) / math.sqrt(area)
            u, w = math.exp(log_l11) * dx + l21 * dy, math.exp(log_l22) * dy
            sums[3] += 0.5 * (u * u + w * w) / area - log_l11 - log_l22
    return sums[0] / max(labelled, 1), sums[1], sums[2], sums[3] / max(labelled, 1)


def flat(targets, field):
    return torch.cat([target[field] for target in targets])


def test_cost_and_losses_equal_plain_ones(rng, criterion, monkeypatch):
    layers, targets = predict(rng, 4), with_keypoints(make_targets(rng, (3, 0, 4, 2), CLASSES), rng)
    for target in targets:
        target["class_labels"] = torch.arange(len(target["class_labels"]))
    terms, objects = criterion.task, pack_objects(targets, layers[0].logits, 4, CLASSES)
    truth = terms.pack(targets, objects)
    cost = terms.pair_cost(layers, objects, truth)
    labels, boxes, points = (flat(targets, name) for name in ("class_labels", "boxes", "keypoints"))

    def plain(layer, row, query):
        slots = layer.keypoints[objects.image[row], query]
        return plain_terms(slots, labels[row].item(), boxes[row].tolist(), points[row])

    for row in range(9):
        for column, layer in enumerate(layers):
            for query in range(ROWS):
                expected = sum(w * term for w, term in zip((1, 2, 3, 4), plain(layer, row, query), strict=True))
                assert cost[row, column * ROWS + query].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    matches = criterion.matcher([x.logits for x in layers], [x.boxes for x in layers], objects, GROUPS, cost)
    losses = criterion(layers, targets, GROUPS, num_boxes=7.0)
    for layer, query, target in zip(layers, *matches.split("query", "target"), strict=True):
        pairs = [plain(layer, t, q) for q, t in zip(query.tolist(), target.tolist(), strict=True)]
        for name, values in zip(TERMS, zip(*pairs, strict=True), strict=True):
            assert losses[f"{name}{layer.name_suffix}"].item() == pytest.approx(sum(values) / 7, rel=1e-10)
    monkeypatch.setitem(keypoint_losses._POINTS_AT_ONCE, "cpu", 1)
    torch.testing.assert_close(terms.pair_cost(layers, objects, truth), cost, rtol=0, atol=0)


def make_truth(count=5, v=2.0):
    points = torch.rand(2, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points[..., 2] = v
    whole = torch.ones(2, count, dtype=torch.bool)
    slots = torch.arange(count).expand(2, -1)
    return KeypointTruth(points, whole, whole & (v > 0), slots, torch.tensor([0.1, 0.3], dtype=torch.float64))


def test_likelihood_is_that_of_a_normal_distribution(rng):
    truth = make_truth()
    predicted = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64)
    log_l11, l21, log_l22 = predicted[..., 4:7].unbind(-1)
    lower = torch.stack([log_l11.exp(), torch.zeros_like(l21), l21, log_l22.exp()], -1).unflatten(-1, (2, 2))
    precision = lower @ lower.mT / truth.area[:, None, None, None]
    normal = MultivariateNormal(predicted[..., :2], precision_matrix=precision)
    expected = -normal.log_prob(truth.points[..., :2]) - math.log(2 * math.pi) - truth.area.log()[:, None]
    torch.testing.assert_close(keypoint_terms(predicted, truth)[3], expected.mean(1))


def test_gradients_are_those_of_the_values(rng):
    predicted = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: keypoint_terms(x, make_truth()), predicted)


@pytest.mark.parametrize("channel", range(7))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4])
def test_a_broken_number_stays_alone(rng, channel, value):
    """It changes no other keypoint's gradient but by the count of the mean, and its own is finite."""
    truth = make_truth()
    clean = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64)
    predicted = clean.clone()
    predicted[0, 0, channel] = value
    predicted.requires_grad_()
    terms = torch.stack(keypoint_terms(predicted, truth))
    assert terms.isfinite().all()
    (gradient,) = torch.autograd.grad(terms.sum(), predicted)
    assert gradient.isfinite().all()
    torch.testing.assert_close(terms[:, 1], torch.stack(keypoint_terms(clean, truth))[:, 1])


def test_nothing_labelled_gives_no_position(rng):
    predicted = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64)
    l1, findable, visible, nll = keypoint_terms(predicted, make_truth(v=0.0))
    assert not l1.any() and not nll.any() and findable.all() and visible.all()


@pytest.mark.parametrize(
    ("row", "message"), [((210.0, 0.5, 2.0), r"holds \[.*210.*shares"), ((0.5, 0.5, 3.0), "holds .*0, 1 and 2")]
)
def test_values_that_cannot_be_right_name_the_image(row, message, criterion, rng):
    targets = with_keypoints(make_targets(rng, (1, 2), 1), rng)
    objects = pack_objects(targets, torch.zeros(2, 1, 4, dtype=torch.float64), 2, CLASSES)
    targets[1]["keypoints"][0, 1] = torch.tensor(row)
    with pytest.raises(ValueError, match=f"image 1 of the batch: field 'keypoints' {message}"):
        criterion.task.pack(targets, objects)


def test_boxes_without_area_and_unknown_positions_are_left_out(criterion, rng):
    targets = with_keypoints(make_targets(rng, (2,), 1), rng)
    targets[0]["keypoints"][..., 2] = 2
    targets[0]["keypoints"][1, 0, 0] = math.nan
    targets[0]["boxes"][0, 2] = 0
    truth = criterion.task.pack(targets, pack_objects(targets, torch.zeros(1, 1, 4, dtype=torch.float64), 1, CLASSES))
    assert truth.labelled.tolist() == [[False] * 3, [False, True, True]]
    predicted = torch.randn(2, 3, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    terms = torch.stack(keypoint_terms(predicted, truth))
    (gradient,) = torch.autograd.grad(terms.sum(), predicted)
    assert terms.isfinite().all() and gradient.isfinite().all()


def test_fewer_columns_count_as_not_labelled(criterion, rng):
    targets = with_keypoints(make_targets(rng, (2, 1), CLASSES), rng, count=2)
    layers = predict(rng, 2)
    short = criterion(layers, targets, GROUPS)
    for target in targets:
        target["keypoints"] = torch.nn.functional.pad(target["keypoints"], (0, 0, 0, 1))
    whole = criterion(layers, targets, GROUPS)
    assert all(torch.equal(short[name], whole[name]) for name in whole)


def test_matching_looks_at_keypoints(criterion, rng):
    """Two queries with the same box and logits: the object goes to the one with its keypoints."""
    targets = with_keypoints(make_targets(rng, (1,), 1), rng)
    targets[0]["keypoints"][..., 2] = 2
    boxes = targets[0]["boxes"][None].expand(1, 2, 4)
    keypoints = torch.zeros(1, 2, len(SCHEMA) * SLOTS, 8, dtype=torch.float64)
    for query in (0, 1):
        keypoints[0, query, :SLOTS, :2] = targets[0]["keypoints"][0, :, :2]
        keypoints[0, 1 - query, :SLOTS, :2] = 0.9
        layer = LayerOutput("", torch.zeros(1, 2, CLASSES, dtype=torch.float64), boxes, keypoints=keypoints)
        assert criterion([layer], targets)["loss_keypoints_l1"].item() == 0


def test_one_window_in_any_split(criterion, rng):
    layers, targets = predict(rng, 4), with_keypoints(make_targets(rng, (3, 0, 4, 2), CLASSES), rng)
    whole = criterion.weighted_sum(criterion(layers, targets, GROUPS, num_boxes=9.0 * GROUPS))
    parts = []
    for i in range(4):
        one = [
            LayerOutput(x.name_suffix, x.logits[i : i + 1], x.boxes[i : i + 1], keypoints=x.keypoints[i : i + 1])
            for x in layers
        ]
        parts.append(criterion.weighted_sum(criterion(one, targets[i : i + 1], GROUPS, num_boxes=9.0 * GROUPS)))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    inputs = [layer.keypoints for layer in layers]
    for one, other in zip(torch.autograd.grad(whole, inputs), torch.autograd.grad(sum(parts), inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_batch_without_objects(criterion, rng):
    layers = predict(rng, 2)
    with torch.no_grad():
        layers[0].keypoints[0, 0, 0] = math.nan
    losses = criterion(layers, with_keypoints(make_targets(rng, (0, 0), CLASSES), rng), GROUPS)
    loss = sum(value for name, value in losses.items() if name.startswith("loss_keypoints"))
    assert loss.item() == 0
    loss.backward()
    assert all(layer.keypoints.grad is not None and not layer.keypoints.grad.any() for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(criterion, rng, dtype):
    scale = torch.tensor([1, 1, 50, 50, 1, 1, 1, 1])
    layers = []
    for layer in predict(rng, 2):
        parts = (20 * layer.logits, layer.boxes, scale * layer.keypoints)
        logits, boxes, keypoints = (part.detach().to(dtype).requires_grad_() for part in parts)
        layers.append(LayerOutput(layer.name_suffix, logits, boxes, keypoints=keypoints))
    targets = with_keypoints(make_targets(rng, (3, 2), CLASSES, torch.float32), rng)
    loss = criterion.weighted_sum(criterion(layers, targets, GROUPS))
    loss.backward()
    assert loss.isfinite() and all(layer.keypoints.grad.isfinite().all() for layer in layers)


def test_names_and_weights(criterion):
    for name, weight in zip(TERMS, (1, 2, 3, 4), strict=True):
        assert [criterion.weight_dict[f"{name}{suffix}"] for suffix in ("", "_0", "_1", "_enc")] == [weight] * 4


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (None, "image 1 of the batch: field 'keypoints' is missing"),
        (torch.zeros(2, 3, 3), r"shape \(1, k, 3\)"),
        (torch.zeros(1, 3, 2), r"\(1, 3, 2\)"),
        (torch.zeros(1, 3, 3, dtype=torch.int64), "int64"),
        (torch.zeros(1, 4, 3), "set num_keypoints_per_class"),
    ],
)
def test_bad_keypoints_are_named(criterion, rng, keypoints, message):
    layers, targets = predict(rng, 2), with_keypoints(make_targets(rng, (2, 1), CLASSES), rng)
    targets[1].pop("keypoints")
    if keypoints is not None:
        targets[1]["keypoints"] = keypoints
    with pytest.raises(ValueError, match=message):
        criterion(layers, targets, GROUPS)
