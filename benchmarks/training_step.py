"""Time and peak memory of a whole training step, from annotations to gradients, beside the official package.

    python benchmarks/training_step.py --variant seg-nano --batch-sizes 1 2 4 8 --objects 10 40
    python benchmarks/training_step.py --variant nano --batch-sizes 2 --objects 10 --compile

Both ways get the same images, outlines and weights, and make targets with their own data path, without crops and
flips: `ours` draws masks at half the size of the input, `official` at the size of the image, and resizes them to the
input. Each measurement runs in a process of its own, on the CPU, in float32. Without `rfdetr` there is `ours` alone.
`compiled` (`--compile`) is `ours` with the network compiled by inductor; compiling it takes minutes, which are printed.

Time is that of the processor, batch included. Memory is what is allocated besides weights and gradients, in MB:

- `data`: at the peak of making the batch, by tensors (torch's profiler) plus arrays (tracemalloc);
- `batch`, `masks`: the batch, and the true masks in it;
- `kept`: after the forward pass, for the backward pass;
- `loss`: what matching and loss add to it at most;
- `peak`: of the whole step, batch included.
"""

import argparse
import multiprocessing
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from rfdetr_hf import RFDETRConfig, RFDETRForInstanceSegmentation, RFDETRForObjectDetection
from rfdetr_hf.data.masks import mask_column
from rfdetr_hf.data.pipeline.collate import DetectionCollator
from rfdetr_hf.data.pipeline.pixels import prepare_pixels
from rfdetr_hf.data.pipeline.transforms import build_train_transform
from rfdetr_hf.data.pipeline.view import Sample
from rfdetr_hf.training.loaders import MASK_DOWNSAMPLE_RATIO

NUM_LABELS, CORNERS = 6, 30
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORWARD, LOSS, BACKWARD = PHASES = ("forward starts", "loss starts", "backward starts")


class Scene(NamedTuple):
    """An image and its objects: outlines (n, CORNERS, 2) in pixels, and labels."""

    image: Image.Image
    outlines: np.ndarray
    labels: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        return np.concatenate([self.outlines.min(axis=1), self.outlines.max(axis=1)], axis=1).astype(np.float32)


class Way(NamedTuple):
    """A package: how it makes a batch, the bytes of the batch and of its masks, and its loss."""

    make_batch: Callable[[], Any]
    tensors: Callable[[Any], Iterable[tuple[str, Tensor]]]
    loss: Callable[[Any], Tensor]
    model: torch.nn.Module


def make_scenes(args: argparse.Namespace, batch_size: int, objects: int) -> list[Scene]:
    """Star-shaped outlines on noise, the same in every process."""
    rng, (width, height) = np.random.default_rng(0), args.image_size
    scenes = []
    for _ in range(batch_size):
        angle = np.sort(rng.uniform(0, 2 * np.pi, (objects, CORNERS)), axis=1)
        radius = rng.uniform(8, 0.3 * height, (objects, 1)) * rng.uniform(0.5, 1, (objects, CORNERS))
        centre = rng.uniform(0.2, 0.8, (objects, 1, 2)) * (width, height)
        points = centre + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        scenes.append(Scene(image, points.clip(0, (width, height)), rng.integers(0, NUM_LABELS - 1, objects)))
    return scenes


def our_model(variant: str) -> RFDETRForObjectDetection:
    torch.manual_seed(0)
    config = RFDETRConfig.from_variant(variant, num_labels=NUM_LABELS)
    task = RFDETRForInstanceSegmentation if variant.startswith("seg-") else RFDETRForObjectDetection
    return task(config).train()


