"""Samples to batches, and batches to what the model sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .view import Sample

__all__ = ["DetectionCollator", "PackedTargets", "prepare_pixels"]

_LARGE = 1 << 16
PER_IMAGE = ("image_id", "orig_size", "size")


@dataclass
class PackedTargets:
    """The targets of a batch, one tensor per field instead of one per field and image.

    Attributes:
        fields: `image_id` (B,), `orig_size` (B, 2) and `size` (B, 2), (height, width), int64, with one row per image;
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
    """

    def __init__(self, size_divisor: int = 1) -> None:
        self.size_divisor = size_divisor

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Make one batch."""
        sizes = [tuple(sample.image.shape[1:]) for sample in samples]
        height, width = (-(-max(side) // self.size_divisor) * self.size_divisor for side in zip(*sizes, strict=True))
        batch = {"pixel_values": _stack_pixels(samples, height, width)}
        if any(size != (height, width) for size in sizes):
            batch["pixel_mask"] = mask = torch.zeros(len(samples), height, width, dtype=torch.bool)
            for row, (h, w) in zip(mask, sizes, strict=True):
                row[:h, :w] = True
        batch["labels"] = _pack(samples, sizes)
        return batch


def _stack_pixels(samples: Sequence[Sample], height: int, width: int) -> torch.Tensor:
    pixels = torch.zeros(len(samples), 3, height, width, dtype=samples[0].image.dtype)
    for row, sample in zip(pixels, samples, strict=True):
        row[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return pixels


def _pack(samples: Sequence[Sample], sizes: list[tuple[int, int]]) -> PackedTargets:
    targets = [_normalised(sample.target, size) for sample, size in zip(samples, sizes, strict=True)]
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
    return PackedTargets(packed, [len(target["boxes"]) for target in targets])


def _normalised(target: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    moved = {"boxes": _normalised_cxcywh(target["boxes"], size)}
    if "keypoints" in target:
        moved["keypoints"] = (target["keypoints"].astype(np.float64) / (size[1], size[0], 1)).astype(np.float32)
    return {**target, **moved}


def _normalised_cxcywh(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    corners = boxes.astype(np.float64) / (size[1], size[0], size[1], size[0])
    low, high = corners[:, :2], corners[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)


def prepare_pixels(
    pixel_values: torch.Tensor,
    pixel_mask: torch.Tensor | None,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    size: int | tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Turn a batch that is on the device into the model's input.

    Bytes become float, are divided by 255 and normalised; padding becomes zero, the mean colour; then the batch is
    resized to the scale of the step: bilinear without antialiasing (the official per-batch rule), the mask to its
    nearest value. Float batches are normalised already and are only resized.

    Args:
        pixel_values: (B, 3, H, W), uint8 or float.
        pixel_mask: (B, H, W), true or 1 on the image, or None for a batch without padding.
        image_mean: per channel, for values in [0, 1].
        image_std: likewise.
        size: side of a square or (height, width) to resize to; None keeps the size.

    Returns:
        `pixel_values` float32 (float batches keep their dtype) and `pixel_mask` bool, or None as given.
    """
    if pixel_values.dtype == torch.uint8:
        pixel_values = pixel_values.to(torch.float32).div_(255)
        mean = _per_channel(tuple(image_mean), pixel_values.device)
        std = _per_channel(tuple(image_std), pixel_values.device)
        pixel_values.sub_(mean).div_(std)
        if pixel_mask is not None:
            pixel_values.masked_fill_(~pixel_mask[:, None].bool(), 0.0)
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
    if size is not None and size != tuple(pixel_values.shape[-2:]):
        pixel_values = F.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)
        if pixel_mask is not None:
            pixel_mask = F.interpolate(pixel_mask[:, None].float(), size=size, mode="nearest")[:, 0]
    return pixel_values, None if pixel_mask is None else pixel_mask.bool()


# Kept per device: building a tensor on a GPU from host numbers in every step would make the host wait.
@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
