"""`per_device_train_batch_size: auto`: the largest micro-batch that the memory of every process holds."""

import gc
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..arguments.training import RFDETRTrainingArguments
from ..choices import counted
from ..data.pipeline.collate import PackedTargets
from ..data.pipeline.picture_cache import free_memory
from ..data.pipeline.presets import read_augmentation
from ..data.pipeline.transforms import MAX_SIZE, fit_shortest_edge
from ..data.schema import class_names, has_keypoints, has_masks, has_unlabelled_classes, keypoint_schema, usual_most
from ..data.shards.dataset import ShardedDataset
from .checkpoint.contents import PROGRESS, read_content
from .checkpoint.directory import rng_state, set_rng_state
from .checkpoint.reading import CheckpointFiles
from .console import memory_size
from .loaders import MASK_DOWNSAMPLE_RATIO
from .parallel import Parallel

logger = logging.getLogger(__name__)

# Of the memory that is free before the run. A CPU's is also that of workers, evaluations and everything else.
SHARES = {"cuda": 0.9, "cpu": 0.5}
MOST = 0.99  # of the images have no more objects than those of the probe
_AUTO = "per_device_train_batch_size=auto"


class Workload(NamedTuple):
    """The heaviest micro-batches that a run usually has.

    Attributes:
        height, width: of their images, in pixels.
        objects: of each image.
        masks: side of their masks, where the data has them.
    """

    height: int
    width: int
    objects: int
    masks: int


class Probed(NamedTuple):
    """What a probe found: the images of a micro-batch, the bytes that they need, and those that may be used."""

    batch_size: int
    needed: int
    limit: int


class MemoryMeter(TorchDispatchMode):
    """Within it, the most bytes of tensors at any time, in `peak`, beside those that exist when it is made.

    Args:
        present: tensors that exist already, and of which there may be views.
    """

    def __init__(self, present: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in present}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it allocates."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if size and key not in self._known:
                self._count(key, size)
                weakref.finalize(storage, self._count, key, -size)
        return result

    def _count(self, key: int, size: int) -> None:
        """A storage is there, or, with a size below zero, no longer."""
        (self._known.add if size > 0 else self._known.discard)(key)
        self.live += size
        self.peak = max(self.peak, self.live)


