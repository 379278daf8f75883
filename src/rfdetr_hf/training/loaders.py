"""The loaders of a run, as its arguments describe them."""

import copy
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig
from transformers.image_utils import PILImageResampling

from ..arguments.training import RFDETRTrainingArguments
from ..data.pipeline.loader import LoaderOptions, build_eval_dataloader, build_train_dataloader
from ..data.pipeline.picture_cache import GB, DiskCache, MemoryCache, PictureCache, free_memory
from ..data.pipeline.pixels import prepare_pixels
from ..data.pipeline.transforms import MAX_SIZE, build_eval_transform, build_train_transform
from ..data.schema import has_keypoints, has_masks, keypoint_schema, value_range
from ..data.shards.dataset import ShardedDataset
from ..decoding import PILLOW, require_decoder
from ..models.colours import colour_statistics
from ..models.files.auto import stored_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from .preemption import shield_workers

logger = logging.getLogger(__name__)

# Masks of half the input's size: a quarter, the size of the predictions, loses much of the small objects.
MASK_DOWNSAMPLE_RATIO = 2
# The loaders of a run and of its evaluations share one.
_caches: WeakValueDictionary[Any, Any] = WeakValueDictionary()
_OF_THE_COLOURS = ("do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
                   "resample", "antialias", "value_range")  # fmt: skip


