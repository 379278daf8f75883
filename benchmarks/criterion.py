"""Time and peak memory of matching + loss + backward, beside three other ways to compute the same terms.

    python benchmarks/criterion.py --device cuda --batch-size 16 --objects 20
    python benchmarks/criterion.py --batch-size 16 --objects 20 100 300 --ways ours rfdetr transformers

The predictions are random, of the shape that RF-DETR gives in training: `--layers` supervised layers of `--groups` x
`--queries` rows. Four ways, each in a process of its own:

- `ours`: `rfdetr_hf.losses.RFDETRCriterion`;
- `plain`: layer by layer, the cost of every row with the objects of all images, one SciPy call per image and group, and
  the loss formulas spelled out in autograd operations;
- `rfdetr`: the criterion of the official package, where it is installed;
- `transformers`: the loss of its `RfDetrForObjectDetection`.

Time is that of the processor, on CUDA that of the clock. Memory is what the steps add to the predictions, gradients
included: the peak of the allocator on CUDA, the growth of the peak resident size on the CPU.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from rfdetr_hf.losses import LayerOutput, RFDETRCriterion


def make_batch(args: argparse.Namespace) -> tuple[list[LayerOutput], list[dict[str, Tensor]]]:
    """Random predictions and targets, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        centre, size = torch.rand(2, *shape, 2, generator=generator)
        return torch.cat((0.2 + 0.6 * centre, 0.05 + 0.3 * size), -1).to(args.device)

    shape = (args.batch_size, args.groups * args.queries)
    layers = []
    for suffix in ("", *(f"_{index}" for index in range(args.layers - 2)), "_enc"):
        logits = (torch.randn(*shape, args.classes, generator=generator) - 3).to(args.device)
        layers.append(LayerOutput(suffix, logits.requires_grad_(), boxes(*shape).requires_grad_()))
    targets = [
        {
            "class_labels": torch.randint(args.classes, (args.objects,), generator=generator).to(args.device),
            "boxes": boxes(args.objects),
        }
        for _ in range(args.batch_size)
    ]
    return layers, targets


def make_config(args: argparse.Namespace) -> SimpleNamespace:
    return SimpleNamespace(
        class_cost=2,
        bbox_cost=5,
        giou_cost=2,
        class_loss_coefficient=1,
        bbox_loss_coefficient=5,
        giou_loss_coefficient=2,
        focal_alpha=0.25,
        auxiliary_loss=True,
        decoder_layers=args.layers - 1,
        group_detr=args.groups,
        num_labels=args.classes,
    )


def ours(config: SimpleNamespace) -> Callable[..., Tensor]:
    criterion = RFDETRCriterion(config)
    return lambda layers, targets: criterion.weighted_sum(criterion(layers, targets, config.group_detr))


def plain(config: SimpleNamespace) -> Callable[..., Tensor]:
    def loss(layers: list[LayerOutput], targets: list[dict[str, Tensor]]) -> Tensor:
        num_boxes = sum(len(target["boxes"]) for target in targets) * config.group_detr
        return (
            sum(
                plain_layer_loss(o.logits, o.boxes, targets, plain_match(o.logits, o.boxes, targets, config.group_detr))
                for o in layers
            )
            / num_boxes
        )

    return loss


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of (..., 4) boxes."""
    centre, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of two broadcastable arrays of corners (..., 4)."""
    gap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    sides1, sides2 = first[..., 2:] - first[..., :2], second[..., 2:] - second[..., :2]
    intersection, area = gap.clamp(min=0).prod(-1), (sides1 + sides2 - gap).prod(-1)
    union = sides1.prod(-1) + sides2.prod(-1) - intersection
    iou = intersection / union.clamp(min=1e-7)
    return iou, iou - (area - union) / area.clamp(min=1e-7)


@torch.no_grad()
def plain_match(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], groups: int) -> list[Tensor]:
    """[image, row, object of the whole batch] of one layer, by the cost of all rows with the objects of all images."""
    counts = [len(target["boxes"]) for target in targets]
    wanted = torch.cat([target["boxes"] for target in targets])
    p = logits.flatten(0, 1).sigmoid()
    positive = -0.25 * (1 - p) ** 2 * F.logsigmoid(logits.flatten(0, 1))
    negative = -0.75 * p**2 * F.logsigmoid(-logits.flatten(0, 1))
    cost = 2 * (positive - negative)[:, torch.cat([target["class_labels"] for target in targets])]
    cost += 5 * torch.cdist(boxes.flatten(0, 1), wanted, p=1)
    cost -= 2 * iou_and_giou(cxcywh_to_xyxy(boxes.flatten(0, 1))[:, None], cxcywh_to_xyxy(wanted))[1]
    found, queries = [], logits.shape[1] // groups
    per_image = cost.view(*logits.shape[:2], -1).cpu().split(counts, dim=-1)
    for image, block in enumerate(per_image):
        for group in range(groups):
            row, column = linear_sum_assignment(block[image, group * queries : (group + 1) * queries])
            first = sum(counts[:image])
            found += [(image, r + group * queries, c + first) for r, c in zip(row, column, strict=True)]
    return list(torch.tensor(found, device=logits.device).T)


