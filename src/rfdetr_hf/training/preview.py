"""The first images of a training as the model will see them, without a model."""

import os
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedConfig

from ..arguments.training import RFDETRTrainingArguments
from .loaders import build_train_loader
from .multi_scale import compute_scales, scale_for_step
from .pictures import draw_window, grid


def draw_preview(
    dataset: Dataset,
    args: RFDETRTrainingArguments,
    config: PreTrainedConfig,
    path: str | os.PathLike[str],
    images: int = 16,
    epoch: int = 0,
    overwrite: bool = False,
    augmentation: Any = None,
) -> Image.Image:
    """Draw what a run on one process sees first, as its `train_batch.jpg` shows it.

    Args:
        dataset: the training split.
        args: of the run.
        config: of the model.
        path: of the picture.
        images: how many to draw.
        epoch: whose first images.
        overwrite: replace an existing picture.
        augmentation: as of the trainer.

    Returns:
        The picture.

    Raises:
        FileExistsError: there is one, and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or replace it with overwrite")
    backbone: Any = config.backbone_config
    scales = compute_scales(config.resolution, backbone.patch_size, backbone.num_windows, args.expanded_scales)
    args = args.for_run("detection")
    args.dataloader_num_workers = 0
    if args.images_per_step is not None:
        # Which images a step gets does not depend on how it is split.
        args.per_device_train_batch_size, args.gradient_accumulation_steps = 1, args.images_per_step
    alone: Any = PartialState(cpu=True)
    loader: Any = build_train_loader(dataset, args, config, scales, alone, augmentation)
    loader.batch_sampler.set_epoch(epoch)
    pictures, accumulation = [], args.micro_batches
    step = epoch * (len(loader) // accumulation)
    for number, batch in enumerate(loader):
        scale = None
        if args.multi_scale == "per_batch":
            scale = scale_for_step(scales, args.seed, step + number // accumulation, args.is_official) / max(scales)
        pictures += draw_window([batch], dataset, scale, images - len(pictures))
        if len(pictures) >= images:
            break
    canvas = grid(pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=88)
    return canvas
