import itertools
import threading

import numpy as np
import pytest
import torch
from helpers.operations import Results
from helpers.plain_loss import CLASSES, make_predictions, make_targets, match
from torch.utils._python_dispatch import TorchDispatchMode

from rfdetr_hf.losses import HungarianMatcher, matcher, pack_objects
from rfdetr_hf.losses.matcher import replace_non_finite, solve_batched, solve_scipy


@pytest.fixture
def hungarian():
    return HungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2, focal_alpha=0.25)


def predict(rng, images, rows_per_layer, dtype=torch.float64):
    layers = [make_predictions(rng, images, rows, CLASSES, dtype) for rows in rows_per_layer]
    return [logits for logits, _ in layers], [boxes for _, boxes in layers]


def pack(targets, logits):
    return pack_objects(targets, logits[0], len(targets), CLASSES)


def triples(matches, layer, counts):
    """{(image, row, object of that image)} of one layer."""
    batch, query, target = (part[layer].tolist() for part in matches.split("batch", "query", "target"))
    starts = np.cumsum([0, *counts])
    assert len({*zip(batch, query, strict=True)}) == len(batch)
    return {(b, q, t - starts[b]) for b, q, t in zip(batch, query, target, strict=True)}


@pytest.mark.parametrize(
    ("counts", "rows", "groups"),
    [
        ((3, 1, 4), (12, 12, 12), 2),
        ((3, 0, 2), (12, 12, 6), 2),  # an image without objects; an encoder with fewer rows
        ((0, 9, 1), (15, 15), 3),  # more objects than queries
        ((2,), (7,), 1),
    ],
)
def test_equals_plain_matching(hungarian, rng, counts, rows, groups):
    logits, boxes = predict(rng, len(counts), rows)
    targets = make_targets(rng, counts, CLASSES)
    matches = hungarian(logits, boxes, pack(targets, logits), groups)
    assert matches.layer.tolist() == sorted(matches.layer.tolist())
    for layer in range(len(rows)):
        assert triples(matches, layer, counts) == set(match(logits[layer], boxes[layer], targets, groups))
        assert matches.per_layer[layer] == sum(min(n, rows[layer] // groups) for n in counts) * groups


def test_takes_stacked_layers(hungarian, rng):
    logits, boxes = predict(rng, 2, (8, 8))
    objects = pack(make_targets(rng, (2, 1), CLASSES), logits)
    listed = hungarian(logits, boxes, objects, 2)
    stacked = hungarian(torch.stack(logits), torch.stack(boxes), objects, 2)
    assert torch.equal(listed.query, stacked.query) and torch.equal(listed.target, stacked.target)


@pytest.mark.parametrize(("objects", "queries"), [(3, 5), (5, 3), (4, 4)])
def test_optimal_by_brute_force(objects, queries):
    cost = np.random.default_rng(0).normal(size=(objects, queries))
    columns = solve_scipy(cost, [objects], [queries], 1)[0, :, 0]
    small = cost if objects <= queries else cost.T
    best = min(
        small[range(len(small)), choice].sum() for choice in itertools.permutations(range(max(cost.shape)), len(small))
    )
    chosen = columns >= 0
    assert cost[chosen.nonzero()[0], columns[chosen]].sum() == pytest.approx(best)
    assert chosen.sum() == min(objects, queries)


def test_order_of_images_and_objects_does_not_matter(hungarian, rng):
    logits, boxes = predict(rng, 3, (12, 12))
    targets = make_targets(rng, (3, 1, 4), CLASSES)
    before = hungarian(logits, boxes, pack(targets, logits), 2)
    order = [2, 0, 1]
    flipped = [{name: value.flip(0) for name, value in targets[image].items()} for image in order]
    after = hungarian([x[order] for x in logits], [x[order] for x in boxes], pack(flipped, logits), 2)
    for layer in range(2):
        moved = {(order[b], q, len(flipped[b]["boxes"]) - 1 - t) for b, q, t in triples(after, layer, (4, 3, 1))}
        assert moved == triples(before, layer, (3, 1, 4))


def test_groups_are_independent(hungarian, rng):
    logits, boxes = predict(rng, 2, (12,))
    objects = pack(make_targets(rng, (3, 2), CLASSES), logits)
    together = triples(hungarian(logits, boxes, objects, 3), 0, (3, 2))
    apart = set()
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        alone = hungarian([logits[0][:, rows]], [boxes[0][:, rows]], objects, 1)
        apart |= {(b, q + 4 * group, t) for b, q, t in triples(alone, 0, (3, 2))}
    assert together == apart


def test_no_objects_at_all(hungarian, rng):
    logits, boxes = predict(rng, 2, (6, 6))
    matches = hungarian(logits, boxes, pack(make_targets(rng, (0, 0), CLASSES), logits), 2)
    assert matches.per_layer == [0, 0] and len(matches.query) == 0 and matches.query.dtype == torch.int64


def test_rows_must_fit_the_groups(hungarian, rng):
    logits, boxes = predict(rng, 1, (7,))
    with pytest.raises(ValueError, match="7 query rows .* num_groups=2"):
        hungarian(logits, boxes, pack(make_targets(rng, (1,), CLASSES), logits), 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_predictions_are_matched_last(hungarian, rng, bad):
    logits, boxes = predict(rng, 2, (8,))
    targets = make_targets(rng, (3, 2), CLASSES)
    logits[0].data[0, 1], boxes[0].data[0, 2] = bad, bad
    matches = hungarian(logits, boxes, pack(targets, logits), 1)
    assert len(matches.query) == 5
    assert not {(0, 1), (0, 2)} & {(b, q) for b, q, _ in triples(matches, 0, (3, 2))}
    # The other image, and the rest of this one, are matched as if the broken queries were not there.
    kept = [0, 3, 4, 5, 6, 7]
    rest = match(logits[0][:, kept], boxes[0][:, kept], targets, 1)
    assert triples(matches, 0, (3, 2)) >= {(b, kept[q], t) for b, q, t in rest if b == 0}


def test_everything_non_finite_still_matches(hungarian, rng):
    logits, boxes = predict(rng, 1, (4,))
    logits[0].data.fill_(float("nan"))
    matches = hungarian(logits, boxes, pack(make_targets(rng, (3,), CLASSES), logits), 1)
    assert len(triples(matches, 0, (3,))) == 3


def test_replacement_is_above_all_and_near():
    cost = torch.tensor([[-50.0, 3.0, float("nan")], [float("inf"), 7.0, float("-inf")]])
    assert replace_non_finite(cost).tolist() == [[-50.0, 3.0, 101.0], [101.0, 7.0, 101.0]]
    assert replace_non_finite(torch.tensor([3e38, float("nan")])).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_saturated_logits_match_in_float32(hungarian, rng, dtype, autocast):
    logits, boxes = predict(rng, 2, (8,), torch.float32)
    logits[0].data.mul_(1e4).clamp_(-1e4, 1e4)
    targets = make_targets(rng, (3, 2), CLASSES, torch.float32)
    narrow = [logits[0].to(dtype)]
    cost = hungarian.pair_cost(narrow, boxes, pack(targets, narrow))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        matches = hungarian(narrow, boxes, pack(targets, narrow), 2)
    assert cost.dtype == torch.float32 and cost.isfinite().all() and cost.abs().max() > 1e3
    wide = [narrow[0].double()]
    expected = hungarian(wide, [boxes[0].double()], pack(targets, wide), 2)
    assert torch.equal(matches.query, expected.query)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned, and counts the reads of values by the host."""

    def __init__(self):
        super().__init__()
        self.elements, self.reads = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("counts", [(20,) * 8, (153, *(1,) * 7)])
def test_memory_follows_the_number_of_objects(hungarian, rng, counts, monkeypatch):
    """However the objects are spread over the images, the cost has one number per object and row of its own image."""
    logits, boxes = predict(rng, 8, (600, 600), torch.float32)
    objects = pack(make_targets(rng, counts, CLASSES, torch.float32), logits)
    assert objects.labels.numel() == 160
    with LargestTensor() as seen:
        cost = hungarian.pair_cost(logits, boxes, objects)
    assert cost.shape == (160, 1200)
    assert seen.elements <= max(cost.numel(), 8 * matcher.PAIRS_AT_ONCE["cpu"])
    monkeypatch.setitem(matcher.PAIRS_AT_ONCE, "cpu", 10**9)
    torch.testing.assert_close(hungarian.pair_cost(logits, boxes, objects), cost, rtol=0, atol=0)


def test_on_a_cpu_a_class_is_computed_once_and_costs_are_few_and_not_copied(hungarian, rng, monkeypatch):
    logits, boxes = predict(rng, 3, (60, 60), torch.float32)
    targets = make_targets(rng, (9, 0, 4), CLASSES, torch.float32)
    targets[0]["class_labels"] = torch.tensor([3, 1, 1, 3, 1, 1, 3, 3, 3])
    targets[2]["class_labels"][:] = 4
    objects = pack(targets, logits)
    with Results() as results:
        matches = hungarian(logits, boxes, objects, 2)
    assert sum(elements for name, elements in results.made if name == "sigmoid") == (2 + 1) * 120
    assert [name for name, elements in results.made if elements == 13 * 120] == ["new_empty"]
    monkeypatch.setattr(matcher, "_COSTS_AT_ONCE", 1)
    with Results() as results:
        apart = hungarian(logits, boxes, objects, 2)
    assert torch.equal(torch.stack(apart[:5]), torch.stack(matches[:5])) and apart.per_layer == matches.per_layer
    assert max(elements for name, elements in results.made if name == "new_empty") == 9 * 120  # of the largest image
    for layer in range(2):
        assert triples(matches, layer, (9, 0, 4)) == set(match(logits[layer], boxes[layer], targets, 2))


@pytest.mark.parametrize("pairs", [60, 10**6])
def test_objects_of_all_images_at_once_cost_the_same(hungarian, rng, monkeypatch, pairs):
    """The way of a GPU gives the costs and matches of that of a CPU."""
    logits, boxes = predict(rng, 4, (12, 12))
    boxes[0].data[1, 2, 2] = -0.1
    objects = pack(make_targets(rng, (9, 0, 2, 1), CLASSES), logits)
    cost, matches = hungarian.pair_cost(logits, boxes, objects), hungarian(logits, boxes, objects, 2)
    monkeypatch.setattr(matcher, "_BY_IMAGE", set())
    monkeypatch.setitem(matcher.PAIRS_AT_ONCE, "cpu", pairs)
    extra = torch.zeros_like(cost)
    for layers in (logits, torch.stack(logits)):
        torch.testing.assert_close(hungarian.pair_cost(layers, boxes, objects), cost, rtol=1e-12, atol=1e-12)
        at_once = hungarian(layers, boxes, objects, 2, extra)
        assert torch.equal(torch.stack(at_once[:5]), torch.stack(matches[:5]))


def test_host_reads_no_single_values(hungarian, rng):
    logits, boxes = predict(rng, 3, (12, 12, 6))
    objects = pack(make_targets(rng, (3, 0, 2), CLASSES), logits)
    with LargestTensor() as seen:
        hungarian(logits, boxes, objects, 2)
    assert seen.reads == 0


def check_batched_solver(device):
    rng = torch.Generator().manual_seed(0)
    counts, queries, groups = [3, 0, 7, 1], [9, 9, 7], 2
    objects = pack_objects(make_targets(rng, counts, CLASSES), torch.zeros(1, dtype=torch.float64), 4, CLASSES)
    objects = objects._replace(image=objects.image.to(device))
    cost = torch.randn(11, sum(queries) * groups, generator=rng)
    expected = solve_scipy(cost.numpy(), counts, queries, groups)
    assert (expected >= 0).all()
    assert solve_batched(cost.to(device), objects, queries, groups).tolist() == expected.tolist()


def test_batched_solver_on_the_host_equals_scipy():
    pytest.importorskip("torch_linear_assignment")
    check_batched_solver("cpu")


def test_threads_give_the_same(monkeypatch):
    counts, queries, groups = [3, 0, 12, 1], [9, 9, 7], 2
    cost = np.random.default_rng(0).random((16, sum(queries) * groups), dtype=np.float32)
    expected = solve_scipy(cost, counts, queries, groups)
    assert (expected < 0).any() and (expected >= 0).any()
    threads = set()
    solve = matcher.linear_sum_assignment
    monkeypatch.setattr(matcher, "linear_sum_assignment", lambda own: threads.add(threading.get_ident()) or solve(own))
    assert solve_scipy(cost, counts, queries, groups, threads=3).tolist() == expected.tolist()
    assert threads == {threading.get_ident()}  # too little work
    monkeypatch.setattr(matcher, "_THREADS_FROM", 0)
    assert solve_scipy(cost, counts, queries, groups, threads=3).tolist() == expected.tolist()
    assert len(threads) > 1
    assert solve_scipy(cost[:0], [0, 0], queries, groups, threads=3).shape == (3, 0, 2)


@pytest.mark.parametrize(
    ("distribution", "capability", "triton", "used"),
    [
        ("torch-linear-assignment", (7, 5), False, True),
        ("torch-hungarian", (7, 5), True, False),
        ("torch-hungarian", (8, 0), False, False),
        ("torch-hungarian", (8, 0), True, True),
    ],
)
def test_a_solver_that_falls_back_is_refused(monkeypatch, caplog, distribution, capability, triton, used):
    matcher.use_batched_solver.cache_clear()
    monkeypatch.setattr(matcher, "_HAS_BATCHED_SOLVER", True)
    monkeypatch.setattr(matcher, "packages_distributions", lambda: {"torch_linear_assignment": [distribution]})
    monkeypatch.setattr(matcher, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert matcher.use_batched_solver(device) == used
    assert ("torch-hungarian needs Triton" in caplog.text) != used
    assert matcher.matching_by(device).startswith(f"{distribution} on the device" if used else "SciPy on the CPU")
    assert not matcher.use_batched_solver(torch.device("cpu"))
    matcher.use_batched_solver.cache_clear()


@pytest.mark.gpu
def test_batched_solver_equals_scipy():
    pytest.importorskip("torch_linear_assignment")
    check_batched_solver("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("batched", [False, True])
def test_on_the_device_equals_the_host(hungarian, rng, batched, monkeypatch):
    if batched:
        pytest.importorskip("torch_linear_assignment")
    monkeypatch.setattr(matcher, "use_batched_solver", lambda device: batched and device.type == "cuda")
    logits, boxes = predict(rng, 3, (12, 12, 6), torch.float32)
    targets = make_targets(rng, (3, 0, 2), CLASSES, torch.float32)
    expected = hungarian(logits, boxes, pack(targets, logits), 2)
    logits, boxes = [x.cuda() for x in logits], [x.cuda() for x in boxes]
    matches = hungarian(logits, boxes, pack(targets, logits), 2)
    for layer, counts in enumerate([(3, 0, 2)] * 3):
        assert triples(matches, layer, counts) == triples(expected, layer, counts)
