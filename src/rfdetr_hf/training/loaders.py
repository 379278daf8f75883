"""The loaders of a run, as its arguments describe them."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig

from ..data.collate import DetectionCollator
from ..data.loader import DetectionDataset, EpochBatchSampler, EvalBatchSampler, build_dataloader
from ..data.transforms import build_eval_transform, build_train_transform
from .arguments import RFDETRTrainingArguments


def build_train_loader(
    dataset: Dataset,
    args: RFDETRTrainingArguments,
    config: PreTrainedConfig,
    scales: Sequence[int],
    accelerator: Accelerator,
    augmentation: Callable[..., Any] | None = None,
) -> DataLoader:
    """This rank's micro-batches; `batch_sampler.set_epoch` chooses the epoch."""
    transform = build_train_transform(
        config.resolution if args.multi_scale == "off" else scales,
        multi_scale=args.multi_scale,
        scale_jitter=args.scale_jitter,
        hflip_prob=args.horizontal_flip,
        augmentation=augmentation,
        square=args.square_resize,
    )
    sampler = EpochBatchSampler(
        len(dataset),
        args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=args.seed,
    )
    return _build(DetectionDataset(dataset, transform, args.seed, train=True), sampler, args, config, accelerator)


def build_eval_loader(
    dataset: Dataset,
    args: RFDETRTrainingArguments,
    config: PreTrainedConfig,
    image_processor: Callable[..., Any],
    accelerator: Accelerator,
) -> DataLoader:
    """This rank's share of a data set, every image once over all ranks."""
    transform = build_eval_transform(image_processor, square=args.square_resize)
    sampler = EvalBatchSampler(
        len(dataset), args.eval_batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    return _build(DetectionDataset(dataset, transform, train=False), sampler, args, config, accelerator)


def _build(
    dataset: DetectionDataset,
    sampler: EpochBatchSampler | EvalBatchSampler,
    args: RFDETRTrainingArguments,
    config: PreTrainedConfig,
    accelerator: Accelerator,
) -> DataLoader:
    return build_dataloader(
        dataset,
        sampler,
        DetectionCollator(config.size_divisor),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and accelerator.device.type == "cuda",
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
