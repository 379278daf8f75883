"""Masks of objects: how the schema keeps them, COCO's forms of them, and their pixels at the size of the loss.

Arrow needs one type for all objects, so a mask is a struct of which one field is filled:

* ``polygons``: a list of polygons, each x, y, x, y… in pixels, as in COCO files;
* ``rle``: the compressed counts of a COCO run-length encoding whose size is that of the image.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pycocotools.mask
from datasets import List, Value

from ..values import as_integer, shown

Polygons = list[np.ndarray]
# Type stubs of it exist, and say otherwise.
coco_masks: Any = pycocotools.mask

_MIN_NUMBERS = 6  # of three corners
_FARTHEST = 1e6  # pixels; the decoder counts in 32 bits


def mask_feature() -> List:
    """The feature of ``objects.segmentation``."""
    return List({"polygons": List(List(Value("float64"))), "rle": Value("string")})


def coco_segmentation(value: Any, height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """One element of ``objects["segmentation"]`` in the form of COCO files, as pycocotools takes it.

    Args:
        value: an element of the column: a dict of ``polygons`` and ``rle``. Polygons and run-length encodings in COCO's
            own forms pass too.
        height, width: of the object's image.

    Returns:
        A list of polygons, or ``{"size": [height, width], "counts": text}``.

    Raises:
        ValueError: there is no mask, or it is written in no known form.
    """
    mask = parse_mask(value, height, width)
    if mask is None:
        raise ValueError("is empty")
    if isinstance(mask, str):
        return {"size": [height, width], "counts": mask}
    return [polygon.tolist() for polygon in mask]


def parse_mask(value: Any, height: int, width: int) -> Polygons | str | None:
    """Polygons, or the counts of a run-length encoding, or None where there is no mask.

    Polygons of fewer than three corners cover nothing and are left out.

    Raises:
        ValueError: `value` is no mask of an image of this size; starts with a verb, for "field segmentation …".
    """
    if isinstance(value, Mapping):
        if value.get("counts") is not None:
            return _compressed(value, height, width)
        if value.get("rle") is not None:
            return _checked_counts(value["rle"], height, width)
        value = value.get("polygons")
    if value is None:
        return None
    if not isinstance(value, (list, tuple, np.ndarray)):
        kind = "the text " if isinstance(value, str) else ""
        raise ValueError(f"is {kind}{shown(value)}, neither polygons nor a run-length encoding")
    if not len(value):
        return None
    if any(isinstance(part, Mapping) for part in value):
        if len(value) == 1:
            return parse_mask(value[0], height, width)
        raise ValueError("is a list of several run-length encodings: merge them to one, without a list")
    if not any(isinstance(part, (list, tuple, np.ndarray)) for part in value):
        value = [value]
    polygons = [_polygon(numbers) for numbers in value]
    if len(polygons) == height and all(len(row) == width and np.isin(row, (0, 1)).all() for row in polygons):
        raise ValueError("is a bitmap: encode it with pycocotools.mask.encode, or write polygons")
    return [polygon for polygon in polygons if len(polygon) >= _MIN_NUMBERS] or None


def packed_mask(value: Any) -> Any:
    """The same mask with its polygons as arrays, a fraction of the memory; other values stay as they are."""
    if not isinstance(value, list) or not all(isinstance(part, list) for part in value):
        return value
    try:
        packed = [np.array(polygon) for polygon in value]
    except (TypeError, ValueError):
        return value
    return packed if all(each.dtype.kind in "iuf" for each in packed) else value


def _polygon(numbers: Any) -> np.ndarray:
    try:
        polygon = np.asarray(numbers)
        if polygon.dtype.kind not in "iuf" and polygon.size:
            raise TypeError(f"such as {shown(polygon.item(0))}")
        polygon = polygon.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"has a polygon that holds more than numbers ({error})") from error
    if polygon.ndim == 2 and polygon.shape[1] == 2:
        polygon = polygon.ravel()
    if polygon.ndim != 1 or len(polygon) % 2:
        raise ValueError(f"has a polygon of shape {polygon.shape}, not x, y, x, y, … in a row")
    if not np.isfinite(polygon).all() or (np.abs(polygon) > _FARTHEST).any():
        raise ValueError("has a polygon that is not finite")
    return polygon


def _compressed(rle: Mapping[str, Any], height: int, width: int) -> str:
    size, counts = rle.get("size"), rle["counts"]
    if not isinstance(size, (list, tuple, np.ndarray)) or [as_integer(side) for side in list(size)] != [height, width]:
        raise ValueError(
            f"is a run-length encoding of size {shown(size)}, but the image has (height, width) {height, width}"
        )
    if isinstance(counts, (str, bytes)):
        return _checked_counts(counts, height, width)
    runs = [as_integer(run) for run in counts] if isinstance(counts, (list, tuple, np.ndarray)) else [None]
    if any(run is None or run < 0 for run in runs):
        raise ValueError(f"is a run-length encoding whose counts are {shown(counts)}, not numbers of pixels")
    total = sum(run for run in runs if run)
    if total != height * width:
        raise ValueError(f"is a run-length encoding of {total} pixels, but the image has {height * width}")
    return coco_masks.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"].decode("ascii")


def _checked_counts(counts: Any, height: int, width: int) -> str:
    """Compressed counts whose runs fill the image; the decoder would write beyond its memory for others.

    Each run is written in digits of five bits, lowest first, with a flag for "more" (32) and, in the last digit, one
    for the sign (16), all 48 higher; from the fourth run on it is the difference to the run before the last.
    """
    text = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
    if not isinstance(text, str) or not text.isascii():
        raise ValueError(f"is a run-length encoding whose counts are {shown(counts)}, no compressed counts")
    digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = (digits & 32) == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not last[-1]:
        raise ValueError(f"is a run-length encoding whose counts are {shown(counts)}, no compressed counts")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("is a run-length encoding with a run of more than 7 digits")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for start in (1, 2):
        # The first difference is that of the fourth run to the second.
        part = runs[start::2]
        np.cumsum(part, out=part)
    if runs.min() < 0 or int(runs.sum()) != height * width:
        raise ValueError(f"is a run-length encoding of {int(runs.sum())} pixels, but the image has {height * width}")
    return text


def mask_extents(masks: pa.StructArray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where masks lie, and whether they cover a pixel of their image.

    Args:
        masks: n of `mask_array`.
        size: (n, 2) width and height of the images.

    Returns:
        (n, 4) left, top, right, bottom in pixels, zeros where there is no mask; and (n,) bool.
    """
    extent, visible = np.zeros((len(masks), 4)), np.zeros(len(masks), bool)
    for index, mask in enumerate(masks.to_pylist()):
        if mask is None:
            continue
        width, height = size[index].tolist()
        if mask["rle"] is not None:
            encoded = {"size": [height, width], "counts": mask["rle"].encode("ascii")}
            left, top, wide, high = coco_masks.toBbox(encoded)
            extent[index] = left, top, left + wide, top + high
            visible[index] = wide > 0
            continue
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask["polygons"]])
        low, high = points.min(axis=0), points.max(axis=0)
        extent[index] = *low, *high
        if (high <= 0).any() or low[0] >= width or low[1] >= height:
            continue
        # Only thin and small outlines may miss every pixel; drawing the others would cost minutes.
        if (high - low).min() >= 2 and (low >= 0).all() and high[0] <= width and high[1] <= height:
            x, y = points[:, 0], points[:, 1]
            if len(mask["polygons"]) == 1 and abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) > 8 * (high - low).max():
                visible[index] = True
                continue
        drawn = coco_masks.frPyObjects(mask["polygons"], height, width)
        visible[index] = bool(np.sum(coco_masks.area(drawn)))
    return extent, visible


