"""Samples to batches, and batches to what the model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .ring import BatchRing, empty_tensor
from .view import Sample

__all__ = ["DetectionCollator", "PackedTargets"]

_LARGE = 1 << 16
PER_IMAGE = ("image_id", "orig_size", "size", "labelled_classes")


@dataclass
class PackedTargets:
    """The targets of a batch, one tensor per field instead of one per field and image.

    Attributes:
        fields: `image_id` (B,), `orig_size` (B, 2) and `size` (B, 2), (height, width), int64, with one row per image;
            where images say which classes are labelled in them `labelled_classes` (B, C) bool, likewise;
            the others with one row per object, image after image: `class_labels` (N,) int64, `boxes` (N, 4) float32
            cxcywh in [0, 1] of the image without its padding, `area` (N,) float32 in pixels of `size`, `iscrowd` (N,)
            bool; where the transform makes them, `masks` (N, h, w) bool, which show the image without its padding
            whatever its size, and `keypoints` (N, K, 3) float32, x and y in [0, 1] like boxes, v 0, 1 or 2.
        counts: objects per image, on the host.
    """

    fields: dict[str, torch.Tensor]
    counts: list[int]

    @property
    def num_boxes(self) -> int:
        """Objects in the batch; asks no device."""
        return sum(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PackedTargets:
        """A copy on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: Any = None) -> PackedTargets:
        """A copy in page-locked memory; `DataLoader` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def unpack(self) -> list[dict[str, torch.Tensor]]:
        """One dict of views per image, as the model takes them; moves nothing and asks no device."""
        rows = {
            name: tensor.unbind() if name in PER_IMAGE else tensor.split(self.counts)
            for name, tensor in self.fields.items()
        }
        return [{name: per_image[i] for name, per_image in rows.items()} for i in range(len(self))]

    def _map(self, function: Callable[[Any], Any]) -> PackedTargets:
        return PackedTargets({name: function(tensor) for name, tensor in self.fields.items()}, self.counts)

    def __getstate__(self) -> dict[str, Any]:
        # Each tensor that leaves a worker costs a shared-memory file and a file descriptor; a few hundred bytes travel
        # faster in the message itself, and masks do not.
        return vars(self._map(lambda tensor: tensor if tensor.nbytes > _LARGE else tensor.numpy(force=True)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"]
        self.fields = {
            name: torch.from_numpy(values) if isinstance(values, np.ndarray) else values
            for name, values in state["fields"].items()
        }


class DetectionCollator:
    """Stacks samples to `pixel_values` and `labels`, with a `pixel_mask` where there is padding.

    Images keep their type, uint8 or float, (B, 3, H, W). Smaller images are padded with
    zeros at the bottom and right, to the largest height and width of the batch rounded up to `size_divisor`.
    `pixel_mask` is bool (B, H, W), true on the image.

    Args:
        size_divisor: what the model needs height and width to be a multiple of (`RFDETRConfig.size_divisor`).
        ring: where forked workers put the pixels of their batches; a copy of the collator has none.
    """

    def __init__(self, size_divisor: int = 1, ring: BatchRing | None = None) -> None:
        self.size_divisor, self.ring = size_divisor, ring

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "ring": None}  # only forks have its memory

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Make one batch."""
        sizes = [(int(sample.image.shape[1]), int(sample.image.shape[2])) for sample in samples]
        height, width = (-(-max(side) // self.size_divisor) * self.size_divisor for side in zip(*sizes, strict=True))
        padded = any(size != (height, width) for size in sizes)
        pixels = empty_tensor(self.ring, (len(samples), 3, height, width), samples[0].image.dtype)
        batch: dict[str, Any] = {"pixel_values": pixels}
        if padded:
            pixels.zero_()
            batch["pixel_mask"] = mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
            for row, (h, w) in zip(mask, sizes, strict=True):
                row[:h, :w] = True
        for row, sample, (h, w) in zip(pixels, samples, sizes, strict=True):
            row[:, :h, :w] = sample.image
        batch["labels"] = _pack(samples, sizes)
        return batch


def _pack(samples: Sequence[Sample], sizes: list[tuple[int, int]]) -> PackedTargets:
    targets = []
    for sample, (height, width) in zip(samples, sizes, strict=True):
        corners = sample.target["boxes"].astype(np.float64) / (width, height, width, height)
        low, high = corners[:, :2], corners[:, 2:]
        moved = {"boxes": np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)}
        if "keypoints" in sample.target:
            moved["keypoints"] = (sample.target["keypoints"].astype(np.float64) / (width, height, 1)).astype(np.float32)
        targets.append({**sample.target, **moved})
    fields = targets[0].keys()
    for sample, target in zip(samples, targets, strict=True):
        if target.keys() != fields:
            raise ValueError(
                f"image {sample.image_id} has the target fields {sorted(target)}, the first of its batch has "
                f"{sorted(fields)}: a transform must give all images the same fields"
            )
    packed = {name: torch.from_numpy(np.concatenate([target[name] for target in targets])) for name in fields}
    packed["image_id"] = torch.tensor([sample.image_id for sample in samples])
    packed["orig_size"] = torch.tensor([sample.orig_size for sample in samples])
    packed["size"] = torch.tensor(sizes)
    labelled = [sample.labelled for sample in samples if sample.labelled is not None]
    if labelled:
        whole = np.ones_like(labelled[0])
        rows = [whole if sample.labelled is None else sample.labelled for sample in samples]
        packed["labelled_classes"] = torch.from_numpy(np.stack(rows))
    return PackedTargets(packed, [len(target["boxes"]) for target in targets])
