"""Boxes, masks and grids of the detector: pure functions without parameters.

Coordinates are computed in `geometry_dtype`, float32 at least: the eight bits of a bfloat16 would quantise boxes to
1/256 of the image. Boxes are (centre x, centre y, width, height), normalised by the un-padded image and not clamped.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ANCHOR_SIZE = 0.05
ANCHOR_MARGIN = 0.01
SINE_TEMPERATURE = 10000.0

LevelShapes = list[tuple[int, int]]


def is_recorded() -> bool:
    """Whether a compiler or an exporter records the operators, which has no use for autograd functions of ours."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def by_hand() -> bool:
    """Whether gradients are computed, and by autograd functions of ours where there is one."""
    return torch.is_grad_enabled() and not is_recorded()


def geometry_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates in a model of `dtype`: float32, or float64 in a float64 model."""
    return torch.promote_types(dtype, torch.float32)


class _RefineBoxes(torch.autograd.Function):
    # By hand for the number of launches: autograd takes twice as many.

    @staticmethod
    def forward(ctx: Any, deltas: Tensor, reference: Tensor) -> Tensor:
        (shift, growth), (centre, size) = (boxes.split(2, -1) for boxes in (deltas, reference))
        refined = deltas.new_empty(torch.broadcast_shapes(deltas.shape, reference.shape))
        corner, side = refined.split(2, -1)
        torch.addcmul(centre, shift, size, out=corner)
        torch.mul(growth.exp(), size, out=side)
        ctx.save_for_backward(deltas, reference)
        return refined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        deltas, reference = ctx.saved_tensors
        (shift, growth), (_, size), (of_centre, of_size) = (x.split(2, -1) for x in (deltas, reference, grad))
        of_size = of_size * growth.exp()
        of_deltas = of_reference = None
        if ctx.needs_input_grad[0]:
            of_deltas = torch.empty_like(grad)
            torch.mul(of_centre, size, out=of_deltas[..., :2])
            torch.mul(of_size, size, out=of_deltas[..., 2:])
            of_deltas = of_deltas.sum_to_size(deltas.shape)
        if ctx.needs_input_grad[1]:
            of_reference = torch.cat([of_centre, of_size.addcmul_(of_centre, shift)], -1).sum_to_size(reference.shape)
        return of_deltas, of_reference


def refine_boxes(deltas: Tensor, reference: Tensor) -> Tensor:
    """Apply box deltas: centre `d_xy * ref_wh + ref_xy`, size `exp(d_wh) * ref_wh`.

    Args:
        deltas: (..., 4).
        reference: (..., 4) boxes, broadcastable with `deltas`.
    """
    dtype = geometry_dtype(torch.promote_types(deltas.dtype, reference.dtype))
    deltas, reference = deltas.to(dtype), reference.to(dtype)
    if by_hand():
        return _RefineBoxes.apply(deltas, reference)
    (shift, growth), (centre, size) = (boxes.split(2, -1) for boxes in (deltas, reference))
    return torch.cat([shift * size + centre, growth.exp() * size], -1)


def sampling_frames(boxes: Tensor, points: int) -> Tensor:
    """Where `grid_sample` reads at an offset of 0 from boxes (..., 4), and how far an offset of 1 moves that: (..., 4).

    An offset is in `1 / points` of half the box's size, the grid goes from -1 to 1 over the canvas.
    """
    centre, size = boxes.split(2, -1)
    return torch.cat([torch.rsub(centre, -1, alpha=-2), size / points], -1)


class _SineEmbedding(torch.autograd.Function):
    # By hand for memory: autograd would keep the arguments, which are many times as large as the boxes.

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, frequencies: Tensor) -> Tensor:
        ctx.save_for_backward(boxes, frequencies)
        arguments = boxes[..., None] * frequencies
        return torch.stack([arguments.sin(), arguments.cos()], -1).flatten(-3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        boxes, frequencies = ctx.saved_tensors
        arguments = boxes[..., None] * frequencies
        of_sine, of_cosine = grad.unflatten(-1, (boxes.shape[-1], -1, 2)).unbind(-1)
        slope = arguments.cos().mul_(of_sine).addcmul_(arguments.sin(), of_cosine, value=-1)
        return slope.mul_(frequencies).sum(-1), None


def sine_embedding(boxes: Tensor, width: int) -> Tensor:
    """Embed boxes by sines: for each coordinate in the order y, x, w, h, `width` values (sin, cos, sin, cos, ...).

    Pair i has the argument `2 pi * coordinate / 10000 ** (2 i / width)`.

    Args:
        boxes: (..., 4).
        width: Values per coordinate, even.

    Returns:
        (..., 4 * width) in the dtype of `boxes`.
    """
    exponents = torch.linspace(0, 2 / width - 1, width // 2, dtype=boxes.dtype, device=boxes.device)
    frequencies = 2 * math.pi * SINE_TEMPERATURE**exponents
    x, y, w, h = boxes.unbind(-1)
    boxes = torch.stack([y, x, w, h], -1)
    if by_hand():
        return _SineEmbedding.apply(boxes, frequencies)
    arguments = boxes[..., None] * frequencies
    return torch.stack([arguments.sin(), arguments.cos()], -1).flatten(-3)


def level_padding(pixel_mask: Tensor, shapes: LevelShapes) -> list[Tensor]:
    """For each level the cells (B, h, w) that are padding: a cell is what its top-left pixel is.

    Args:
        pixel_mask: (B, H, W), non-zero = image.
        shapes: (h, w) of each level.
    """
    valid = (pixel_mask != 0)[:, None].float()
    return [F.interpolate(valid, size=shape, mode="nearest")[:, 0] == 0 for shape in shapes]


def valid_sizes(padding: Tensor) -> Tensor:
    """Cells of the un-padded image, float32 (B, 2) as (width, height), read off the first row and the first column."""
    valid = ~padding
    return torch.stack([valid[:, 0, :].sum(-1), valid[:, :, 0].sum(-1)], -1).float()


def full_sizes(batch: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    """What `valid_sizes` gives for a level (h, w) without padding."""
    height, width = shape
    return torch.stack([torch.full((batch,), float(side), device=device) for side in (width, height)], -1).float()


@lru_cache(maxsize=64)
def canvas_anchors(*shapes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What `anchor_boxes` gives for levels (h, w) without padding, on the host.

    Returns:
        Boxes (S, 4), float32, zero where they are invalid, and whether they are, (S,).
    """
    boxes = []
    for level, (height, width) in enumerate(shapes):
        y, x = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) for side in (height, width))
        grid = np.full((height, width, 4), ANCHOR_SIZE * 2**level, dtype=np.float32)
        grid[..., 0], grid[..., 1] = x, y[:, None]
        boxes.append(grid.reshape(-1, 4))
    anchors = np.concatenate(boxes)
    inside = np.all((anchors > ANCHOR_MARGIN) & (anchors < 1 - ANCHOR_MARGIN), axis=-1)
    return anchors * inside[:, None], ~inside


def anchor_boxes(shapes: LevelShapes, sizes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One box for each cell: its centre, and 0.05 * 2**level as both sides.

    Args:
        shapes: (h, w) of each level.
        sizes: for each level the valid (width, height) in cells, float32 (B, 2).

    Returns:
        Boxes (B, S, 4), always float32, and whether all four numbers of a box lie inside (0.01, 0.99), (B, S).
    """
    boxes = [_level_anchors(level, *shape, size) for level, (shape, size) in enumerate(zip(shapes, sizes, strict=True))]
    anchors = torch.cat(boxes, 1)
    inside = ((anchors > ANCHOR_MARGIN) & (anchors < 1 - ANCHOR_MARGIN)).all(-1)
    return anchors, inside


def _level_anchors(level: int, height: int, width: int, size: Tensor) -> Tensor:
    device = size.device
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / size[:, :1]
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / size[:, 1:]
    grid_x = x[:, None, :].expand(-1, height, -1)
    grid_y = y[:, :, None].expand(-1, -1, width)
    side = torch.full_like(grid_x, ANCHOR_SIZE * 2**level)
    return torch.stack([grid_x, grid_y, side, side], -1).flatten(1, 2)