def build_train_loader(
    dataset: Dataset,
    args: RFDETRTrainingArguments,
    config: PreTrainedConfig,
    scales: Sequence[int],
    accelerator: Accelerator,
    augmentation: Callable[..., Any] | None = None,
    value_range: Sequence[float] | None = None,
) -> DataLoader:
    """This rank's micro-batches; `batch_sampler.set_epoch` chooses the epoch.

    `value_range` is that of the image processor.
    """
    transform = build_train_transform(
        config.resolution,
        scales,
        multi_scale=cast(Any, args.multi_scale),
        preset=args.augmentation,
        scale_jitter=args.scale_jitter,
        horizontal_flip=args.horizontal_flip,
        augmentation=augmentation,
        square=args.square_resize,
        mask_downsample_ratio=MASK_DOWNSAMPLE_RATIO if has_masks(dataset) else None,
        keypoint_schema=keypoint_schema(dataset) if has_keypoints(dataset) else None,
    )
    options = replace(
        _options(args, config, accelerator),
        batch_size=args.train_batch_size,
        accumulation=args.micro_batches,
        seed=args.seed,
        value_range=value_range,
        image_decoder=args.image_decoder,
        cache=picture_cache(args, accelerator, dataset),
    )
    loader = build_train_dataloader(dataset, transform, options)
    if transform.needs_others:
        transform.strong_until = _last_strong_epoch(args, len(loader) // args.micro_batches)
    return _with_workers(loader, args)


def _last_strong_epoch(args: RFDETRTrainingArguments, steps_per_epoch: int) -> float:
    """The epoch from which on no images are joined."""
    epochs = args.max_steps / steps_per_epoch if args.max_steps > 0 else args.num_train_epochs
    # Part of an epoch closes all of it.
    until = math.floor(math.ceil(epochs) - args.close_strong_augmentation_epochs)
    if until <= 0:
        logger.warning(
            "mosaic, mixup and copy_paste are never applied: close_strong_augmentation_epochs=%g leaves none of %g "
            "epochs; lower it",
            args.close_strong_augmentation_epochs, epochs,
        )  # fmt: skip
    return until


def build_eval_loader(
    dataset: Dataset,
    args: RFDETRTrainingArguments,
    config: PreTrainedConfig,
    image_processor: Callable[..., Any],
    accelerator: Accelerator,
) -> DataLoader:
    """This rank's share of a data set, every image once over all ranks."""
    masks = MASK_DOWNSAMPLE_RATIO if args.eval_loss and has_masks(dataset) else None
    transform = build_eval_transform(image_processor, mask_downsample_ratio=masks)
    # Each evaluation makes its loader: workers that outlive theirs would pile up.
    options = replace(
        _options(args, config, accelerator),
        batch_size=args.eval_batch_size,
        persistent_workers=False,
        value_range=getattr(image_processor, "value_range", None),
        image_decoder=getattr(image_processor, "image_decoder", PILLOW),
        cache=picture_cache(args, accelerator, dataset),
    )
    return _with_workers(build_eval_dataloader(dataset, transform, options), args)


def default_processor(config: PreTrainedConfig, square: bool) -> RFDETRImageProcessor:
    """The image processor of a model: to a square of its resolution, or its shorter side to it and padding.

    The weights know the colours of the processor that is stored beside them, so these stay.

    Raises:
        ValueError: the stored processor cannot be read.
    """
    side = config.resolution
    shape: dict[str, Any] = {"size": {"height": side, "width": side}}
    if not square:
        size = {"shortest_edge": side, "longest_edge": MAX_SIZE}
        shape = {"size": size, "do_pad": True, "size_divisor": config.size_divisor}
    made, theirs, source = RFDETRImageProcessor(**shape), stored_processor(config), config._name_or_path
    if theirs is None:
        return made
    kept = {name: getattr(theirs, name) for name in _OF_THE_COLOURS}
    made = RFDETRImageProcessor(**shape, **kept, image_decoder=theirs.image_decoder)
    stored, ours, usual = (each.to_dict() for each in (theirs, made, RFDETRImageProcessor(**shape)))
    changed = {name: value for name, value in stored.items() if name in ours and value != ours[name]}
    changed |= {name: stored.get(name) for name in shape if stored.get(name) != ours[name]}
    if changed:
        logger.warning(
            "%s/preprocessor_config.json has %s, and this run evaluates and saves %s: resolution and square_resize say "
            "so; image_processor= of the trainer keeps another",
            source, _listed(changed), _listed({name: ours[name] for name in changed}),
        )  # fmt: skip
    others = {name: value for name, value in ours.items() if _listed({name: value}) != _listed({name: usual.get(name)})}
    if others:
        logger.info("%s of %s/preprocessor_config.json stay", _listed(others), source)
    return made


def _listed(fields: Mapping[str, Any]) -> str:
    """Fields of a processor for a line of the log; lists and tuples are one."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return ", ".join(f"{name}={value}" for name, value in plain.items())


def choose_processor(
    given: RFDETRImageProcessor | None, config: PreTrainedConfig, args: RFDETRTrainingArguments, dataset: Any
) -> RFDETRImageProcessor:
    """The given processor or the default one, which reads pictures of more than 8 bits as the training data does.

    A training decides who decodes JPEG files; without one it is the processor's decoder, unless another is asked for.

    Raises:
        ImportError: the decoder is not installed.
    """
    processor = given or default_processor(config, args.square_resize)
    decoder = args.image_decoder if dataset is not None else processor.image_decoder
    decoder = decoder if args.image_decoder == PILLOW else args.image_decoder
    require_decoder(decoder)
    if processor.do_resize and processor.resample != PILImageResampling.BILINEAR:
        name = PILImageResampling(processor.resample).name.lower()
        logger.warning("evaluation resizes %s, as the image processor says, and training bilinear", name)
    if decoder != processor.image_decoder:
        if processor.image_decoder != PILLOW:
            logger.warning("image_decoder=%s replaces %s of the image processor", decoder, processor.image_decoder)
        processor = copy.copy(processor)
        processor.image_decoder = decoder
    found = value_range(dataset) if isinstance(dataset, (Dataset, ShardedDataset)) else None
    if given is not None and given.value_range and found and tuple(given.value_range) != found:
        logger.warning(
            "the image processor has value_range=%s, and the training pictures have %s: training and evaluation go by "
            "the processor; leave its value_range out to go by the pictures",
            list(given.value_range), list(found),
        )  # fmt: skip
    if found is None or (given is not None and given.value_range):
        return processor
    if processor.value_range and list(processor.value_range) != list(found):
        ranges = list(found), list(processor.value_range)
        logger.warning("value_range=%s of the training pictures replaces %s of the stored image processor", *ranges)
    processor = copy.copy(processor)
    processor.value_range = list(found)
    return processor


def batch_to_device(
    batch: Mapping[str, Any],
    device: torch.device,
    processor: RFDETRImageProcessor,
    config: PreTrainedConfig,
    scale: float | None = None,
) -> dict[str, Any]:
    """A batch of a loader as arguments of the model's forward.

    Args:
        batch: `pixel_values` (B, 3, H, W), `pixel_mask` (B, H, W) where there is padding, packed `labels`.
        device: of the model.
        processor: has the mean and the deviation of the colours.
        config: of the model; sides stay multiples of its `size_divisor`.
        scale: resize to this share of H and W.
    """
    size = None
    if scale is not None:
        divisor = config.size_divisor
        size = tuple(max(round(side * scale / divisor), 1) * divisor for side in batch["pixel_values"].shape[-2:])
    pixels = batch["pixel_values"].to(device, non_blocking=True)
    mask = batch.get("pixel_mask")
    mask = mask.to(device, non_blocking=True) if mask is not None else None
    pixels, mask = prepare_pixels(pixels, mask, *colour_statistics(processor), size)
    labels = batch["labels"].to(device, non_blocking=True).unpack()
    return {"pixel_values": pixels, "pixel_mask": mask, "labels": labels}


def picture_cache(args: RFDETRTrainingArguments, accelerator: Accelerator, dataset: Any) -> PictureCache | None:
    """Where the loaders of a process keep decoded pictures: the same place for all that ask while it is in use.

    Args:
        args: of the run.
        accelerator: of the run; its processes on this machine share the limit.
        dataset: whose pictures come first.

    Raises:
        ValueError: there is not so much memory.
        DetectionDataError: the folder cannot be written to.
    """
    if args.cache_images == "none":
        return None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
    limit = int(args.cache_images_gb * GB) // processes
    key = args.cache_images, limit, args.cache_images_dir
    if key in _caches:
        return _caches[key]
    needed = limit
    if isinstance(dataset, Dataset):
        sides = [np.asarray(dataset.data.column(name), np.int64) for name in ("width", "height")]
        # All rows of the table: of a selection there are fewer.
        needed = int(3 * (sides[0] * sides[1]).mean() * len(dataset)) if len(dataset) else 0
    if needed > limit:
        logger.warning(
            "decoded, the pictures take about %.1f GB: cache_images_gb=%g keeps %.0f%% of them, the others are decoded "
            "each time", needed / GB * processes, args.cache_images_gb, 100 * limit / needed,
        )  # fmt: skip
    free = free_memory()
    if args.cache_images == "ram" and free is not None and min(needed, limit) * processes > free:
        raise ValueError(
            f"cache_images=ram needs {min(needed, limit) * processes / GB:.1f} GB, and {free / GB:.1f} GB of memory "
            f"are free; lower cache_images_gb ({args.cache_images_gb:g}), or set cache_images to disk or none"
        )
    if args.cache_images == "ram":
        made: PictureCache = MemoryCache(limit)
    else:
        made = DiskCache(args.cache_images_dir, int(args.cache_images_gb * GB), processes)
    _caches[key] = made
    return made


def _with_workers(loader: DataLoader, args: RFDETRTrainingArguments) -> DataLoader:
    loader.timeout = args.dataloader_timeout if loader.num_workers else 0
    return shield_workers(loader)


def _options(args: RFDETRTrainingArguments, config: PreTrainedConfig, accelerator: Accelerator) -> LoaderOptions:
    return LoaderOptions(
        batch_size=1,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        size_divisor=config.size_divisor,
        num_workers=args.loader_workers,
        pin_memory=args.dataloader_pin_memory and accelerator.device.type == "cuda",
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
