"""What a run says of itself before its first step."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset

from ..arguments.training import RFDETRTrainingArguments
from ..choices import counted, printable
from ..data.audit import count_split
from ..losses.matcher import matching_by
from ..models.configuration_rfdetr import RFDETRConfig
from .checkpoint.optimizer import INITIAL
from .checkpoint.weights import Weights
from .console import memory_size
from .optimization import BY_ARGUMENTS
from .parallel import Parallel
from .record import SPLITS
from .state import RunState

_CLASSES_SHOWN = 10


def startup_lines(
    args: RFDETRTrainingArguments,
    state: RunState,
    accelerator: Accelerator,
    parallel: Parallel,
    weights: Weights,
    splits: Mapping[str, Dataset],
    scheduler: Any,
) -> list[str]:
    """Device, model, data, batch, steps, learning rates, memory and files of a run, a line each.

    Args:
        args: of the run.
        state: planned, and taken up from a checkpoint where the run resumes.
        accelerator: of the run.
        parallel: of the run, prepared.
        weights: of the run.
        splits: the data sets by name; all are counted from their annotations.
        scheduler: of the learning rates.
    """
    processes, accumulation = accelerator.num_processes, args.micro_batches
    batch, images = args.train_batch_size, state.identity["images_per_step"]
    resumed = f"of the checkpoint at step {state.global_step}; began with " if state.global_step else ""
    workers = args.loader_workers
    epochs = state.max_steps / state.steps_per_epoch
    warmup = f", warm-up {counted(args.warmup_steps, 'step')}" if args.warmup_steps else ""
    warmup += f", warm-up {counted(args.warmup_epochs, 'epoch')}" if args.warmup_epochs else ""
    schedule = f"{args.lr_scheduler_type}{warmup}" if scheduler in BY_ARGUMENTS else type(scheduler).__name__
    rows = {
        "device": _device(args, accelerator, parallel),
        "model": _model(parallel.model, weights),
        "weights": resumed + (parallel.model.weights_from or "random (no checkpoint was loaded)"),
        "data": _data(splits),
        "batch": f"{counted(images, 'image')} a step = {batch} on a device x {counted(accumulation, 'micro-batch')} x "
        + f"{counted(processes, 'process')}, loaded by "
        + (counted(workers, "worker") if workers else "the process"),
        "steps": f"{state.steps_per_epoch} an epoch, {state.max_steps} in all ({counted(round(epochs, 2), 'epoch')})",
        "lr": f"{_rates(parallel.optimizer)}; schedule {schedule}",
        "memory": _memory(parallel, weights),
        "output": _output(args, weights, state.best.metric),
        "log": "loss is that of the step, avg the mean since the last line, which is the sum of the weighted terms",
    }
    return [f"{name:<8} {text}" for name, text in rows.items()]


def _device(args: RFDETRTrainingArguments, accelerator: Accelerator, parallel: Parallel) -> str:
    device = accelerator.device
    name = f"cpu ({counted(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(device)} ({device}, {memory:.0f} GB)"
    several = f", {accelerator.num_processes} processes ({parallel.name})" if accelerator.num_processes > 1 else ""
    computed = "float32" if args.mixed_precision == "no" else f"{args.mixed_precision} autocast, weights float32"
    return f"{name}{several}; {computed}; matching by {matching_by(device)}"


def _model(model: Any, weights: Weights) -> str:
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    side = model.config.resolution
    names = _variants(model.config, model.task)
    variant = f" ({' or '.join(names)})" if names else ""
    parameters = f"{weights.num_parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained"
    return f"{weights.model_class.__name__}{variant}, {parameters}, {side} x {side} pixels"


def _variants(config: Any, task: str) -> list[str]:
    """The published variants with these sizes; of several, which differ in the resolution alone, that of this one."""

    def sizes(config: Any) -> tuple[Any, ...]:
        encoder = config.backbone_config
        of_encoder = encoder.hidden_size, encoder.num_hidden_layers, encoder.patch_size, encoder.num_windows
        return config.d_model, config.decoder_layers, config.num_queries, *of_encoder

    variants = [(name, row) for name, row in RFDETRConfig.variants().items() if row.task == task]
    found = {name: row for name, row in variants if sizes(RFDETRConfig.from_variant(name)) == sizes(config)}
    exact = [name for name, row in found.items() if row.resolution == config.resolution]
    return exact or list(found)


def _data(splits: Mapping[str, Dataset]) -> str:
    parts, names = [], []
    for split, dataset in splits.items():
        report = count_split(dataset, split)
        names = list(report.boxes_per_class)
        background = 100 * report.num_empty_images / max(report.num_images, 1)
        known = f"{counted(report.num_boxes, 'box')}, {background:.0f}% background"
        known = known if report.counted else "objects not counted"
        name = SPLITS.get(split, split.removesuffix("_dataset"))
        parts.append(f"{name} {counted(report.num_images, 'image')}, {known}")
    more = f", ... ({len(names) - _CLASSES_SHOWN} more)" if len(names) > _CLASSES_SHOWN else ""
    return (
        f"{'; '.join(parts)}; {counted(len(names), 'class')}: {', '.join(map(printable, names[:_CLASSES_SHOWN]))}{more}"
    )


def _rates(optimizer: Any) -> str:
    """The full learning rate of each part of the model, before the schedule."""
    rates: dict[str, list[float]] = {}
    for group in optimizer.param_groups:
        part = str(group.get("name", "given optimizer")).split(".")[0]
        rates.setdefault(part, []).append(group.get("initial_lr", group["lr"]))
    shown = {part: [f"{rate:.1e}" for rate in dict.fromkeys((min(found), max(found)))] for part, found in rates.items()}
    return ", ".join(f"{part} {' to '.join(ends)}" for part, ends in shown.items())


def _memory(parallel: Parallel, weights: Weights) -> str:
    """Four bytes for each weight and its EMA; of each trained one, four for the gradient and eight for Adam."""
    _, size = weights.sizes()
    trained = 4 * sum(each.numel() for each in parallel.model.parameters() if each.requires_grad)
    kind = parallel.optimizer.param_groups[0].get(INITIAL, {}).get("class", "AdamW")
    parts = {"weights": size, "gradients": trained} | ({kind: 2 * trained} if kind in ("Adam", "AdamW") else {})
    parts |= {"EMA": size} if weights.average is not None else {}
    listed = " + ".join(f"{name} {memory_size(value)}" for name, value in parts.items())
    left = "" if kind in parts else f"what {kind} keeps, and "
    shared = "" if parallel.name == "replicated" else f", shared by {parallel.accelerator.num_processes} processes"
    return (
        f"{memory_size(sum(parts.values()))} = {listed}{shared}; not counted: {left}activations, which grow with batch "
        "and resolution and are the larger part of most runs"
    )


def _output(args: RFDETRTrainingArguments, weights: Weights, metric: str) -> str:
    checkpoint, model = weights.sizes()
    when = {
        "no": "no checkpoints",
        "steps": f"a checkpoint every {counted(args.save_steps, 'step')}",
        "best": "a checkpoint at each best score",
        "epoch": "a checkpoint at each epoch",
    }[args.save_strategy]
    kept = "" if args.save_strategy == "no" else f" ({memory_size(checkpoint)}, {args.save_total_limit or 'all'} kept)"
    best = f"best/ by {metric}" if args.eval_strategy != "no" else "no best/ without evaluations"
    last = f"last/ ({memory_size(model)})"
    return f"{os.path.abspath(args.output_dir)}: {when}{kept}, {best}, {last}, metrics.csv, train.log"
