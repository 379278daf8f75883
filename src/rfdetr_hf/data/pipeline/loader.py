"""Rows of a data set as samples, and the loaders that make batches of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ...decoding import PILLOW, require_decoder
from ..errors import DetectionDataError
from ..masks import mask_column
from ..schema import class_names, has_unlabelled_classes, sample_weights, undecoded
from ..shards.dataset import AnySplit, ShardedDataset
from .collate import DetectionCollator
from .order import EpochBatchSampler, EvalBatchSampler, Key
from .picture_cache import PictureCache
from .pixels import open_image
from .ring import BatchRing
from .row_reader import RowReader
from .view import Others, Sample, select_objects

__all__ = ["DetectionDataset", "LoaderOptions", "Transform", "build_eval_dataloader", "build_train_dataloader"]

_ROWS_AT_A_TIME = 1000
Transform = Callable[[Sample, np.random.Generator], Sample]


@dataclass(frozen=True)
class LoaderOptions:
    """How the loader of one rank makes batches.

    Attributes:
        batch_size: images of a micro-batch on one rank.
        accumulation, shuffle: see `EpochBatchSampler`; evaluation has neither.
        rank, world_size: this process of all.
        seed: of the order and of every sample's randomness; evaluation has none.
        size_divisor: see `DetectionCollator`.
        num_workers: processes; 0 loads in this one.
        pin_memory: page-locked batches, for a CUDA device.
        persistent_workers: keep the workers between epochs.
        prefetch_factor: batches that each worker loads ahead; default 2.
        value_range, image_decoder, cache: see `DetectionDataset`.
    """

    batch_size: int
    accumulation: int = 1
    shuffle: bool = True
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    size_divisor: int = 1
    num_workers: int = 2
    pin_memory: bool = False
    persistent_workers: bool = True
    prefetch_factor: int | None = None
    value_range: Sequence[float] | None = None
    image_decoder: str = PILLOW
    cache: PictureCache | None = None


class DetectionDataset(TorchDataset):
    """Rows of a data set in the schema of `rfdetr_hf.data.schema` as transformed samples.

    Args:
        dataset: images, ids, sizes and objects.
        transform: `(Sample, numpy Generator) -> Sample`; one whose `needs_others` is true gets `Others` as well.
        seed: first part of the seed of every sample.
        train: leave out crowd objects, which are no training targets.
        value_range: (low, high) of pictures with more than 8 bits, as the model's image processor has it; None: as the
            rows have it.
        image_decoder: who reads JPEG files, see `decode_image`.
        cache: of decoded pictures.

    Raises:
        ImportError: the decoder is not installed.
    """

    def __init__(
        self,
        dataset: AnySplit,
        transform: Transform,
        seed: int = 0,
        *,
        train: bool,
        value_range: Sequence[float] | None = None,
        image_decoder: str = PILLOW,
        cache: PictureCache | None = None,
    ) -> None:
        self.dataset = undecoded(dataset)
        self.rows = RowReader(self.dataset)
        self.transform = transform
        self.seed = seed
        self.train = train
        self.value_range = value_range
        self.decoder, self.cache = image_decoder, cache
        require_decoder(image_decoder)
        self.folder: Any = None  # of the file that the rows are mapped from
        self._num_classes = len(class_names(dataset)) if has_unlabelled_classes(dataset) else 0
        weights = sample_weights(dataset) if train and getattr(transform, "needs_others", False) else None
        self._ends = None if weights is None else np.cumsum(weights, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "folder": None}  # the process that made it removes it

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key (epoch, position, index).

        Raises:
            DetectionDataError: the image cannot be decoded.
            RuntimeError: the transform failed; names the image and carries the error.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample]:
        """The samples of some keys, as `torch.utils.data.DataLoader` asks for a batch; errors as of one.

        What is small is done for all of them before the first is decoded: between two images, whose pixels fill the
        processor's cache, each step would take three times as long.
        """
        call: Any = self.transform
        rows = [self.rows[int(index)] for _, _, index in keys]
        generators = [
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, position])))
            for epoch, position, _ in keys
        ]
        opened = [self._open(row) for row in rows]
        samples = []
        for (epoch, _, index), row, rng in zip(keys, rows, generators, strict=True):
            others = ()
            if getattr(call, "needs_others", False):
                visit = lambda other, see: see(self._open(self.rows[other]))  # noqa: E731
                others = (Others(epoch, len(self), visit, self._ends),)
            try:
                samples.append(call(opened.pop(0), rng, *others))
            except DetectionDataError:
                raise
            except Exception as error:
                name = row.get("file_name") or (row["image"].get("path") if isinstance(row["image"], Mapping) else None)
                raise RuntimeError(
                    f"image {row['image_id']} (file {name}, row {index}, epoch {epoch}): the transform failed with "
                    f"{type(error).__name__}: {error}"
                ) from error
        return samples

    def _open(self, row: Mapping[str, Any]) -> Sample:
        """The sample of a row, its image not decoded yet."""
        shown = row if self.value_range is None else {**row, "value_range": self.value_range}
        image, size = open_image(shown, self.decoder, self.cache), (int(row["height"]), int(row["width"]))
        return Sample(image, self._target(row), row["image_id"], size, self._labelled(row))

    def _labelled(self, row: Mapping[str, Any]) -> np.ndarray | None:
        """(classes,) bool where images say which classes are labelled in them; else None."""
        if not self._num_classes:
            return None
        own = row["labelled_classes"]
        labelled = np.full(self._num_classes, own is None)
        labelled[np.asarray([] if own is None else own, np.int64)] = True
        return labelled

    def _target(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        objects = row["objects"]
        corner_and_size = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
        area = np.asarray(objects["area"], np.float32)
        boxes = np.concatenate([corner_and_size[:, :2], corner_and_size[:, :2] + corner_and_size[:, 2:]], axis=1)
        target = {
            "boxes": boxes.astype(np.float32),
            "class_labels": np.array(objects["category"], np.int64),
            # Null, which is NaN here, stands for the area of the box.
            "area": np.where(np.isnan(area), corner_and_size[:, 2:].prod(axis=1), area).astype(np.float32),
            "iscrowd": np.array(objects["iscrowd"], bool),
        }
        if "segmentation" in objects:
            target["segmentation"] = mask_column(objects["segmentation"], int(row["height"]), int(row["width"]))
        if "keypoints" in objects:
            width = self.dataset.features["objects"]["keypoints"].feature.length
            target["keypoints"] = np.array(objects["keypoints"], np.float32).reshape(len(boxes), width // 3, 3)
        return select_objects(target, ~target["iscrowd"]) if self.train else target


def build_train_dataloader(dataset: AnySplit, transform: Transform, options: LoaderOptions) -> DataLoader:
    """The training loader of one rank; its `batch_sampler` is an `EpochBatchSampler`, which draws by `sample_weight`.

    Args:
        dataset: rows in the schema of `rfdetr_hf.data.schema`.
        transform: see `build_train_transform`.
        options: see `LoaderOptions`.
    """
    sampler = EpochBatchSampler(
        len(dataset),
        options.batch_size,
        accumulation=options.accumulation,
        rank=options.rank,
        world_size=options.world_size,
        seed=options.seed,
        shuffle=options.shuffle,
        shards=dataset.layout if isinstance(dataset, ShardedDataset) else None,
        weights=sample_weights(dataset),
    )
    return _dataloader(dataset, transform, sampler, options, train=True)


def build_eval_dataloader(dataset: AnySplit, transform: Transform, options: LoaderOptions) -> DataLoader:
    """The evaluation loader of one rank: every image once over all ranks, see `EvalBatchSampler`.

    Args:
        dataset: rows in the schema of `rfdetr_hf.data.schema`.
        transform: see `build_eval_transform`.
        options: see `LoaderOptions`.
    """
    if isinstance(dataset, ShardedDataset):
        dataset.fetch_ahead(range(len(dataset.shards)))
    sampler = EvalBatchSampler(len(dataset), options.batch_size, rank=options.rank, world_size=options.world_size)
    return _dataloader(dataset, transform, sampler, options, train=False)


def _dataloader(
    dataset: AnySplit,
    transform: Transform,
    sampler: EpochBatchSampler | EvalBatchSampler,
    options: LoaderOptions,
    *,
    train: bool,
) -> DataLoader:
    workers = options.num_workers
    shown: dict[str, Any] = {"value_range": options.value_range, "image_decoder": options.image_decoder}
    shown["cache"] = options.cache
    folder = ring = None
    forks = multiprocessing.get_start_method() == "fork"
    if workers and forks and sys.platform == "linux":
        with contextlib.suppress(OSError):  # where address space is limited, batches travel as torch sends them
            ring = BatchRing(workers, (options.prefetch_factor or 2) + 1)
    elif workers and not forks:
        try:
            pickle.dumps(transform)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"the augmentation cannot be handed to worker processes, which are no forks here ({error}); "
                "define it at the top of a module instead of in a function or as a lambda, or load with "
                "dataloader_num_workers=0"
            ) from error
        dataset, folder = _mapped(dataset)
    samples = DetectionDataset(dataset, transform, options.seed if train else 0, train=train, **shown)
    samples.folder = folder
    return DataLoader(
        samples,
        batch_sampler=sampler,
        collate_fn=DetectionCollator(options.size_divisor, ring),
        num_workers=workers,
        pin_memory=options.pin_memory,
        persistent_workers=options.persistent_workers and workers > 0,
        prefetch_factor=options.prefetch_factor if workers > 0 else None,
        worker_init_fn=limit_worker_threads,
        # With no generator given, a loader asks torch's global one for numbers whenever an iteration starts.
        generator=torch.Generator().manual_seed(samples.seed),
    )


def _mapped(dataset: AnySplit) -> tuple[AnySplit, tempfile.TemporaryDirectory[str] | None]:
    """The same rows in a file that processes map into their memory, and its folder, which is removed with the object.

    A table in memory would be copied into each worker that is no fork.
    """
    if not isinstance(dataset, Dataset) or dataset.cache_files:
        return dataset, None
    folder = tempfile.TemporaryDirectory(prefix="rfdetr_hf-", ignore_cleanup_errors=True)
    path = os.path.join(folder.name, "rows.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, dataset.features.arrow_schema) as writer:
        for batch in dataset.with_format("arrow").iter(_ROWS_AT_A_TIME):
            table: Any = batch
            writer.write_table(table.cast(dataset.features.arrow_schema))
    return Dataset.from_file(path), folder


def limit_worker_threads(worker_id: int) -> None:
    # Workers are the parallelism. OpenCV, which Albumentations uses, would start a thread per core in each of them.
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
