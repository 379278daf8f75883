"""Which images make up a batch, and the loader that fetches them.

All randomness of a sample comes from (seed, epoch, position), its place in the epoch's order. Nothing depends on the
number of workers, on what was fetched ahead, or on the state of any global generator, so a run that is resumed in the
middle of an epoch sees the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .collate import DetectionCollator
from ..errors import DetectionDataError
from ..images import open_image
from ..masks import mask_column
from .view import Sample, select_objects
from ..schema import undecoded

__all__ = [
    "DetectionDataset",
    "EpochBatchSampler",
    "EvalBatchSampler",
    "build_eval_dataloader",
    "build_train_dataloader",
]

MIN_WINDOWS = 5

Key = tuple[int, int, int]


class DetectionDataset(TorchDataset):
    """Rows of a data set in the schema of `rfdetr_hf.data.schema` as transformed samples.

    Args:
        dataset: images, ids, sizes and objects.
        transform: `(Sample, numpy Generator) -> Sample`.
        seed: first part of the seed of every sample.
        train: leave out crowd objects, which are no training targets.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Sample, np.random.Generator], Sample],
        seed: int = 0,
        *,
        train: bool,
    ) -> None:
        self.dataset = undecoded(dataset)
        self.transform = transform
        self.seed = seed
        self.train = train

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key (epoch, position, index).

        Raises:
            DetectionDataError: the image cannot be decoded.
            RuntimeError: the transform failed; names the image and carries the error.
        """
        epoch, position, index = key
        row = self.dataset[int(index)]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, position])))
        try:
            with open_image(row) as image:
                sample = Sample(image, self._target(row), row["image_id"], (row["height"], row["width"]))
                return self.transform(sample, rng)
        except DetectionDataError:
            raise
        except Exception as error:
            name = row.get("file_name") or (row["image"].get("path") if isinstance(row["image"], Mapping) else None)
            raise RuntimeError(
                f"image {row['image_id']} (file {name}, row {index}, epoch {epoch}): the transform failed with "
                f"{type(error).__name__}: {error}"
            ) from error

    def _target(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        objects = row["objects"]
        corner_and_size = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        boxes = np.concatenate([corner_and_size[:, :2], corner_and_size[:, :2] + corner_and_size[:, 2:]], axis=1)
        target = {
            "boxes": boxes.astype(np.float32),
            "class_labels": np.asarray(objects["category"], np.int64),
            "area": np.asarray(objects["area"], np.float32),
            "iscrowd": np.asarray(objects["iscrowd"], bool),
        }
        if "segmentation" in objects:
            target["segmentation"] = mask_column(objects["segmentation"], row["height"], row["width"])
        if "keypoints" in objects:
            width = self.dataset.features["objects"]["keypoints"].feature.length
            target["keypoints"] = np.asarray(objects["keypoints"], np.float32).reshape(len(boxes), width // 3, 3)
        return select_objects(target, ~target["iscrowd"]) if self.train else target


class EpochBatchSampler:
    """The micro-batches of one rank, as lists of (epoch, position, index).

    An epoch is a permutation drawn from (seed, epoch), cut into windows of `batch_size * accumulation * world_size`
    samples, one per optimizer step. There are whole windows only: the last is filled with images drawn anew in every
    epoch. A data set of fewer than five windows is sampled with replacement to five, as the official loader does on
    one device; here on any number. Which samples a window holds, and with which random draws, depends on the size of
    the window alone, not on how it is split into batches, accumulation and ranks.

    Args:
        num_samples: images in the data set.
        batch_size: images of a micro-batch on one rank.
        accumulation: micro-batches of a window on one rank.
        rank: this process.
        world_size: all processes.
        seed: of the order.
        epoch: to start with.
        start_batch: micro-batches of that epoch to leave out, because they are done.
        shuffle: draw the order; otherwise rows in a row, the last window filled from the start.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        shuffle: bool = True,
    ) -> None:
        for name, value in {"num_samples": num_samples, "batch_size": batch_size, "accumulation": accumulation}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {rank} of world_size {world_size}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = epoch
        self.start_batch = start_batch
        self.shuffle = shuffle

    @property
    def window_size(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def num_windows(self) -> int:
        """Optimizer steps per epoch."""
        return max(MIN_WINDOWS, -(-self.num_samples // self.window_size))

    def __len__(self) -> int:
        """Micro-batches of one rank in a whole epoch."""
        return self.num_windows * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for batch in range(self.start_batch, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(self.epoch, start + i, int(order[start + i])) for i in range(self.batch_size)]

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Go to an epoch, and in it to the micro-batch `start_batch`; the next iteration begins there."""
        self.epoch, self.start_batch = epoch, start_batch

    def _order(self) -> np.ndarray:
        total = self.num_windows * self.window_size
        if not self.shuffle:
            return np.resize(np.arange(self.num_samples), total)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch]))
        if self.num_samples < MIN_WINDOWS * self.window_size:
            return rng.integers(self.num_samples, size=total)
        order = rng.permutation(self.num_samples)
        return np.concatenate([order, rng.permutation(self.num_samples)[: total - self.num_samples]])


class EvalBatchSampler:
    """Every image exactly once: rank r takes the rows r, r + world_size, …, in order.

    Ranks may have different numbers of batches, so nothing collective may happen per batch.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"cannot split with batch_size {batch_size}, rank {rank}, world_size {world_size}")
        self.rows = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield [(0, row, row) for row in self.rows[start : start + self.batch_size]]


def build_train_dataloader(
    dataset: Dataset,
    transform: Callable[[Sample, np.random.Generator], Sample],
    *,
    batch_size: int,
    accumulation: int = 1,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    size_divisor: int = 1,
    shuffle: bool = True,
    num_workers: int = 2,
    pin_memory: bool = False,
    persistent_workers: bool = True,
    prefetch_factor: int | None = None,
) -> DataLoader:
    """The training loader of one rank; its `batch_sampler` is an `EpochBatchSampler`.

    Args:
        dataset: rows in the schema of `rfdetr_hf.data.schema`.
        transform: see `build_train_transform`.
        batch_size: images of a micro-batch on one rank.
        accumulation, rank, world_size, shuffle: see `EpochBatchSampler`.
        seed: of the order and of every sample's randomness.
        size_divisor: see `DetectionCollator`.
        num_workers: processes; 0 loads in this one.
        pin_memory: page-locked batches, for a CUDA device.
        persistent_workers: keep the workers between epochs.
        prefetch_factor: batches that each worker loads ahead; default 2.
    """
    sampler = EpochBatchSampler(
        len(dataset),
        batch_size,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
        seed=seed,
        shuffle=shuffle,
    )
    samples = DetectionDataset(dataset, transform, seed, train=True)
    return _dataloader(samples, sampler, size_divisor, num_workers, pin_memory, persistent_workers, prefetch_factor)


def build_eval_dataloader(
    dataset: Dataset,
    transform: Callable[[Sample, np.random.Generator], Sample],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    size_divisor: int = 1,
    num_workers: int = 2,
    pin_memory: bool = False,
    persistent_workers: bool = True,
    prefetch_factor: int | None = None,
) -> DataLoader:
    """The evaluation loader of one rank: every image once over all ranks, see `EvalBatchSampler`.

    Args:
        dataset: rows in the schema of `rfdetr_hf.data.schema`.
        transform: see `build_eval_transform`.
        batch_size: images of a batch on one rank.
        rank, world_size, size_divisor, num_workers, pin_memory, persistent_workers, prefetch_factor: as for
            `build_train_dataloader`.
    """
    sampler = EvalBatchSampler(len(dataset), batch_size, rank=rank, world_size=world_size)
    samples = DetectionDataset(dataset, transform, train=False)
    return _dataloader(samples, sampler, size_divisor, num_workers, pin_memory, persistent_workers, prefetch_factor)


def _dataloader(
    samples: DetectionDataset,
    sampler: EpochBatchSampler | EvalBatchSampler,
    size_divisor: int,
    num_workers: int,
    pin_memory: bool,
    persistent_workers: bool,
    prefetch_factor: int | None,
) -> DataLoader:
    return DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=DetectionCollator(size_divisor),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers and num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        worker_init_fn=_init_worker,
        # One of its own: a loader without it draws from torch's global generator whenever an iteration starts.
        generator=torch.Generator().manual_seed(samples.seed),
    )


def _init_worker(worker_id: int) -> None:
    # Workers are the parallelism. OpenCV, which Albumentations uses, would start a thread per core in each of them.
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
