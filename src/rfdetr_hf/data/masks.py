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

Polygons = list[np.ndarray]
# Type stubs of it exist, and say otherwise.
coco_masks: Any = pycocotools.mask

_MIN_NUMBERS = 6  # of three corners


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
            return value["rle"]
        value = value.get("polygons")
    if value is None or not len(value):
        return None
    if isinstance(value, str):
        raise ValueError(f"is the text {value[:40]!r}, neither polygons nor a run-length encoding")
    if np.ndim(value[0]) == 0:
        value = [value]
    polygons = [_polygon(numbers) for numbers in value]
    return [polygon for polygon in polygons if len(polygon) >= _MIN_NUMBERS] or None


def packed_mask(value: Any) -> Any:
    """The same mask with its polygons as arrays, a fraction of the memory; other values stay as they are."""
    try:
        return [np.array(polygon, np.float64) for polygon in value] if isinstance(value, list) else value
    except (TypeError, ValueError):
        return value


def _polygon(numbers: Any) -> np.ndarray:
    try:
        polygon = np.asarray(numbers, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has a polygon that holds more than numbers ({error})") from error
    if polygon.ndim != 1 or len(polygon) % 2:
        raise ValueError(f"has a polygon of shape {polygon.shape}, not x, y, x, y, … in a row")
    if not np.isfinite(polygon).all():
        raise ValueError("has a polygon that is not finite")
    return polygon


def _compressed(rle: Mapping[str, Any], height: int, width: int) -> str:
    size, counts = list(rle.get("size") or ()), rle["counts"]
    if size != [height, width]:
        raise ValueError(f"is a run-length encoding of size {size}, but the image has (height, width) {height, width}")
    if isinstance(counts, (str, bytes)):
        return counts if isinstance(counts, str) else counts.decode("ascii")
    if sum(counts) != height * width:
        raise ValueError(f"is a run-length encoding of {sum(counts)} pixels, but the image has {height * width}")
    return coco_masks.frPyObjects({"size": size, "counts": list(counts)}, height, width)["counts"].decode("ascii")


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