def encode_mask(pixels: np.ndarray) -> str:
    """The compressed counts of (height, width) zeros and ones."""
    return coco_masks.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode("ascii")


def mask_array(masks: Iterable[Polygons | str | None]) -> pa.StructArray:
    """The Arrow column of parsed masks; None becomes null."""
    masks = list(masks)
    polygons = [mask if isinstance(mask, list) else [] for mask in masks]
    parts = [part for mask in polygons for part in mask]
    numbers = pa.array(np.concatenate([np.zeros(0), *parts]), pa.float64())
    inner = pa.ListArray.from_arrays(_offsets(map(len, parts)), numbers)
    missing = pa.array([not isinstance(mask, list) for mask in masks], pa.bool_())
    outer = pa.ListArray.from_arrays(_offsets(map(len, polygons)), inner, mask=missing)
    rle = pa.array([mask if isinstance(mask, str) else None for mask in masks], pa.string())
    absent = pa.array([mask is None for mask in masks], pa.bool_())
    return pa.StructArray.from_arrays([outer, rle], names=["polygons", "rle"], mask=absent)


def _offsets(lengths: Iterable[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(list(lengths), dtype=np.int64)]).astype(np.int32))


def mask_column(values: Sequence[Any], height: int, width: int) -> np.ndarray:
    """(n,) objects for `rasterise`, from the masks of one image in the schema's form."""
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        mask = parse_mask(value, height, width)
        column[index] = {"size": [height, width], "counts": mask} if isinstance(mask, str) else mask or []
    return column