def settle_batch(args: RFDETRTrainingArguments, parallel: Parallel) -> None:
    """Let `gradient_accumulation_steps` follow from `total_train_batch_size`, where both batch sizes are numbers.

    Args:
        args: of a run, changed in place.
        parallel: of the run.

    Raises:
        ValueError: the numbers contradict each other, or `auto` cannot know what this launch or device needs.
    """
    processes, total = parallel.accelerator.num_processes, args.images_per_step
    if args.is_automatic_batch:
        device = parallel.accelerator.device.type
        if parallel.name != "replicated" or device not in SHARES:
            where = f"under {parallel.name}" if parallel.name != "replicated" else f"on {device}"
            raise ValueError(
                f"{_AUTO} cannot know what a step needs {where}; it is for one process and data parallelism, on CUDA "
                "or a CPU: give a number"
            )
        _share(int(total or 0), processes)
    elif total is not None:
        given, together = args.gradient_accumulation_steps, args.train_batch_size * processes
        if total % together or given not in (None, total // together):
            accumulated = "" if given is None else f" x gradient_accumulation_steps={given}"
            rule = "are not" if accumulated else "do not divide"
            raise ValueError(
                f"per_device_train_batch_size={args.train_batch_size}{accumulated} x {processes} "
                f"process{'es' * (processes > 1)} {rule} total_train_batch_size={total}; change one of them, or leave "
                f"{'gradient_accumulation_steps or ' if accumulated else ''}total_train_batch_size out"
            )
        if given is None:
            args._derive("gradient_accumulation_steps", total // together)


def keep_batch(args: RFDETRTrainingArguments, checkpoint: Path, processes: int) -> None:
    """Take the batch sizes of a checkpoint in place of `auto`.

    On another number of processes the step stays what it was, and a micro-batch is not larger.

    Args:
        args: of the run that goes on, changed in place.
        checkpoint: its folder.
        processes: of the run.

    Raises:
        ValueError: the step of the checkpoint is another one than that of the arguments, or cannot be shared.
    """
    written = read_content(CheckpointFiles(checkpoint), PROGRESS)
    total, before = int(written["images_per_step"]), int(written["arguments"]["per_device_train_batch_size"])
    if args.total_train_batch_size not in (None, total):
        raise ValueError(
            f"{checkpoint} was written with {counted(total, 'image')} in an optimizer step, and this run has "
            f"total_train_batch_size={args.total_train_batch_size}; leave it out, or start a new run from its weights"
        )
    share = _share(total, processes)
    _set(args, next(n for n in _divisors(share) if n <= before), share, total)
    logger.info("%s: %s, by the checkpoint", _AUTO, _in_words(args, processes))


def decide_batch(
    args: RFDETRTrainingArguments,
    dataset: Any,
    scales: Sequence[int],
    parallel: Parallel,
    loss_of: Callable[[dict[str, Any]], Tensor],
) -> None:
    """Probe which micro-batches fit, and write what all processes can hold into the arguments. All must call it.

    Weights, gradients, buffers, modes and random numbers are afterwards what they were.

    Args:
        args: of the run, changed in place.
        dataset: of the training.
        scales: see `compute_scales`.
        parallel: of the run; its model is on the device, and not prepared.
        loss_of: of a batch as a loader gives it.

    Raises:
        OutOfMemoryError: not even one image fits.
        ValueError: the data does not say how many objects there are.
    """
    processes, total = parallel.accelerator.num_processes, int(args.images_per_step or 0)
    share = _share(total, processes)
    with parallel.together():
        work = heaviest(args, dataset, scales, parallel.model.config)
        probed = _probe(parallel, share, lambda images: loss_of(make_batch(dataset, work, images)), work)
    own = parallel.accelerator.process_index
    found = parallel.sum_on_hosts(*(probed.batch_size * (rank == own) for rank in range(processes)))
    _set(args, int(min(found)), share, total)
    if parallel.accelerator.is_main_process:
        logger.info(
            "%s: %s; %s of %d x %d pixels with %s %s of the %s that may be used", _AUTO,
            _in_words(args, processes), counted(probed.batch_size, "image"), work.height, work.width,
            counted(work.objects, "object") + (" needs" if probed.batch_size == 1 else " need"),
            memory_size(probed.needed), memory_size(probed.limit),
        )  # fmt: skip


def heaviest(args: RFDETRTrainingArguments, dataset: Any, scales: Sequence[int], config: Any) -> Workload:
    """The largest images of a run, with as many objects as 99 % of the images have at most.

    Crowds are left out and images without objects count, each image as often as it is drawn. What mosaic, mixup and
    copy-paste add is added.

    Args:
        args, dataset, scales: see `decide_batch`.
        config: of the model.

    Raises:
        ValueError: nobody has counted the objects.
    """
    objects = usual_most(dataset, MOST)
    if objects is None:
        raise ValueError(
            f"{_AUTO} needs the number of objects of an image, which the index of these shards does not have; give a "
            "number"
        )
    members = read_augmentation(args.augmentation)
    joined = objects * ((4 if "mosaic" in members else 1) + ("mixup" in members))
    joined += int(members["copy_paste"]["max_objects"]) if "copy_paste" in members else 0
    side = config.resolution if args.multi_scale == "off" else max(scales)
    height = width = side
    if not args.square_resize:
        # A batch is as high and as wide as its highest and its widest image.
        divisor, fitted = config.size_divisor, [(MAX_SIZE, MAX_SIZE)]
        if not isinstance(dataset, ShardedDataset):
            sizes = np.stack([dataset.data.column(name).to_numpy() for name in ("height", "width")], 1)
            fitted = [fit_shortest_edge(int(h), int(w), side, MAX_SIZE) for h, w in np.unique(sizes, axis=0)]
        height, width = (-(-max(side, *found) // divisor) * divisor for found in zip(*fitted, strict=True))
    return Workload(height, width, max(joined, 1), -(-side // MASK_DOWNSAMPLE_RATIO))


def make_batch(dataset: Any, work: Workload, images: int) -> dict[str, Any]:
    """A batch of made-up images and objects, with all that the loader of a data set gives; on the host."""
    objects, (height, width) = images * work.objects, work[:2]
    pixels = torch.arange(images * 3 * height * width, dtype=torch.int32).remainder(251).to(torch.uint8)
    places = torch.linspace(0.2, 0.8, objects)
    fields = {
        "image_id": torch.arange(images),
        "orig_size": torch.tensor([[height, width]] * images),
        "size": torch.tensor([[height, width]] * images),
        "class_labels": torch.zeros(objects, dtype=torch.int64),
        "boxes": torch.stack([places, places.flip(0), places / 4, places / 4], 1),
        "area": torch.full((objects,), 1024.0),
        "iscrowd": torch.zeros(objects, dtype=torch.bool),
    }
    if has_masks(dataset):
        fields["masks"] = torch.ones(objects, work.masks, work.masks, dtype=torch.bool)
    if has_keypoints(dataset):
        fields["keypoints"] = torch.full((objects, keypoint_schema(dataset).num_keypoints, 3), 0.5)
        fields["keypoints"][..., 2] = 2
    if has_unlabelled_classes(dataset):
        fields["labelled_classes"] = torch.ones(images, len(class_names(dataset)), dtype=torch.bool)
    batch = {"pixel_values": pixels.view(images, 3, height, width)}
    if height != width:
        batch["pixel_mask"] = torch.ones(images, height, width, dtype=torch.bool)
    return batch | {"labels": PackedTargets(fields, [work.objects] * images)}


def _probe(parallel: Parallel, share: int, loss_of: Callable[[int], Tensor], work: Workload) -> Probed:
    """The largest divisor of this process's share of a step that fits."""
    model, device = parallel.model, parallel.accelerator.device
    trained = sum(each.nbytes for each in model.parameters() if each.requires_grad)
    everything = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    beside = 2 * trained + (everything if parallel.args.use_ema else 0)  # AdamW's moments, and the average
    with _untouched(model):
        model.train()
        if device.type == "cpu":
            probed = _on_cpu(model, share, loss_of, trained, beside)
        else:
            probed = largest_that_fits(_divisors(share), lambda n: _on_device(model, device, n, loss_of, beside))
    release(device)
    if probed.batch_size == 0:
        one = f"one image of {work.height} x {work.width} pixels with {counted(work.objects, 'object')}"
        needs = f"needs {memory_size(probed.needed)}, and {memory_size(probed.limit)} may be used"
        raise torch.OutOfMemoryError(f"{_AUTO}: {one} {needs if probed.needed else 'does not fit'}")
    return probed


def largest_that_fits(sizes: Sequence[int], attempt: Callable[[int], Probed]) -> Probed:
    """The first of some batch sizes, which descend, whose attempt neither runs out of memory nor needs too much.

    Args:
        sizes: to try.
        attempt: tries one, and says what it needs; it may raise `torch.OutOfMemoryError`.

    Returns:
        What fits; with batch size 0 where nothing does.
    """
    last = Probed(0, 0, 0)
    for size in sizes:
        try:
            probed = attempt(size)
        except torch.OutOfMemoryError:
            probed = last._replace(needed=0)
        # From here on the error is gone, whose traceback holds the tensors of the failed attempt.
        if probed.needed and probed.needed <= probed.limit:
            return probed
        last = probed
    return last._replace(batch_size=0)


def _on_cpu(model: nn.Module, share: int, loss_of: Callable[[int], Tensor], gradients: int, beside: int) -> Probed:
    """By one image, whose tensors are counted: no attempt may use up the memory of the machine.

    What is there once for a batch is counted for each image, so that no batch needs more than this.
    """
    free = free_memory() or psutil.virtual_memory().available
    limit = int(SHARES["cpu"] * free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with MemoryMeter([*model.parameters(), *model.buffers()]) as meter:
        _run(model, loss_of, 1)
    of_one, once = meter.peak - gradients, gradients + beside
    return largest_that_fits(_divisors(share), lambda n: Probed(n, once + n * of_one, limit))


def _on_device(
    model: nn.Module, device: torch.device, images: int, loss_of: Callable[[int], Tensor], beside: int
) -> Probed:
    """A forward and a backward pass on a GPU, with the memory of gradients, optimizer and average taken."""
    release(device)
    limit = int(SHARES["cuda"] * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)))
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.empty(beside, dtype=torch.uint8, device=device)
    _run(model, loss_of, images)
    torch.cuda.synchronize(device)
    del held
    return Probed(images, torch.cuda.max_memory_reserved(device), limit)


def _run(model: nn.Module, loss_of: Callable[[int], Tensor], images: int) -> None:
    """A micro-batch that is not the first of its step: there are gradients already."""
    trained = [each for each in model.parameters() if each.requires_grad]
    try:
        with torch.no_grad():
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        loss_of(images).backward()
    finally:
        for parameter in trained:
            parameter.grad = None


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """After it, gradients, buffers, modes and random numbers are what they were before."""
    generators = rng_state()
    gradients = [(each, each.grad) for each in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
        for module, name, buffer, value, version in buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
            module._buffers[name] = buffer
        set_rng_state(generators)


def release(device: torch.device) -> None:
    """Give back what no tensor of this process uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _share(total: int, processes: int) -> int:
    if total % processes:
        raise ValueError(
            f"total_train_batch_size={total} is not a multiple of {processes} processes; give one, such as "
            f"{max(round(total / processes), 1) * processes}"
        )
    return total // processes


def _divisors(number: int) -> list[int]:
    """From the number down to 1."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def _set(args: RFDETRTrainingArguments, batch_size: int, share: int, total: int) -> None:
    args.per_device_train_batch_size, args.gradient_accumulation_steps = batch_size, share // batch_size
    args.total_train_batch_size = total


def _in_words(args: RFDETRTrainingArguments, processes: int) -> str:
    return (
        f"{counted(args.train_batch_size, 'image')} a device x "
        f"gradient_accumulation_steps={args.gradient_accumulation_steps} x {counted(processes, 'process')} = "
        f"total_train_batch_size={args.total_train_batch_size}"
    )
