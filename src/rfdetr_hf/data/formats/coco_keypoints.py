"""Keypoints of COCO annotation files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...choices import counted
from ...values import as_integer, is_number, shown
from ..annotations import Boxes
from ..errors import Problems
from ..keypoints import ClassKeypoints

_REMEDY = "write keypoints as x, y, v in a row, v being 0, 1 or 2, one triple for each name in the category"


def class_keypoints(
    categories: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], problems: Problems
) -> dict[int, ClassKeypoints]:
    """The keypoints of each category; where none names its own, as many as its longest annotation has.

    Skeletons, which COCO counts from 1, count from 0 here.
    """
    longest: dict[int | None, int] = {}
    named = any(category.get("keypoints") for category in categories)
    for record in [] if named else records:
        points, category = record.get("keypoints"), as_integer(record.get("category_id"))
        if isinstance(points, list):
            longest[category] = max(longest.get(category, 0), len(points) // 3)
    found: dict[int, ClassKeypoints] = {}
    for category in categories:
        number = as_integer(category["id"]) or 0
        names = category.get("keypoints") or [f"keypoint_{k}" for k in range(longest.get(number, 0))]
        plain = isinstance(names, list) and all(isinstance(name, (str, int)) and name is not True for name in names)
        if not plain:
            problems.add(f"category id {category['id']}: field keypoints is {shown(names)}, no list of names", _REMEDY)
            continue
        try:
            skeleton = [[a - 1, b - 1] for a, b in category.get("skeleton") or ()]
            found[number] = ClassKeypoints.of([str(name) for name in names], skeleton)
        except (TypeError, ValueError) as error:
            problems.add(
                f"category id {category['id']}: fields keypoints and skeleton: {error}",
                "name each keypoint once, and write the skeleton as pairs of positions from 1",
            )
    return found


def keypoint_array(
    records: Sequence[Mapping[str, Any]], boxes: Boxes, keypoints: Mapping[int, ClassKeypoints], problems: Problems
) -> np.ndarray:
    """(n, 3K) float64: the annotations' keypoints, zeros where they have none, K of the category with most of them."""
    counts = {i: len(each.names) for i, each in keypoints.items()}
    values = np.zeros((len(records), max([0, *counts.values()]), 3))
    for index, record in enumerate(records):
        points = record.get("keypoints")
        # Some tools write zeros for objects of classes that have no keypoints.
        if not points or (isinstance(points, list) and not any(points)):
            continue
        expected = counts.get(int(boxes.category[index]), 0)
        fault = _fault(points, expected)
        if fault:
            problems.add(f"annotation id {boxes.id[index]}: field keypoints {fault}", _REMEDY)
            continue
        triples = np.array(points, np.float64).reshape(-1, 3)
        # COCO writes 0, 0, 0 for what is not labelled; others leave coordinates there.
        values[index, :expected] = np.where(triples[:, 2:] > 0, triples, 0)
    return values.reshape(len(records), 3 * values.shape[1])


def _fault(points: Any, expected: int) -> str | None:
    if not isinstance(points, list) or not all(map(is_number, points)):
        return f"is {shown(points)}, not a list of numbers"
    if len(points) != 3 * expected:
        return f"has {len(points)} numbers, but the category has {counted(expected, 'keypoint')}"
    if not np.isfinite(points).all():
        return "is not finite"
    odd = [value for value in points[2::3] if value not in (0, 1, 2)]
    return f"has the visibility {odd[0]:g}" if odd else None
