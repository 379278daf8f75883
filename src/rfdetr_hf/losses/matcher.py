"""Bipartite matching of queries and objects for all layers, images and query groups of a batch at once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ..choices import counted
from ..cores import usable_cores
from .boxes import box_measures, pair_terms
from .types import PackedObjects, QueryMatches, to_device

logger = logging.getLogger(__name__)

_SOLVER = "torch_linear_assignment"
_HAS_BATCHED_SOLVER = find_spec(_SOLVER) is not None

# Numbers in the costs from which on SciPy gets several threads: some milliseconds of work, beside half a millisecond to
# hand it out.
_THREADS_FROM = 2**19
_MOST_THREADS = 8
_pool = cache(ThreadPoolExecutor)  # one for each number of threads

# (object, query) pairs whose cost is computed in one go: bounds the temporaries, about a dozen arrays of this size.
PAIRS_AT_ONCE = {"cpu": 2**16, "default": 2**22}  # on the CPU they then stay in the second-level cache
# Where the objects of an image are paired with its predictions where these lie: many calls, but nothing is copied for
# each object, and the class cost is computed once for each class of the image.
_BY_IMAGE = {"cpu"}
# Costs that exist at a time there: 8 MB in float32, and enough for several threads.
_COSTS_AT_ONCE = 2**21
SOFTPLUS_THRESHOLD = 64  # from which on log(1 + exp(x)) is x in float64 as well; exp(64) is a float32


class HungarianMatcher:
    """Match every object to one query of each group, in each layer, at the least total cost.

    cost = bbox_cost * L1(cxcywh) - giou_cost * GIoU + class_cost * (focal(1) - focal(0)) at the class of the object,
    focal(1) = -alpha (1-p)^2 log p and focal(0) = -(1-alpha) p^2 log(1-p), p = sigmoid(logit).

    Only queries and objects of the same image are paired, and only the logits at the objects' classes are read, so the
    cost holds (objects of the batch) x (rows of all layers) numbers, however the objects are spread over the images.
    """

    def __init__(self, class_cost: float, bbox_cost: float, giou_cost: float, focal_alpha: float = 0.25) -> None:
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha

    @torch.no_grad()
    def __call__(
        self,
        logits: Sequence[Tensor] | Tensor,
        boxes: Sequence[Tensor] | Tensor,
        objects: PackedObjects,
        num_groups: int,
        extra_cost: Tensor | None = None,
    ) -> QueryMatches:
        """Solve all layers x images x groups.

        Args:
            logits: per layer (B, G*q, C), as a list or stacked; q may differ between layers.
            boxes: per layer (B, G*q, 4), cxcywh in [0, 1].
            objects: the objects of the batch, see `pack_objects`.
            num_groups: G, the query groups that lie one after the other in each layer's rows.
            extra_cost: (N, rows of all layers side by side), added to the cost of each object with each query.

        Returns:
            min(n, q) matches for each layer, image with n objects, and group.

        Raises:
            ValueError: when the rows of a layer are no multiple of `num_groups`.
        """
        rows = [layer.shape[1] for layer in boxes]
        for count in rows:
            if count % num_groups:
                raise ValueError(f"{count} query rows cannot be split into num_groups={num_groups} groups")
        queries = [count // num_groups for count in rows]
        device = boxes[0].device
        if not sum(objects.counts):
            empty = torch.empty(0, dtype=torch.int64, device=device)
            return QueryMatches(empty, empty, empty, empty, empty, [0] * len(rows))
        with torch.autocast(device.type, enabled=False):
            if device.type in _BY_IMAGE:
                columns = self._solve_by_image(logits, boxes, objects, queries, num_groups, extra_cost)
                return _index_on_host(columns, queries, objects, device)
            cost = self.pair_cost(logits, boxes, objects)
            cost = replace_non_finite(cost if extra_cost is None else cost.add_(extra_cost))
            if use_batched_solver(device) and max(objects.counts) <= min(queries):
                columns = solve_batched(cost, objects, queries, num_groups)
                return _index_on_device(columns, objects, queries)
            columns = solve_on_host(cost, objects.counts, queries, num_groups)
            return _index_on_host(columns, queries, objects, device)

    def _solve_by_image(
        self,
        logits: Sequence[Tensor] | Tensor,
        boxes: Sequence[Tensor] | Tensor,
        objects: PackedObjects,
        queries: Sequence[int],
        num_groups: int,
        extra_cost: Tensor | None,
    ) -> np.ndarray:
        """`solve_on_host` of some images at a time, (layers, N, G): their costs lie in memory that serves again."""
        columns = []
        for images, own in _blocks(objects.counts, _COSTS_AT_ONCE // (sum(queries) * num_groups)):
            some = PackedObjects(objects.labels[own], objects.boxes[own], objects.image[own], objects.counts[images])
            cost = self.pair_cost([layer[images] for layer in logits], [layer[images] for layer in boxes], some)
            if extra_cost is not None:
                cost.add_(extra_cost[own])
            if not np.isfinite(cost.sum().numpy()):  # one look spares the copies; finite costs stay as they are anyhow
                cost = replace_non_finite(cost)
            columns.append(solve_on_host(cost, some.counts, queries, num_groups))
        return np.concatenate(columns, axis=1)

    @torch.no_grad()
    def pair_cost(
        self, logits: Sequence[Tensor] | Tensor, boxes: Sequence[Tensor] | Tensor, objects: PackedObjects
    ) -> Tensor:
        """Cost of each object with each query of its image: (N, rows of all layers side by side)."""
        all_boxes = torch.cat([layer.to(objects.boxes.dtype) for layer in boxes], dim=1)  # (B, rows, 4)
        predicted, truth = box_measures(all_boxes), box_measures(objects.boxes)[..., None]  # (6, B, rows), (6, N, 1)
        device, num_rows = all_boxes.device.type, all_boxes.shape[1]
        chunk = max(1, PAIRS_AT_ONCE.get(device, PAIRS_AT_ONCE["default"]) // num_rows)
        if device in _BY_IMAGE:
            cost, counts = objects.boxes.new_empty(len(objects.labels), num_rows), objects.counts
            own = zip(cost.split(counts), objects.labels.split(counts), truth.split(counts, dim=1), strict=True)
            for image, (out, labels, wanted) in enumerate(own):
                if len(out):
                    self._fill(
                        out, [layer[image] for layer in logits], labels, predicted[:, image, None], wanted, chunk
                    )
            return cost
        costs = []
        pieces = zip(objects.image.split(chunk), objects.labels.split(chunk), truth.split(chunk, dim=1), strict=True)
        for image, labels, wanted in pieces:
            if isinstance(logits, Tensor):
                scores = logits[:, image, :, labels].flatten(1)  # (n, rows)
            else:
                scores = torch.cat([layer[image, :, labels] for layer in logits], dim=1)
            costs.append(self._add_box_cost(self._class_cost(scores.to(truth.dtype)), predicted[:, image], wanted))
        return costs[0] if len(costs) == 1 else torch.cat(costs)

    def _fill(
        self, cost: Tensor, logits: Sequence[Tensor], labels: Tensor, predicted: Tensor, truth: Tensor, chunk: int
    ) -> None:
        """Costs (n, rows) of one image, from logits by layer, labels (n,), measures (6, 1, rows) and (6, n, 1)."""
        classes, position = labels.unique(return_inverse=True)
        scores = [layer.T.index_select(0, classes).to(cost.dtype) for layer in logits]
        of_class = torch.cat([self._class_cost(own) for own in scores], dim=1)  # (classes, rows)
        pieces = zip(cost.split(chunk), position.split(chunk), truth.split(chunk, dim=1), strict=True)
        for own, which, wanted in pieces:
            torch.index_select(of_class, 0, which, out=own)
            self._add_box_cost(own, predicted, wanted)

    def _class_cost(self, scores: Tensor) -> Tensor:
        """Of logits of any shape, at the classes of objects."""
        # log p = logit - b, b being -log(1 - p): the logarithm of a saturated probability would be infinite.
        p, b = scores.sigmoid(), F.softplus(scores, threshold=SOFTPLUS_THRESHOLD)
        positive = (1 - p).square_().mul_(self.class_cost * self.focal_alpha)
        toward = scores * positive
        return positive.sub_(p.square_(), alpha=self.class_cost * (1 - self.focal_alpha)).mul_(b).sub_(toward)

    def _add_box_cost(self, cost: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
        """To costs (n, rows), of measures (6, n or 1, rows) and (6, n, 1)."""
        distance, giou = pair_terms(predicted, truth)
        return cost.add_(distance, alpha=self.bbox_cost).sub_(giou, alpha=self.giou_cost)


def _blocks(counts: Sequence[int], most: int) -> Iterator[tuple[slice, slice]]:
    """Images one after the other that have at most `most` objects together, or one alone: they, and their objects."""
    first = start = end = 0
    for image, count in enumerate(counts):
        if count and start < end and end + count > start + most:
            yield slice(first, image), slice(start, end)
            first, start = image, end
        end += count
    yield slice(first, len(counts)), slice(start, end)


def replace_non_finite(cost: Tensor) -> Tensor:
    """Give NaN and infinite costs one value above all finite ones, so that they are taken last and no solver fails.

    It stays near the finite costs, since a far larger one would round the others away in the solvers' sums.
    """
    finite = cost.nan_to_num(0, 0, 0)
    largest = torch.linalg.vector_norm(finite, torch.inf)
    worst = torch.rsub(largest, 1, alpha=-2).clamp(max=torch.finfo(cost.dtype).max / 16)
    return torch.where(finite == cost, cost, worst)


@cache
def use_batched_solver(device: torch.device) -> bool:
    """Whether the solver of the extra `gpu` serves this device.

    The distribution torch-hungarian has a module of the same name, which solves with SciPy, without a word, where it
    has no Triton or the GPU is older than Ampere. On padded problems that is slower than SciPy here.
    """
    if device.type != "cuda" or not _HAS_BATCHED_SOLVER:
        return False
    falls_back = find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0)
    if "torch-hungarian" in solver_distributions() and falls_back:
        logger.warning(
            "torch-hungarian needs Triton and a GPU of compute capability 8.0: matching runs on the CPU instead; "
            "torch-linear-assignment solves on this GPU as well"
        )
        return False
    return True


def solver_distributions() -> list[str]:
    """The installed distributions that have the module of the batched solver."""
    return sorted({name.lower() for name in packages_distributions().get(_SOLVER, ())})


def matching_by(device: torch.device) -> str:
    """What solves the assignment on a device, in words."""
    if use_batched_solver(device):
        return f"{' and '.join(solver_distributions()) or _SOLVER} on the device"
    return f"SciPy on the CPU, up to {counted(num_threads(device), 'thread')}"


def num_threads(device: torch.device) -> int:
    """Threads that SciPy's solver may use: on a CPU as many as PyTorch, else this process's share of the cores."""
    if device.type == "cpu":
        return min(torch.get_num_threads(), _MOST_THREADS)
    return max(1, min(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1), _MOST_THREADS))


def solve_on_host(cost: Tensor, counts: Sequence[int], queries: Sequence[int], num_groups: int) -> np.ndarray:
    """`solve_scipy` of costs on any device: the one place of a pass in which the host waits for the device."""
    return solve_scipy(cost.cpu().numpy(), counts, queries, num_groups, num_threads(cost.device))


def solve_scipy(
    cost: np.ndarray, counts: Sequence[int], queries: Sequence[int], num_groups: int, threads: int = 1
) -> np.ndarray:
    """Solve all problems on the host.

    Args:
        cost: (N, sum of G*q over the layers) finite costs.
        counts: objects per image.
        queries: q of each layer.
        num_groups: G.
        threads: at most; SciPy's solver runs beside other threads. Little work gets one.

    Returns:
        (layers, N, G) int64: the query within its group, or -1 for an object that found none (there were more objects
        than queries).
    """
    columns = np.full((len(queries), len(cost), num_groups), -1, dtype=np.int64)
    object_ends = np.cumsum(counts)  # (B,)
    row_ends = np.cumsum([q * num_groups for q in queries])  # (layers,)
    problems = [
        (layer, end - n, cost[end - n : end, row_end - q * num_groups : row_end].reshape(n, num_groups, q))
        for layer, (q, row_end) in enumerate(zip(queries, row_ends, strict=True))
        for n, end in zip(counts, object_ends, strict=True)
        if n
    ]

    def solve(layer: int, first: int, block: np.ndarray) -> None:
        """The groups of one image and layer, (n, G, q)."""
        for group, own in enumerate(np.ascontiguousarray(block.transpose(1, 0, 2), dtype=np.float64)):
            picked, query = linear_sum_assignment(own)
            columns[layer, first + picked, group] = query

    alone = threads == 1 or cost.size < _THREADS_FROM
    list((map if alone else _pool(threads).map)(lambda problem: solve(*problem), problems))
    return columns


def solve_batched(cost: Tensor, objects: PackedObjects, queries: Sequence[int], num_groups: int) -> Tensor:
    """Solve all problems in one call on the device with `torch_linear_assignment` (extra `gpu`).

    Every problem is padded to one number of objects and of queries. Padding costs more than any pair: a padded object,
    which costs the same everywhere, changes no choice of the others, and a padded query goes to padded objects only. No
    problem may have more objects than queries. The cost matrix never leaves the device, but version 0.1.0 of the solver
    itself reads two flags back, and it solves in the type of the costs, where SciPy solves in float64.

    Args:
        cost: (N, sum of G*q over the layers) finite costs.
        objects: the objects of the batch.
        queries: q of each layer.
        num_groups: G.

    Returns:
        (layers, N, G) int64 on the device of `cost`: the query within its group.
    """
    solve = import_module(_SOLVER).batch_linear_assignment
    counts = objects.counts
    # The solver compiles one kernel per shape: powers of two keep the number of shapes small.
    slots = min(1 << (max(counts) - 1).bit_length(), min(queries))
    slot = to_device(np.concatenate([np.arange(n, dtype=np.int64) for n in counts]), cost.device)
    shape = (len(counts), slots, len(queries), num_groups, max(queries))  # (B, slots, layers, G, q)
    padded = (cost.amax() + 1).expand(shape).contiguous()
    for layer, block in enumerate(cost.split([q * num_groups for q in queries], dim=1)):
        padded[objects.image, slot, layer, :, : queries[layer]] = block.view(len(cost), num_groups, -1)
    problems = padded.permute(0, 2, 3, 1, 4).reshape(-1, slots, max(queries))  # (B * layers * G, slots, q)
    solved = solve(problems).view(len(counts), len(queries), num_groups, slots)
    # One row for each object, (N, layers, G), then the layers first.
    return solved[objects.image, :, :, slot].transpose(0, 1)


def _index_on_host(
    columns: np.ndarray, queries: Sequence[int], objects: PackedObjects, device: torch.device
) -> QueryMatches:
    layer, target, group = np.nonzero(columns >= 0)  # (M,) each, of columns (layers, N, G)
    query = columns[layer, target, group] + group * np.asarray(queries, dtype=np.int64)[layer]
    batch = np.repeat(np.arange(len(objects.counts)), objects.counts)[target]
    per_layer = np.bincount(layer, minlength=len(queries)).tolist()
    first, rows = _layout(columns.shape, objects, queries)
    row = first[layer] + batch * rows[layer] + query
    layer, batch, query, target, row = to_device(np.stack((layer, batch, query, target, row)), device)
    return QueryMatches(layer, batch, query, target, row, per_layer)


def _layout(shape: tuple[int, ...], objects: PackedObjects, queries: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of columns (layers, N, G): where each layer begins in the rows of all, and its rows for an image."""
    rows = np.asarray(queries, dtype=np.int64) * shape[2]
    ends = np.cumsum(rows * len(objects.counts))
    return ends - rows * len(objects.counts), rows


def _index_on_device(columns: Tensor, objects: PackedObjects, queries: Sequence[int]) -> QueryMatches:
    num_layers, num_objects, num_groups = columns.shape
    stride = to_device(np.asarray(queries, dtype=np.int64), columns.device)
    group = torch.arange(num_groups, device=columns.device)
    query = (columns + group * stride[:, None, None]).flatten()  # of (layers, N, G)
    layer = torch.arange(num_layers, device=columns.device)[:, None, None].expand_as(columns).flatten()
    target = torch.arange(num_objects, device=columns.device)[:, None].expand_as(columns).flatten()
    batch = objects.image[target]
    first, rows = to_device(np.stack(_layout(columns.shape, objects, queries)), columns.device)
    row = first[layer] + batch * rows[layer] + query
    return QueryMatches(layer, batch, query, target, row, [num_objects * num_groups] * num_layers)
