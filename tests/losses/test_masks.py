import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from helpers.plain_loss import CONFIG, make_predictions, make_targets
from torch.autograd.graph import saved_tensors_hooks

from rfdetr_hf.losses import LayerOutput, RFDETRCriterion, pack_objects
from rfdetr_hf.losses import masks as mask_losses
from rfdetr_hf.losses import points as point_losses
from rfdetr_hf.losses.masks import MaskFactors, MaskTerms

CLASSES, WIDTH, ROWS, GROUPS = 4, 6, 8, 2
HEIGHT, SIDE = 6, 10  # cells of the predicted masks
MASK_CONFIG = SimpleNamespace(
    **vars(CONFIG), mask_point_sample_ratio=4, mask_class_loss_coefficient=5, mask_dice_loss_coefficient=3
)
SUFFIXES = ("", "_0", "_enc")


@pytest.fixture
def fixed_points(monkeypatch):
    """The same points for every pair, whoever asks: the first of one long list."""
    points = torch.rand(1, 1000, 2, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(point_losses, "draw_points", lambda keys, count: points[:, :count].repeat(len(keys), 1, 1))
    return points[0]


def predict(rng, images, dtype=torch.float64, shape=(HEIGHT, SIDE)):
    layers = []
    for suffix in SUFFIXES:
        logits, boxes = make_predictions(rng, images, ROWS, CLASSES, dtype)
        features = torch.randn(images, WIDTH, *shape, generator=rng, dtype=dtype).requires_grad_()
        queries = torch.randn(images, ROWS, WIDTH, generator=rng, dtype=dtype).requires_grad_()
        bias = torch.full((1,), 0.3, dtype=dtype).requires_grad_()
        layers.append(LayerOutput(suffix, logits, boxes, masks=MaskFactors(features, queries, bias)))
    return layers


def with_masks(targets, rng, sizes):
    """Random blobs, one size per image."""
    for target, size in zip(targets, sizes, strict=True):
        target["masks"] = torch.rand(len(target["boxes"]), *size, generator=rng) > 0.5
    return targets


def factors(layers):
    return [part for layer in layers for part in layer.masks[:3]]


def bilinear(mask, x, y):
    """`mask` at a point of [0, 1] x [0, 1], cell centres at half numbers, border cells continued."""
    height, width = mask.shape
    x, y = min(max(x * width - 0.5, 0), width - 1), min(max(y * height - 0.5, 0), height - 1)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - left, y - top
    upper = mask[top, left] * (1 - u) + mask[top, left + 1] * u
    lower = mask[top + 1, left] * (1 - u) + mask[top + 1, left + 1] * u
    return upper * (1 - v) + lower * v


def plain_terms(scores, truth, points):
    """Cross entropy and dice of one mask of logits and one true mask at some points."""
    x = torch.stack([bilinear(scores, px, py) for px, py in points.tolist()])
    height, width = truth.shape
    t = torch.tensor([float(truth[int(py * height), int(px * width)]) for px, py in points.tolist()], dtype=x.dtype)
    p = 1 / (1 + (-x).exp())
    cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    return cross_entropy, 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def test_cost_equals_plain_cost(rng, fixed_points):
    layers, targets = predict(rng, 3), make_targets(rng, (2, 0, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5), (31, 12)])
    terms, objects = MaskTerms(MASK_CONFIG), pack_objects(targets, layers[0].logits, 3, CLASSES)
    cost = terms.pair_cost(layers, objects, terms.pack(targets, objects, 0))
    assert cost.shape == (3, len(layers) * ROWS)
    points = fixed_points[: HEIGHT * SIDE // 4]
    owners = [(0, 0), (0, 1), (2, 0)]
    for (row, (image, index)), (column, layer), query in itertools.product(
        enumerate(owners), enumerate(layers), range(ROWS)
    ):
        scores = layer.masks.dense()[image, query].detach()
        cross_entropy, dice = plain_terms(scores, targets[image]["masks"][index], points)
        assert cost[row, column * ROWS + query].item() == pytest.approx(5 * cross_entropy.item() + 3 * dice.item())


def chosen(scores, points, count):
    """The rule of point selection for one pair, in words: nearest to zero of three times as many, and fresh ones."""
    order = sorted(points[: 3 * count].tolist(), key=lambda point: abs(bilinear(scores, *point).item()))
    uncertain = int(0.75 * count)
    return torch.cat([torch.tensor(order[:uncertain]), points[3 * count :][: count - uncertain]])


def test_losses_equal_plain_losses(rng, fixed_points):
    """Values and gradients of both terms of all layers at fixed points."""
    layers, targets = predict(rng, 3), make_targets(rng, (2, 0, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5), (31, 12)])
    terms, objects = MaskTerms(MASK_CONFIG), pack_objects(targets, layers[0].logits, 3, CLASSES)
    criterion = RFDETRCriterion(MASK_CONFIG, terms)
    truth = terms.pack(targets, objects, 0)
    cost = terms.pair_cost(layers, objects, truth)
    matches = criterion.matcher([x.logits for x in layers], [x.boxes for x in layers], objects, GROUPS, cost)
    losses = criterion(layers, targets, GROUPS, num_boxes=1.0)
    expected = {}
    local = [0, 1, 0]
    for layer, *pairs in zip(layers, *matches.split("batch", "query", "target"), strict=True):
        sums = [0.0, 0.0]
        for image, query, target in zip(*(pair.tolist() for pair in pairs), strict=True):
            scores = layer.masks.dense()[image, query]
            points = chosen(scores.detach(), fixed_points, max(HEIGHT, HEIGHT * SIDE // 4))
            pair = plain_terms(scores, targets[image]["masks"][local[target]], points)
            sums = [total + term for total, term in zip(sums, pair, strict=True)]
        expected[f"loss_mask_ce{layer.name_suffix}"], expected[f"loss_mask_dice{layer.name_suffix}"] = sums
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-8)
    gradients = torch.autograd.grad(sum(losses[name] for name in expected), factors(layers))
    for ours, plain in zip(gradients, torch.autograd.grad(sum(expected.values()), factors(layers)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_names_and_weights(rng):
    criterion = RFDETRCriterion(MASK_CONFIG, MaskTerms(MASK_CONFIG))
    assert {criterion.weight_dict[f"loss_mask_ce{suffix}"] for suffix in ("", "_0", "_1", "_enc")} == {5.0}
    assert {criterion.weight_dict[f"loss_mask_dice{suffix}"] for suffix in ("", "_0", "_1", "_enc")} == {3.0}


def of_images(layer, images):
    masks = MaskFactors(layer.masks.features[images], layer.masks.queries[images], layer.masks.bias)
    return LayerOutput(layer.name_suffix, layer.logits[images], layer.boxes[images], masks)


@pytest.mark.parametrize("parts", [[0, 1, 2, 3, 4], [0, 2, 4]], ids=["4 x 1", "2 x 2"])
def test_one_window_in_any_split(rng, parts):
    """A batch of 4 images, and its parts with the same seed and normaliser, give the same loss and gradient."""
    layers, targets = predict(rng, 4), make_targets(rng, (3, 0, 2, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5), (31, 12), (6, 6)])
    for target, image_id in zip(targets, (3, 141, 59, 26), strict=True):
        target["image_id"] = torch.tensor(image_id)
    criterion = RFDETRCriterion(MASK_CONFIG, MaskTerms(MASK_CONFIG))
    whole = criterion.weighted_sum(criterion(layers, targets, GROUPS, 6.0 * GROUPS, seed=7))
    sums = []
    for part in map(slice, parts, parts[1:]):
        own = [of_images(layer, part) for layer in layers]
        sums.append(criterion.weighted_sum(criterion(own, targets[part], GROUPS, 6.0 * GROUPS, seed=7)))
    torch.testing.assert_close(sum(sums), whole, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(whole, factors(layers)), torch.autograd.grad(sum(sums), factors(layers)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_points_differ_by_seed_and_image(rng):
    """The same prediction and truth twice in a batch: other points for another image, another seed, another layer."""
    layers, targets = predict(rng, 1), make_targets(rng, (2,), CLASSES)
    with_masks(targets, rng, [(9, 7)])
    twins = [layers[0], layers[0]._replace(name_suffix="_0")]

    def terms_of(image_id, seed):
        targets[0]["image_id"] = torch.tensor([image_id])
        losses = RFDETRCriterion(MASK_CONFIG, MaskTerms(MASK_CONFIG))(twins, targets, GROUPS, seed=seed)
        return [losses["loss_mask_ce"].item(), losses["loss_mask_ce_0"].item()]

    drawn = [*terms_of(3, 0), *terms_of(4, 0), *terms_of(3, 1)]
    assert len(set(drawn)) == 6
    assert terms_of(3, 0) == drawn[:2]


def mask_sum(layers, targets, config=MASK_CONFIG):
    criterion = RFDETRCriterion(config, MaskTerms(config))
    losses = criterion(layers, targets, GROUPS)
    return sum(value for name, value in losses.items() if name.startswith("loss_mask"))


def draws(layers, targets, seeds):
    """(seeds, terms) of the matching cost, summed, and of the losses, at the points of each seed."""
    terms, criterion = MaskTerms(MASK_CONFIG), RFDETRCriterion(MASK_CONFIG, MaskTerms(MASK_CONFIG))
    objects, rows = pack_objects(targets, layers[0].logits, len(targets), CLASSES), []
    for seed in seeds:
        cost = terms.pair_cost(layers, objects, terms.pack(targets, objects, seed))
        losses = criterion(layers, targets, GROUPS, seed=seed)
        rows.append([cost.sum().item(), *(v.item() for name, v in losses.items() if name.startswith("loss_mask"))])
    return torch.tensor(rows, dtype=torch.float64)


def test_mean_over_draws_is_that_of_uniform_points(rng, monkeypatch):
    """No term is off by more than a percent or so: 150 draws by torch's rng beside 150 of ours."""
    layers, targets = predict(rng, 2), make_targets(rng, (2, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5)])
    ours = draws(layers, targets, range(150))
    torch.manual_seed(0)
    monkeypatch.setattr(point_losses, "draw_points", lambda keys, count: torch.rand(len(keys), count, 2))
    uniform = draws(layers, targets, range(150))
    error = ((ours.var(0) + uniform.var(0)) / 150).sqrt()
    assert (ours.mean(0) - uniform.mean(0)).abs().le(4 * error).all()
    assert error.div(uniform.mean(0)).max() < 0.01
    torch.testing.assert_close(ours.std(0), uniform.std(0), rtol=0.4, atol=0)


def test_resolution_of_the_truth_does_not_matter(rng, fixed_points):
    layers, targets = predict(rng, 2), make_targets(rng, (2, 1), CLASSES)
    coarse = mask_sum(layers, with_masks(targets, rng, [(9, 7), (5, 5)]))
    for target in targets:
        target["masks"] = target["masks"].repeat_interleave(3, 1).repeat_interleave(2, 2).to(torch.uint8) * 255
    torch.testing.assert_close(mask_sum(layers, targets), coarse, rtol=1e-12, atol=0)


def test_padding_does_not_matter(rng, fixed_points):
    """The same image alone and in the corner of a larger canvas, whose other cells hold anything."""
    layers, targets = predict(rng, 2), make_targets(rng, (2, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5)])
    config = SimpleNamespace(**{**vars(MASK_CONFIG), "mask_point_sample_ratio": 4 * 2 * 3})  # as many points as before
    padded = []
    for layer in layers:
        canvas = torch.full((2, WIDTH, 2 * HEIGHT, 3 * SIDE), 1e3, dtype=torch.float64)
        canvas[:, :, :HEIGHT, :SIDE] = layer.masks.features
        share = torch.tensor([[1 / 3, 1 / 2]], dtype=torch.float64).expand(2, -1)
        padded.append(layer._replace(masks=layer.masks._replace(features=canvas, image_share=share)))
    terms, larger = MaskTerms(MASK_CONFIG), MaskTerms(config)
    objects = pack_objects(targets, layers[0].logits, 2, CLASSES)
    truth = terms.pack(targets, objects, 0)
    torch.testing.assert_close(larger.pair_cost(padded, objects, truth), terms.pair_cost(layers, objects, truth))


def test_few_masks_at_a_time_give_the_same(rng, fixed_points, monkeypatch):
    layers, targets = predict(rng, 4), make_targets(rng, (3, 0, 2, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5), (31, 12), (6, 6)])
    together = mask_sum(layers, targets)
    gradients = torch.autograd.grad(together, factors(layers))
    runs = mask_losses._runs
    for cells, across in ((1, False), (2**26, True), (4 * HEIGHT * SIDE * GROUPS, True)):
        monkeypatch.setattr(mask_losses, "_CELLS_AT_ONCE", cells)
        monkeypatch.setattr(mask_losses, "_runs", lambda *args, across=across: runs(*args[:3], across))
        monkeypatch.setattr(mask_losses, "_SCORES_AT_ONCE", {"default": cells})
        again = mask_sum(layers, targets)
        torch.testing.assert_close(again, together, rtol=1e-12, atol=0)
        for ours, theirs in zip(torch.autograd.grad(again, factors(layers)), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_runs_cover_all_pairs_in_order():
    for cells, across in itertools.product((1, 100, 10**6), (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mask_losses, "_CELLS_AT_ONCE", cells)
            found = list(mask_losses._runs([[3, 0, 2], [1, 4, 0]], 5, 7, across))
        images = [(layer, image) for run in found for layer, *ends in run.parts for image in range(*ends)]
        assert images == [(0, 0), (0, 2), (1, 0), (1, 1)]
        assert [count for run in found for count in run.counts] == [3, 2, 1, 4]
        assert [run.pairs.start for run in found] == [0, *(run.pairs.stop for run in found)][:-1]
        assert found[-1].pairs.stop == 10 and all(run.pairs.stop - run.pairs.start == sum(run.counts) for run in found)
        if cells != 100:
            assert len(found) == (4 if cells == 1 else 1 if across else 2)


def test_no_mask_is_kept_for_the_backward_pass(rng):
    layers, targets = predict(rng, 1, shape=(40, 40)), make_targets(rng, (4,), CLASSES)
    with_masks(targets, rng, [(50, 50)])
    sizes = []
    with saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
        loss = mask_sum(layers, targets)
    pairs = 4 * GROUPS
    assert sizes and max(sizes) < pairs * 40 * 40
    loss.backward()


def test_batch_without_objects(rng):
    layers = predict(rng, 2)
    for layer in layers:
        with torch.no_grad():
            layer.masks.features[0, 0, 0, 0] = math.nan
    targets = with_masks(make_targets(rng, (0, 0), CLASSES), rng, [(4, 4), (3, 5)])
    loss = mask_sum(layers, targets)
    assert loss.item() == 0
    loss.backward()
    assert all(part.grad is not None and not part.grad.any() for part in factors(layers))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 60])
def test_half_precision_is_finite(rng, dtype, scale):
    layers = [
        layer._replace(
            logits=layer.logits.detach().to(dtype),
            boxes=layer.boxes.detach().to(dtype),
            masks=MaskFactors(*((scale * part).detach().to(dtype).requires_grad_() for part in layer.masks[:3])),
        )
        for layer in predict(rng, 2)
    ]
    targets = with_masks(make_targets(rng, (2, 1), CLASSES, torch.float32), rng, [(9, 7), (5, 5)])
    loss = mask_sum(layers, targets)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert all(part.grad.isfinite().all() and part.grad.dtype == dtype for part in factors(layers))


def test_without_a_seed_the_points_come_from_the_generator_of_torch(rng):
    layers = predict(rng, 2)
    targets = with_masks(make_targets(rng, (2, 1), CLASSES), rng, [(9, 7), (5, 5)])
    state = torch.get_rng_state()
    first, second = mask_sum(layers, targets), mask_sum(layers, targets)
    torch.set_rng_state(state)
    again = mask_sum(layers, targets)
    assert first.item() == again.item() != second.item()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "image 1 of the batch: field 'masks' is missing"),
        (torch.zeros(2, 4, 4, dtype=torch.bool), r"shape \(1, h, w\)"),
        (torch.zeros(1, 4, 4), "torch.float32"),
        (torch.zeros(1, 0, 4, dtype=torch.bool), "field 'masks'"),
    ],
)
def test_bad_masks_are_named(rng, masks, message):
    layers, targets = predict(rng, 2), make_targets(rng, (2, 1), CLASSES)
    with_masks(targets, rng, [(9, 7), (5, 5)])
    targets[1].pop("masks")
    if masks is not None:
        targets[1]["masks"] = masks
    with pytest.raises(ValueError, match=message):
        mask_sum(layers, targets)
