"""COCO annotations of one picture as the target of a model."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..values import as_flag, as_integer, is_number, shown


class _Object(NamedTuple):
    box: list[float]
    category: int
    area: float


def coco_labels(
    annotation: Mapping[str, Any], original_size: tuple[int, int], size: tuple[int, int]
) -> dict[str, Tensor]:
    """The COCO annotation of one picture -> the model's target (see `RFDETRImageProcessor.preprocess`).

    Values are read as the readers of data sets read them: whole numbers may be floats or digits, a null `area` is that
    of the box, "0" and null say no.

    Args:
        annotation: `image_id` and `annotations`, a list of COCO objects with pixels of the upright picture.
        original_size: Height and width of that picture.
        size: Height and width after the resize.

    Raises:
        ValueError: A field is missing or has a value of another kind; the message names the annotation.
    """
    for key in ("image_id", "annotations"):
        if key not in annotation:
            raise ValueError(f"An annotation has no {key!r}; expected {{'image_id': int, 'annotations': [...]}}.")
    image_id = as_integer(_plain(annotation["image_id"]))
    if image_id is None:
        raise ValueError(f"image_id is {shown(annotation['image_id'])}: it must be an integer.")
    objects = [found for item in annotation["annotations"] if (found := _read(item, image_id)) is not None]
    boxes = torch.tensor([found.box for found in objects], dtype=torch.float64).reshape(-1, 4)
    height, width = original_size
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).clamp(min=0).minimum(scale) / scale
    keep = (corners[:, 2:] > corners[:, :2]).all(1)
    classes = torch.tensor([found.category for found in objects], dtype=torch.int64)
    area = torch.tensor([found.area for found in objects], dtype=torch.float32)
    centre = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    return {
        "image_id": torch.tensor([image_id]),
        "class_labels": classes[keep],
        "boxes": centre[keep].float(),
        "area": area[keep] * (size[0] * size[1] / (height * width)),
        "iscrowd": torch.zeros_like(classes[keep]),
        "orig_size": torch.tensor(original_size),
        "size": torch.tensor(size),
    }


def _plain(value: Any) -> Any:
    """Python's numbers and lists of them in place of arrays and tensors."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _read(item: Mapping[str, Any], image_id: int) -> _Object | None:
    """An object, None for a crowd."""
    where = f"annotation {item.get('id', '(without id)')} of image {image_id}"
    is_crowd = as_flag(_plain(item.get("iscrowd")))
    if is_crowd is None:
        raise ValueError(f"{where}: iscrowd is {shown(item['iscrowd'])}, neither yes nor no.")
    if is_crowd:
        return None
    if missing := [key for key in ("bbox", "category_id") if key not in item]:
        raise ValueError(f"{where} has no {' and no '.join(map(repr, missing))}.")
    box, area = (_plain(item.get(name)) for name in ("bbox", "area"))
    category = as_integer(_plain(item["category_id"]))
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or not all(is_number(value) and math.isfinite(value) for value in box)
        or min(box[2:]) < 0
    ):
        raise ValueError(f"{where}: bbox is {shown(box)}, not four finite numbers (x, y, width >= 0, height >= 0).")
    if category is None or category < 0:
        raise ValueError(f"{where}: category_id is {shown(item['category_id'])}, no integer from 0.")
    area = box[2] * box[3] if area is None else area
    if not is_number(area) or not 0 <= area < math.inf:
        raise ValueError(f"{where}: area is {shown(area)}, no number from 0.")
    return _Object(list(box), category, area)
