"""Masks and keypoints of selected detections, in the frame of the original image."""

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor
from torch.nn import functional as F

from .geometry import valid_sizes

# How much uncertain keypoints lower a score, see `fuse_scores`.
TRACE_ALPHA = 0.2
# Masks that are resized at a time: at the size of the image they are the largest tensors of an evaluation.
_MASKS_AT_ONCE = 32
_MIN_OFF_DIAGONAL = 1e-12
_MIN_WEIGHT = 1e-12


Threshold = float | Sequence[float] | Mapping[Any, float] | Tensor
DEFAULT_THRESHOLD = 0.5


def thresholds_of(
    threshold: Threshold,
    num_labels: int,
    id2label: Mapping[int, str] | None = None,
    default: float | Sequence[float] = DEFAULT_THRESHOLD,
) -> float | list[float]:
    """One threshold, or a list with one for each class.

    Args:
        threshold: A number; a sequence or tensor with one for each class; a dict with classes as keys, by id or by
            name. Each is a finite number of at most 1, since no score is above 1; below 0 keeps all.
        num_labels: Number of classes.
        id2label: Names of the classes, for a dict with names.
        default: Of the classes that a dict leaves out; one for all, or one for each.

    Raises:
        ValueError: for a class that there is not or that stands twice, another number of thresholds, or what is no
            threshold.
    """
    known = dict(id2label or {})
    if isinstance(threshold, Mapping):
        values = [default] * num_labels if isinstance(default, (int, float)) else list(default)
        keys: dict[int, Any] = {}
        for key, value in threshold.items():
            is_id = isinstance(key, int) and not isinstance(key, bool) and 0 <= key < num_labels
            rows = [row for row, name in known.items() if name == key] or ([key] if is_id else [])
            if not rows:
                near = difflib.get_close_matches(str(key), list(known.values()), n=1)
                names = f"it has {', '.join(list(known.values())[:5])}"
                hint = f"did you mean {near[0]!r}?" if near else names
                hint = hint if known else f"ids from 0 to {num_labels - 1}; model.detect knows names"
                raise ValueError(f"thresholds: the model has no class {key!r}; {hint}")
            if rows[0] in keys:
                raise ValueError(f"thresholds: {keys[rows[0]]!r} and {key!r} are one class; give it one threshold")
            keys |= dict.fromkeys(rows, key)
            for row in rows:
                values[row] = value
    elif isinstance(threshold, (Tensor, np.ndarray)) or (
        isinstance(threshold, Sequence) and not isinstance(threshold, (str, bytes))
    ):
        values: Any = threshold.tolist() if isinstance(threshold, (Tensor, np.ndarray)) else list(threshold)
    else:
        values = threshold
    each = list(enumerate(values)) if isinstance(values, list) else [(None, values)]
    for label, value in each:
        if isinstance(value, bool) or not isinstance(value, Real) or not -math.inf < float(value) <= 1:
            of = "threshold" if label is None else f"thresholds: that of {known.get(label, label)!r}"
            raise ValueError(
                f"{of}={value!r} must be a number of at most 1, as scores are (0.5 for 50 %); below 0 keeps all."
            )
    if isinstance(values, list) and len(values) != num_labels:
        raise ValueError(f"thresholds: {len(values)} are given for {num_labels} classes; give a number, or one a class")
    return [float(value) for value in values] if isinstance(values, list) else float(cast(float, values))


def class_thresholds(
    threshold: Threshold, num_labels: int, id2label: Mapping[int, str] | None = None
) -> float | Tensor:
    """One threshold, or a tensor (num_labels,) with one for each class. See `thresholds_of`."""
    found = thresholds_of(threshold, num_labels, id2label)
    return torch.tensor(found, dtype=torch.float32) if isinstance(found, list) else found


