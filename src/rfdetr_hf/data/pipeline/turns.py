"""Flips and quarter turns of a sample: no pixel is resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .view import Sample

__all__ = ["Rotate90", "VerticalFlip"]


@dataclass(frozen=True)
class VerticalFlip:
    """Upside down with a probability: y becomes height - y.

    A mirrored person's left hand is a right one, so keypoints change places with their partners.

    Attributes:
        probability: of a flip.
        flip_index: `KeypointSchema.flip_index`; needed where there are keypoints.
    """

    probability: float
    flip_index: np.ndarray | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, or its mirror image."""
        if rng.random() >= self.probability:
            return sample
        height, target = sample.image.shape[1], dict(sample.target)
        boxes = target["boxes"].copy()
        boxes[:, [1, 3]] = height - target["boxes"][:, [3, 1]]
        target["boxes"] = boxes
        if "keypoints" in target:
            if self.flip_index is None:
                raise ValueError("keypoints cannot be mirrored without flip pairs: pass keypoint_schema or do not flip")
            points = target["keypoints"].copy()
            points[..., 1] = np.where(points[..., 2] > 0, height - points[..., 1], 0)
            target["keypoints"] = np.take_along_axis(points, self.flip_index[target["class_labels"]][..., None], axis=1)
        if "masks" in target:
            target["masks"] = target["masks"][:, ::-1]
        return sample.with_image(sample.image.flip(1), target)


@dataclass(frozen=True)
class Rotate90:
    """One, two or three quarter turns with a probability; sides change places with odd ones.

    Attributes:
        probability: of a turn.
    """

    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, or it turned."""
        if rng.random() >= self.probability:
            return sample
        turns = int(rng.integers(1, 4))
        width, height, target = sample.image.shape[2], sample.image.shape[1], dict(sample.target)
        boxes, points = target["boxes"], target.get("keypoints")
        for _ in range(turns):
            # Anticlockwise: what was right is at the top.
            boxes = np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)
            if points is not None:
                turned = np.stack([points[..., 1], width - points[..., 0], points[..., 2]], axis=-1)
                points = np.where(turned[..., 2:] > 0, turned, np.float32(0))
            width, height = height, width
        target["boxes"] = boxes.astype(np.float32)
        if points is not None:
            target["keypoints"] = points.astype(np.float32)
        if "masks" in target:
            target["masks"] = np.rot90(target["masks"], turns, axes=(1, 2))
        return sample.with_image(torch.rot90(sample.image, turns, (1, 2)), target)