def rasterise(
    masks: Sequence[Any], region: tuple[float, float, float, float], size: tuple[int, int], flip: bool = False
) -> np.ndarray:
    """Pixels of masks in a part of their image, straight at the size that is asked for.

    Polygons are moved and scaled as polygons; of a run-length encoding, which is decoded by itself, the values under
    the centres of the target's pixels are taken. A pixel belongs to a mask when its centre does.

    Args:
        masks: (n,) of `mask_column`.
        region: left, top, right, bottom in pixels of the image.
        size: height and width of the result, which shows the region.
        flip: mirror the result.

    Returns:
        bool (n, height, width).
    """
    result = np.zeros((len(masks), *size), dtype=bool)
    outlined = [row for row, mask in enumerate(masks) if isinstance(mask, list) and mask]
    if outlined:
        encoded = [_encode_polygons(masks[row], region, size, flip) for row in outlined]
        result[outlined] = coco_masks.decode(encoded).transpose(2, 0, 1)
    for row, mask in enumerate(masks):
        if isinstance(mask, dict):
            result[row] = resample_masks(coco_masks.decode(mask)[None], region, size, flip)[0]
    return result


def _encode_polygons(
    polygons: Polygons, region: tuple[float, float, float, float], size: tuple[int, int], flip: bool
) -> dict[str, Any]:
    left, top, right, bottom = region
    height, width = size
    scale = np.array([width / (right - left), height / (bottom - top)])
    moved = []
    for polygon in polygons:
        corners = (polygon.reshape(-1, 2) - (left, top)) * scale
        if flip:
            corners[:, 0] = width - corners[:, 0]
        moved.append(corners.ravel())
    return coco_masks.merge(coco_masks.frPyObjects(moved, height, width))


def resample_masks(
    masks: np.ndarray, region: tuple[float, float, float, float], size: tuple[int, int], flip: bool = False
) -> np.ndarray:
    """Masks (n, H, W) of a region at another size (height, width): the values under the centres of the new pixels."""
    left, top, right, bottom = region
    rows = _centres(top, bottom, size[0], masks.shape[1])
    columns = _centres(left, right, size[1], masks.shape[2])
    return masks[:, rows[:, None], columns[::-1] if flip else columns].astype(bool)


def _centres(start: float, end: float, count: int, limit: int) -> np.ndarray:
    centres = start + (np.arange(count) + 0.5) * (end - start) / count
    return centres.astype(np.int64).clip(0, limit - 1)