def image_masks(
    logits: Tensor,
    size: tuple[int, int],
    image_share: Tensor | None = None,
    as_rle: bool = False,
    threshold: float = 0.0,
) -> Tensor | list[dict[str, Any]]:
    """Binary masks of one image: bilinear to its size, object where the logit is high, not cut at the box.

    Args:
        logits: (n, h, w) of the complete canvas.
        size: (height, width) of the masks.
        image_share: (2,) share of the canvas' (width, height) that is image; None where nothing is padded.
        threshold: Logits above it are object.
        as_rle: Encode each mask as COCO run-lengths, on the CPU, one mask at a time and without its pixels: cost and
            memory are those of the logits and the runs, not of the image.

    Returns:
        (n, height, width) bool, or n dicts of `size` and `counts` (text, so that they can be written as JSON).
    """
    if as_rle:
        return _run_lengths(logits - threshold if threshold else logits, size, image_share)
    return torch.cat([_resize(chunk, size, image_share) > threshold for chunk in logits.split(_MASKS_AT_ONCE)])


def as_segments(found: Mapping[str, Any], overlapping: bool) -> dict[str, Any]:
    """The detections of one image in the form of transformers.

    Args:
        found: `scores`, `labels` and `masks` (n, H, W), best first.
        overlapping: Keep masks apart; else a pixel belongs to the first object whose mask has it.

    Returns:
        `segmentation`: (n, H, W) bool, or, also where nothing is left, (H, W) int32 of ids with -1 for none;
        `segments_info`: for each object `id`, `label_id` and `score`. Objects without a pixel of their own are left
        out.
    """
    masks, segments, kept = found["masks"], [], []
    map_of_ids = torch.full(masks.shape[1:], -1, dtype=torch.int32, device=masks.device)
    for index, (score, label) in enumerate(zip(found["scores"].tolist(), found["labels"].tolist(), strict=True)):
        pixels = masks[index] if overlapping else masks[index] & (map_of_ids == -1)
        if pixels.any():
            identifier = len(kept)  # from 0: readers of overlapping masks take it for the row
            map_of_ids[pixels] = identifier
            segments.append({"id": identifier, "label_id": label, "was_fused": False, "score": score})
            kept.append(index)
    # Without objects transformers gives the empty map in both cases, which other readers expect.
    return {"segmentation": masks[kept] if overlapping and kept else map_of_ids, "segments_info": segments}


def image_shares(pixel_mask: Tensor | None, batch: int) -> Sequence[Tensor | None]:
    """For each image the share (2,) of the canvas' (width, height) that is image; None where nothing is padded.

    Args:
        pixel_mask: (B, H, W), non-zero = image.
        batch: B.
    """
    if pixel_mask is None:
        return [None] * batch
    height, width = pixel_mask.shape[1:]
    return list(valid_sizes(pixel_mask == 0) / torch.tensor([width, height], device=pixel_mask.device))


def _resize(logits: Tensor, size: tuple[int, int], image_share: Tensor | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[:, None]
    if not len(logits):
        return logits.new_zeros((0, *size))
    if image_share is None:
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]
    rows, columns = (
        _canvas_axis(side, share, cells, logits)
        for side, share, cells in zip(size, image_share.flip(0), logits.shape[2:], strict=True)
    )
    grid = torch.stack([columns.expand(size), rows[:, None].expand(size)], -1).expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def _canvas_axis(side: int, share: Tensor, cells: int, like: Tensor) -> Tensor:
    """Centres of `side` pixels on the canvas, in [-1, 1]; past the last cell of the image that cell is repeated."""
    share = share.to(like)
    centres = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side
    return 2 * (centres * share).minimum(share - 0.5 / cells) - 1