def plain_layer_loss(logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], found: list[Tensor]) -> Tensor:
    image, row, index = found
    label = torch.cat([target["class_labels"] for target in targets])[index]
    wanted = torch.cat([target["boxes"] for target in targets])[index]
    predicted = boxes[image, row]
    iou, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
    p = logits.sigmoid()
    t = (p[image, row, label] ** 0.25 * iou**0.75).clamp(min=0.01).detach()
    positive, negative = torch.zeros_like(logits), p**2
    positive[image, row, label] = t
    negative[image, row, label] = 1 - t
    loss_ce = (negative * logits - F.logsigmoid(logits) * (positive + negative)).sum()
    return loss_ce + 5 * (predicted - wanted).abs().sum() + 2 * (1 - giou).sum()


def transformers(config: SimpleNamespace) -> Callable[..., Tensor]:
    from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss

    def loss(layers: list[LayerOutput], targets: list[dict[str, Tensor]]) -> Tensor:
        last, *auxiliary, encoder = layers
        decoder = [*auxiliary, last]
        return LwDetrForObjectDetectionLoss(
            last.logits,
            targets,
            last.logits.device,
            last.boxes,
            config,
            torch.stack([output.logits for output in decoder]),
            torch.stack([output.boxes for output in decoder]),
            encoder.logits,
            encoder.boxes,
        )[0]

    return loss


def rfdetr(config: SimpleNamespace) -> Callable[..., Tensor]:
    from rfdetr.config import RFDETRNanoConfig, TrainConfig
    from rfdetr.models.lwdetr import build_criterion_from_config

    sizes = {"dec_layers": config.decoder_layers, "group_detr": config.group_detr}
    model = RFDETRNanoConfig(num_classes=config.num_labels - 1, device="cpu", **sizes)
    criterion = build_criterion_from_config(model, TrainConfig(dataset_dir=".", output_dir="."))[0].train()

    def loss(layers: list[LayerOutput], targets: list[dict[str, Tensor]]) -> Tensor:
        last, *auxiliary, encoder = [{"pred_logits": layer.logits, "pred_boxes": layer.boxes} for layer in layers]
        outputs = {**last, "aux_outputs": auxiliary, "enc_outputs": encoder}
        named = [{"labels": target["class_labels"], "boxes": target["boxes"]} for target in targets]
        losses = criterion(outputs, named)
        return sum(losses[term] * weight for term, weight in criterion.weight_dict.items() if term in losses)

    return loss


WAYS = {"ours": ours, "plain": plain, "rfdetr": rfdetr, "transformers": transformers}


def peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """(loss, median seconds of a step, bytes added at the peak)."""
    torch.set_num_threads(args.threads)
    layers, targets = make_batch(args)
    loss_function = WAYS[way](make_config(args))
    before, seconds = peak_memory(args.device), []
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    for _ in range(args.steps + 1):
        start = clock()
        loss = loss_function(layers, targets)
        loss.backward()
        value = loss.item()
        seconds.append(clock() - start)
        for output in layers:
            output.logits.grad = output.boxes.grad = None
    return value, statistics.median(seconds[1:]), peak_memory(args.device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    installed = [way for way in WAYS if way != "rfdetr" or find_spec("rfdetr")]
    parser.add_argument("--ways", nargs="+", default=installed, choices=installed)
    parser.add_argument("--objects", type=int, nargs="+", default=[10], help="per image")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    for name, default in (("batch-size", 4), ("layers", 3), ("groups", 13), ("queries", 300), ("classes", 80)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for objects in args.objects:
        print_table(argparse.Namespace(**{**vars(args), "objects": objects}))


def print_table(args: argparse.Namespace) -> None:
    """A row for each way."""
    print(f"{args.batch_size} images x {args.objects} objects, {args.layers} layers, {args.device}")
    print(f"{'way':14}{'loss':>14}{'ms/step':>10}{'x first':>8}{'peak MB':>10}{'x first':>8}")
    base = None
    for way in args.ways:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            value, seconds, memory = pool.apply(measure, (way, args))
        base = base or (seconds, max(memory, 1))
        print(
            f"{way:14}{value:14.5f}{seconds * 1e3:10.1f}{seconds / base[0]:8.2f}"
            f"{memory / 1e6:10.1f}{memory / base[1]:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