def ours(variant: str, scenes: Sequence[Scene]) -> Way:
    model = our_model(variant)
    masks = MASK_DOWNSAMPLE_RATIO if model.task == "segmentation" else None
    transform = build_train_transform(
        model.config.resolution, multi_scale="off", scale_jitter=False, horizontal_flip=0, mask_downsample_ratio=masks
    )
    collate, criterion = DetectionCollator(model.config.size_divisor), model.loss_function
    model.loss_function = _marked(criterion)

    def make_batch() -> dict[str, Any]:
        batch = collate([transform(our_sample(scene), np.random.default_rng(0)) for scene in scenes])
        return {"pixel_values": prepare_pixels(batch["pixel_values"], None, MEAN, STD)[0], "labels": batch["labels"]}

    def tensors(batch: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
        return [("pixels", batch["pixel_values"]), *batch["labels"].fields.items()]

    def loss(batch: dict[str, Any]) -> Tensor:
        return model(batch["pixel_values"], labels=batch["labels"].unpack()).loss

    return Way(make_batch, tensors, loss, model)


class _marked:
    """A criterion that tells the profiler when it starts."""

    def __init__(self, criterion: Any) -> None:
        self.criterion = criterion

    def __getattr__(self, name: str) -> Any:
        return getattr(self.criterion, name)

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        mark(LOSS)
        return self.criterion(*args)


def our_sample(scene: Scene) -> Sample:
    count, (width, height) = len(scene.labels), scene.image.size
    target = {
        "boxes": scene.boxes,
        "class_labels": scene.labels,
        "area": np.ones(count, np.float32),
        "iscrowd": np.zeros(count, bool),
        "segmentation": mask_column([[outline.ravel().tolist()] for outline in scene.outlines], height, width),
    }
    return Sample(scene.image, target, 0, (height, width))


def official(variant: str, scenes: Sequence[Scene]) -> Way:
    model, criterion, config = official_model(variant)
    make_batch = official_data(config, scenes)

    def tensors(batch: Any) -> Iterable[tuple[str, Tensor]]:
        fields = [item for target in batch[1] for item in target.items()]
        return [("pixels", batch[0].tensors), ("padding", batch[0].mask), *fields]

    def loss(batch: Any) -> Tensor:
        outputs = model(*batch)
        mark(LOSS)
        losses = criterion(outputs, batch[1])
        return sum(losses[term] * weight for term, weight in criterion.weight_dict.items() if term in losses)

    return Way(make_batch, tensors, loss, model)


def official_model(variant: str) -> tuple[torch.nn.Module, torch.nn.Module, Any]:
    """Its model with the weights of ours, its criterion and its configuration."""
    import rfdetr.config as configs
    from rfdetr.models.lwdetr import build_criterion_from_config, build_model_from_config

    name = "".join(part.title() for part in variant.split("-"))
    config = getattr(configs, f"RFDETR{name}Config")(num_classes=NUM_LABELS - 1, device="cpu")
    options = configs.SegmentationTrainConfig if config.segmentation_head else configs.TrainConfig
    options = options(dataset_dir=".", output_dir=".")
    model = build_model_from_config(config, options).train()
    missing, unexpected = model.load_state_dict(our_model(variant).state_dict(), strict=False)
    if unexpected or set(missing) & {name for name, _ in model.named_parameters()}:
        raise RuntimeError(f"the weights do not fit: {missing} are missing, {unexpected} are not known")
    return model, build_criterion_from_config(config, options)[0].train(), config


def official_data(config: Any, scenes: Sequence[Scene]) -> Callable[[], Any]:
    from rfdetr.datasets.coco import ConvertCoco, make_coco_transforms_square_div_64
    from rfdetr.utilities.tensors import make_collate_fn

    prepare = ConvertCoco(include_masks=config.segmentation_head)
    transform = make_coco_transforms_square_div_64("train", config.resolution, aug_config={}, scale_jitter=False)
    collate = make_collate_fn(block_size=config.patch_size * config.num_windows)
    return lambda: collate([transform(*prepare(scene.image, official_target(scene))) for scene in scenes])


def official_target(scene: Scene) -> dict[str, Any]:
    """As a COCO file says it."""
    annotations = [
        {
            "bbox": [*box[:2], *(box[2:] - box[:2])],
            "category_id": int(label),
            "area": 1.0,
            "segmentation": [outline.ravel().tolist()],
        }
        for box, label, outline in zip(scene.boxes, scene.labels, scene.outlines, strict=True)
    ]
    return {"image_id": 0, "annotations": annotations}


def mark(name: str) -> None:
    """An event for the profiler."""
    with record_function(name):
        pass


def allocations(function: Callable[[], Any]) -> tuple[Any, dict[str, int], dict[str, int]]:
    """The result, bytes held when each phase starts, and bytes at the peak of each phase ("" before the first)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    phase, current, held, peak = "", 0, {"": 0}, {"": 0}
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() in PHASES:
            phase = event.name()
            held[phase] = peak[phase] = current
        elif event.name() == "[memory]":
            current += event.nbytes()
            peak[phase] = max(peak[phase], current)
    return result, held, peak


def memory_of_data(way: Way) -> int:
    """Bytes of tensors plus bytes of arrays at the peaks of making a batch; the two need not coincide."""
    way.make_batch()
    tracemalloc.start()
    way.make_batch()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return arrays + allocations(way.make_batch)[2][""]


def step(way: Way, batch: Any) -> float:
    mark(FORWARD)
    loss = way.loss(batch)
    mark(BACKWARD)
    loss.backward()
    return loss.item()


def measure(name: str, args: argparse.Namespace, batch_size: int, objects: int) -> dict[str, float]:
    """The columns of a row."""
    torch.set_num_threads(args.threads)
    way = WAYS[name](args.variant, make_scenes(args, batch_size, objects))
    for parameter in way.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    data, batch = memory_of_data(way), way.make_batch()
    started = time.perf_counter()
    if name == "compiled":
        step(way, way.make_batch())
    compilation = time.perf_counter() - started
    size = sum(tensor.nbytes for _, tensor in way.tensors(batch))
    masks = sum(tensor.nbytes for field, tensor in way.tensors(batch) if field == "masks")
    torch.manual_seed(0)
    loss, held, peak = allocations(lambda: step(way, batch))
    seconds = [_seconds(lambda: step(way, way.make_batch())) for _ in range(args.steps)]
    memory = {"data": data, "batch": size, "masks": masks, "kept": held[LOSS], "loss": peak[LOSS] - held[LOSS]}
    memory["peak"] = max(data, size + max(peak.values()))
    columns = {column: value / 1e6 for column, value in memory.items()}
    seconds = statistics.median(seconds) if seconds else float("nan")
    return {"value": loss, "seconds": seconds, "compilation": compilation, **columns}


def _seconds(function: Callable[[], Any]) -> float:
    """Of the processor: what else runs on the machine matters less."""
    started = time.process_time()
    function()
    return time.process_time() - started


def compiled(variant: str, scenes: Sequence[Scene]) -> Way:
    way = ours(variant, scenes)
    way.model.compile_network()
    return way


WAYS = {"ours": ours, "compiled": compiled, "official": official}
COLUMNS = ("data", "batch", "masks", "kept", "loss", "peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="seg-nano")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument("--objects", type=int, nargs="+", default=(10, 40), help="per image")
    parser.add_argument("--image-size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=3, help="that are timed; 0 for memory alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also with a compiled network")
    args = parser.parse_args()
    absent = {"official": not find_spec("rfdetr"), "compiled": not args.compile}
    ways = [way for way in WAYS if not absent.get(way)]
    print(f"{args.variant}, images of {args.image_size[0]} x {args.image_size[1]}; sizes in MB")
    print(f"{'images x objects':18}{'way':10}{'loss':>9}{'cpu s':>8}", *(f"{column:>7}" for column in COLUMNS))
    for batch_size in args.batch_sizes:
        for objects in args.objects:
            print_rows(args, ways, batch_size, objects)


def print_rows(args: argparse.Namespace, ways: Sequence[str], batch_size: int, objects: int) -> None:
    """A row for each way, and for each after the first one with its ratios to that."""
    first: dict[str, float] = {}
    for way in ways:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (way, args, batch_size, objects))
        sizes = (f"{row[column]:7.1f}" for column in COLUMNS)
        compilation = f"  compiled in {row['compilation']:.0f} s" if way == "compiled" else ""
        name = f"{batch_size} x {objects}"
        print(f"{name:18}{way:10}{row['value']:9.3f}{row['seconds']:8.2f}", *sizes, compilation, flush=True)
        if first:
            ratio = {key: row[key] / first[key] if first[key] else float("nan") for key in row}
            sizes = (f"{ratio[column]:7.2f}" for column in COLUMNS)
            print(f"{'':18}{'ratio':10}{'':9}{ratio['seconds']:8.2f}", *sizes, flush=True)
        first = first or row


if __name__ == "__main__":
    main()