def _run_lengths(logits: Tensor, size: tuple[int, int], image_share: Tensor | None) -> list[dict[str, Any]]:
    """The run-lengths of the masks that `_resize` gives, up to the rounding of a pixel whose logit is zero.

    Down a column of pixels logits are linear from cell to cell. Where they change sign a run begins or ends, so that
    the cost is that of cells and columns, not of pixels.
    """
    low = logits.float().cpu().numpy()
    shares = (None, None) if image_share is None else image_share.flip(0).tolist()
    rows, columns = (_cells(side, cells, share) for side, cells, share in zip(size, low.shape[1:], shares, strict=True))
    at = rows[0] + rows[2].astype(np.float64)
    encoded = []
    for mask in low:
        touched = (mask > 0).any(axis=0)
        near = np.flatnonzero(touched[columns[0]] | touched[columns[1]])
        first, second, share = (each[near] for each in columns)
        across = mask[:, first] * (1 - share) + mask[:, second] * share
        column, row = _sign_changes(across, at)
        encoded.append(_encoded(near[column] * size[0] + row, size))
    return encoded


def _cells(side: int, cells: int, share: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `side` pixels the two cells that it lies between, and the share of the second (float32)."""
    centres = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32((share or 1) * cells / side)
    at = np.maximum(centres - np.float32(0.5), 0)
    if share is not None:
        # Past the last cell of the image that cell is repeated.
        at = np.minimum(at, np.float32(max(share * cells - 1, 0)))
    first = np.minimum(at.astype(np.int64), cells - 1)
    return first, np.minimum(first + 1, cells - 1), at - first.astype(np.float32)


def _sign_changes(across: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of columns become positive and where they cease to be, column by column.

    Args:
        across: (cells, n) logits of n columns of pixels at the centres of the cells.
        at: (height,) in which cell each row of pixels is, ascending.

    Returns:
        Columns, and rows: the first ones after the changes, `height` where a column ends.
    """
    cells, count = across.shape
    positive = np.zeros((count, cells + 2), dtype=bool)
    positive[:, 1:-1] = across.T > 0
    column, gap = np.nonzero(positive[:, 1:] != positive[:, :-1])  # gap k is between cells k - 1 and k
    between = (gap > 0) & (gap < cells)
    before = across[np.maximum(gap - 1, 0), column].astype(np.float64)
    after = across[np.minimum(gap, cells - 1), column].astype(np.float64)
    zero = gap - 1 + np.divide(before, before - after, out=np.zeros(len(gap)), where=between)
    # A pixel whose logit is zero is not positive.
    rising = positive[column, gap + 1]
    row = np.where(rising, np.searchsorted(at, zero, side="right"), np.searchsorted(at, zero, side="left"))
    row[gap == 0], row[gap == cells] = 0, len(at)
    return column, row


def _encoded(changes: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run-lengths of a mask of `size` (height, width).

    Args:
        changes: pixels, counted column by column, at which it changes from 0 to 1 or back; ascending. Two changes at
            one pixel are none.
    """
    height, width = size
    places, often = np.unique(changes, return_counts=True)
    counts = np.diff(places[often % 2 == 1], prepend=0, append=height * width)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]
    plain: Any = {"size": [height, width], "counts": counts.tolist()}
    rle = mask_utils.frPyObjects(plain, height, width)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def class_slots(keypoints: Tensor, labels: Tensor, schema: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The keypoints of each detection's class.

    Args:
        keypoints: (n, classes * K, 8) of the selected queries.
        labels: (n,).
        schema: Number of keypoints of each class.

    Returns:
        (n, K, 8), and (n, K) whether the class has the keypoint.

    Raises:
        ValueError: the keypoints are not of this schema.
    """
    slots = max(schema)
    if keypoints.shape[1] != slots * len(schema):
        raise ValueError(
            f"pred_keypoints has {keypoints.shape[1]} slots, but num_keypoints_per_class {list(schema)} needs "
            f"{len(schema)} x {slots}: pass model.config.num_keypoints_per_class."
        )
    known = labels.clamp(max=len(schema) - 1)
    counts = torch.where(labels < len(schema), torch.tensor(schema, device=labels.device)[known], 0)
    slot = torch.arange(slots, device=labels.device)
    index = (known[:, None] * slots + slot)[..., None].expand(-1, -1, keypoints.shape[2])
    return keypoints.gather(1, index), slot < counts[:, None]


def fuse_scores(
    scores: Tensor, keypoints: Tensor, active: Tensor, labels: Tensor, classes: int, alpha: float
) -> Tensor:
    """Lower the scores of detections whose keypoints are uncertain: x / (1 + x) with x = score * T ** -alpha.

    T is the mean trace of the keypoints' covariances (in units of the box area), weighted by their confidence.
    Detections of a class beyond the schema keep their score.

    The rule is that of the official package (1.11.2), also where it surprises: a class of the schema without keypoints
    has T = 1, so that its scores x / (1 + x) never exceed 0.5 and are below those of a detector. A threshold for such
    classes must be lower, t / (1 + t) in place of t.

    Args:
        scores: (n,) in [0, 1].
        keypoints: (n, K, 8), see `class_slots`.
        active: (n, K).
        labels: (n,).
        classes: Classes of the schema.
        alpha: Exponent; 0 switches the rule off.
    """
    if alpha == 0:
        return scores
    log_l11, l21, log_l22 = keypoints[..., 4:7].to(scores.dtype).unbind(-1)
    cross = 2 * l21.abs().clamp(min=_MIN_OFF_DIAGONAL).log() - 2 * log_l11 - 2 * log_l22
    log_trace = torch.stack([-2 * log_l11, -2 * log_l22, cross]).logsumexp(0)
    log_weight = keypoints[..., 2].to(scores.dtype).sigmoid().clamp(min=_MIN_WEIGHT).log()
    log_weight = log_weight.masked_fill(~active, -torch.inf)
    log_mean = (log_trace + log_weight).logsumexp(1) - log_weight.logsumexp(1)
    log_mean = torch.where(active.any(1), log_mean, 0)
    fused = (scores.log() - alpha * log_mean).sigmoid()
    below_one = torch.nextafter(torch.ones_like(fused), torch.zeros_like(fused))
    return torch.where(labels < classes, fused.minimum(below_one), scores)


def image_keypoints(keypoints: Tensor, active: Tensor, size: Sequence[float] | Tensor) -> dict[str, Tensor]:
    """Keypoints of one image.

    Args:
        keypoints: (n, K, 8), see `class_slots`.
        active: (n, K).
        size: (height, width) of the image in pixels; (1, 1) for normalised coordinates.

    Returns:
        `keypoints` (n, K, 3) of x, y (not clamped to the image) and the confidence that the keypoint can be found; 0
        where the class has no such keypoint. `keypoint_precision` (n, K, 3), the predicted log l11, l21, log l22; NaN
        there. `keypoint_covariance` (n, K, 2, 2) = (L Lᵀ)⁻¹ in squared pixels, without the factor of the box area; NaN
        there.
    """
    scale = torch.as_tensor(size, device=keypoints.device).to(keypoints.dtype).flip(0)
    points = torch.cat([keypoints[..., :2] * scale, keypoints[..., 2:3].sigmoid()], -1)
    precision = keypoints[..., 4:7].masked_fill(~active[..., None], torch.nan)
    return {
        "keypoints": points.masked_fill(~active[..., None], 0),
        "keypoint_precision": precision,
        "keypoint_covariance": keypoint_covariance(precision) * scale[:, None] * scale,
    }


def keypoint_covariance(precision: Tensor) -> Tensor:
    """The covariance (..., 2, 2) = (L Lᵀ)⁻¹ of log l11, l21, log l22 (..., 3)."""
    log_l11, l21, log_l22 = precision.unbind(-1)
    # The rows of the inverse of Lᵀ: (1 / l11, -l21 / (l11 l22)) and (0, 1 / l22).
    first, last = (-log_l11).exp(), (-log_l22).exp()
    slope = -l21 * first * last
    return torch.stack([first**2 + slope**2, slope * last, slope * last, last**2], -1).unflatten(-1, (2, 2))
