"""Time and peak memory of the segmentation loss: matching + terms + backward, beside the official package.

    python benchmarks/mask_loss.py --device cuda --batch-size 8 --objects 20

Predictions are random, of the shape of seg-small in training: factors of the masks of `--groups` x 100 rows in five
layers. Each way runs in a process of its own:

- `ours`: true masks at the size of the predicted ones, a quarter of the input;
- `ours, full`: true masks at the size of the input, as the official package gets them;
- `official`: its criterion, where `rfdetr` is installed.

Memory is what a step allocates besides predictions and true masks: what is kept for the backward pass, and the peak,
gradients included.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from rfdetr_hf.losses import LayerOutput, RFDETRCriterion
from rfdetr_hf.losses.masks import MaskFactors, MaskTerms
from rfdetr_hf.models.configuration_rfdetr import RFDETRConfig

VARIANT, NUM_LABELS = "seg-small", 6
WAYS = {"ours": 1, "ours, full": 4, "official": 4}  # side of the true masks in cells of the predicted ones


def make_batch(args: argparse.Namespace, truth_scale: int) -> tuple[list[LayerOutput], list[dict[str, Tensor]]]:
    """Random predictions and rectangular objects, the same in every process."""
    config = RFDETRConfig.from_variant(VARIANT)
    generator = torch.Generator().manual_seed(0)
    rows, side = args.groups * config.num_queries, config.resolution // config.mask_downsample_ratio

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(args.device).requires_grad_()

    def boxes(*shape: int) -> Tensor:
        centre, size = torch.rand(2, *shape, 2, generator=generator)
        return torch.cat((0.2 + 0.6 * centre, 0.05 + 0.3 * size), -1).to(args.device)

    layers = []
    for suffix in ("", *(f"_{index}" for index in range(config.decoder_layers - 1)), "_enc"):
        features = (0.1 * noise(args.batch_size, config.d_model, side, side)).detach().requires_grad_()
        masks = MaskFactors(features, noise(args.batch_size, rows, config.d_model), noise(1))
        logits, predicted = noise(args.batch_size, rows, NUM_LABELS), boxes(args.batch_size, rows).requires_grad_()
        layers.append(LayerOutput(suffix, logits, predicted, masks))
    targets = []
    grid = (torch.arange(side * truth_scale, device=args.device) + 0.5) / (side * truth_scale)
    for _ in range(args.batch_size):
        own = boxes(args.objects)
        x, y = ((grid - own[:, None, axis]).abs() < own[:, None, 2 + axis] / 2 for axis in (0, 1))
        labels = torch.randint(NUM_LABELS - 1, (args.objects,), generator=generator).to(args.device)
        targets.append({"class_labels": labels, "boxes": own, "masks": y[:, :, None] & x[:, None, :]})
    return layers, targets


def ours(args: argparse.Namespace) -> Callable[..., Tensor]:
    config = RFDETRConfig.from_variant(VARIANT, num_labels=NUM_LABELS)
    criterion = RFDETRCriterion(config, MaskTerms(config))
    return lambda layers, targets: criterion.weighted_sum(criterion(layers, targets, args.groups))


def official(args: argparse.Namespace) -> Callable[..., Tensor]:
    from rfdetr.config import RFDETRSegSmallConfig, SegmentationTrainConfig
    from rfdetr.models.lwdetr import build_criterion_from_config

    model_config = RFDETRSegSmallConfig(num_classes=NUM_LABELS - 1, group_detr=args.groups, device=args.device)
    criterion, _ = build_criterion_from_config(model_config, SegmentationTrainConfig(dataset_dir=".", output_dir="."))
    criterion.train()

    def named(layer: LayerOutput) -> dict[str, Any]:
        features, queries, bias, _ = layer.masks
        masks = {"spatial_features": features, "query_features": queries, "bias": bias}
        return {"pred_logits": layer.logits, "pred_boxes": layer.boxes, "pred_masks": masks}

    def loss(layers: list[LayerOutput], targets: list[dict[str, Tensor]]) -> Tensor:
        last, *auxiliary, encoder = map(named, layers)
        outputs = {**last, "aux_outputs": auxiliary, "enc_outputs": encoder}
        renamed = [{**target, "labels": target["class_labels"]} for target in targets]
        losses = criterion(outputs, renamed)
        return sum(losses[name] * weight for name, weight in criterion.weight_dict.items() if name in losses)

    return loss


def measure(way: str, args: argparse.Namespace) -> tuple[float, float, float, float]:
    """(loss, median seconds of a step, bytes kept for the backward pass, bytes at the peak)."""
    torch.set_num_threads(args.threads)
    loss_function = official(args) if way == "official" else ours(args)
    layers, targets = make_batch(args, WAYS[way])
    kept, peak = memory_of_a_step(lambda: loss_function(layers, targets), args.device)
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        loss = loss_function(layers, targets)
        loss.backward()
        value = loss.item()
        seconds.append(time.perf_counter() - start)
    return value, statistics.median(seconds), kept, peak


def memory_of_a_step(forward: Callable[[], Tensor], device: str) -> tuple[float, float]:
    """Bytes allocated after the forward pass, and at the peak of forward and backward pass."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        loss = forward()
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        return kept, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = forward()
        with record_function("backward starts"):
            pass
        loss.backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    kept = current = peak = 0
    for event in events:
        if event.name() == "backward starts":
            kept = current
        elif event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return kept, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    for name, default in (("batch-size", 2), ("objects", 10), ("groups", 13)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(f"{VARIANT}: {args.batch_size} images x {args.objects} objects, {args.device}")
    print(f"{'way':12}{'loss':>12}{'ms/step':>10}{'kept MB':>10}{'peak MB':>10}")
    for way in WAYS:
        if way == "official" and find_spec("rfdetr") is None:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            value, seconds, kept, peak = pool.apply(measure, (way, args))
        print(f"{way:12}{value:12.4f}{seconds * 1e3:10.1f}{kept / 1e6:10.1f}{peak / 1e6:10.1f}", flush=True)


if __name__ == "__main__":
    main()
