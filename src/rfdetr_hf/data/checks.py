"""The rules for annotations of all formats: what is an error, what is repaired and counted in the log."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from .annotations import Annotations, Labels, MissingMasks, ReadOptions, name_box
from .errors import Problems
from .masks import Polygons, mask_array, parse_mask

logger = logging.getLogger(__name__)

_EXAMPLES = 5


def settle(
    annotations: Annotations,
    labels: Labels,
    options: ReadOptions,
    problems: Problems,
    masks: Sequence[Any] | None = None,
) -> Annotations:
    """Check the annotations of a split, and repair what a rule repairs.

    Args:
        annotations: as they were read; categories are labels.
        labels: the class table.
        options: what was asked for.
        problems: with the faults that the reader has found; raised with those that are found here.
        masks: one per box, in any form that `parse_mask` reads, where the task has masks.

    Raises:
        DetectionDataError: faults that no rule repairs.
    """
    find_broken(annotations, problems)
    boxes = annotations.boxes
    if masks is not None:
        boxes = replace(boxes, masks=_read_masks(masks, annotations, problems))
    if labels.keypoints is not None and boxes.keypoints is not None:
        # Filled with zeros, or without the columns that no class of the label table has.
        fitted = np.zeros((len(boxes.keypoints), 3 * labels.keypoints.num_keypoints))
        shared = min(fitted.shape[1], boxes.keypoints.shape[1])
        fitted[:, :shared] = boxes.keypoints[:, :shared]
        boxes = replace(boxes, keypoints=fitted)
    problems.raise_if_any()
    settled = _settle_missing_masks(_repair_boxes(replace(annotations, boxes=boxes)), options.missing_masks, problems)
    problems.raise_if_any()
    return settled


def find_broken(annotations: Annotations, problems: Problems) -> None:
    """Note what no rule can repair: sizes that are none, image ids used twice, boxes and areas that are no numbers."""
    for row in np.flatnonzero((annotations.size <= 0).any(axis=1)):
        problems.add(
            f"image id {annotations.image_id[row]}: fields width and height are {annotations.size[row].tolist()}",
            "correct the sizes, or leave the fields out to have them read from the files",
        )
    ids, counts = np.unique(annotations.image_id, return_counts=True)
    problems.add_all(
        (f"image id {i}: used by {count} images" for i, count in zip(ids[counts > 1], counts[counts > 1], strict=True)),
        "give every image of a split an id of its own (a Hub data set without the column image_id is numbered by row)",
    )
    boxes = annotations.boxes
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field bbox is {boxes.bbox[i].tolist()}, not finite"
            for i in np.flatnonzero(~np.isfinite(boxes.bbox).all(axis=1)).tolist()
        ),
        "correct these boxes or delete the annotations",
    )
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field area is {boxes.area[i]}"
            for i in np.flatnonzero(np.isinf(boxes.area) | (boxes.area < 0)).tolist()
        ),
        "correct the areas, or leave the field out to use width x height",
    )


def _repair_boxes(annotations: Annotations) -> Annotations:
    """Clamp boxes to their images, and drop those of which nothing is left; count both in the log.

    Missing areas become width x height of the clamped box; given areas stay. Boxes inside their image keep their bits.
    """
    boxes = annotations.boxes
    limit = annotations.size[boxes.row].astype(np.float64)
    start, end = boxes.bbox[:, :2], boxes.bbox[:, :2] + boxes.bbox[:, 2:]
    empty = np.any(boxes.bbox[:, 2:] <= 0, axis=1)
    low, high = start.clip(min=0), np.minimum(end, limit)
    outside = ~empty & np.any(high <= low, axis=1)
    clamped = np.any((start < 0) | (end > limit), axis=1) & ~empty & ~outside
    bbox = np.where(clamped[:, None], np.concatenate([low, high - low], axis=1), boxes.bbox)
    area = np.where(np.isnan(boxes.area), bbox[:, 2] * bbox[:, 3], boxes.area)
    # Exporters round to two decimals or so; such a box is repaired, but not worth a word.
    clearly = clamped & np.any((start < -0.5) | (end > limit + 0.5), axis=1)
    _report(annotations, "dropped", "no width or no height", empty)
    _report(annotations, "dropped", "lie outside their image", outside)
    _report(annotations, "clamped", "reach beyond their image", clearly)
    return replace(annotations, boxes=replace(boxes, bbox=bbox, area=area).select(~(empty | outside)))


def _report(annotations: Annotations, verb: str, reason: str, mask: np.ndarray) -> None:
    rows = np.flatnonzero(mask)
    if len(rows):
        names = ", ".join(name_box(annotations, i) for i in rows[:_EXAMPLES])
        more = ", …" if len(rows) > _EXAMPLES else ""
        logger.warning("%s: %s %d boxes (%s): %s%s", annotations.source, verb, len(rows), reason, names, more)


def _read_masks(values: Sequence[Any], annotations: Annotations, problems: Problems) -> pa.StructArray:
    """The masks of all boxes, null where there is none; those that are not understood are noted.

    Args:
        values: one per box, in any form that `parse_mask` reads.
        annotations: with the sizes of the images.
        problems: collects the faults.
    """
    parsed: list[Polygons | str | None] = []
    for index, value in enumerate(values):
        width, height = annotations.size[annotations.boxes.row[index]].tolist()
        try:
            parsed.append(parse_mask(value, height, width))
        except ValueError as error:
            parsed.append(None)
            problems.add(
                f"{name_box(annotations, index)}: field segmentation {error}",
                "write masks as polygons [[x, y, x, y, …], …] in pixels or as run-length encodings of the image's size",
            )
    return mask_array(parsed)


def _settle_missing_masks(annotations: Annotations, missing: MissingMasks, problems: Problems) -> Annotations:
    """Every box with a mask: a box without one is a fault, or is its own mask.

    Args:
        annotations: repaired.
        missing: "error" or "box".
        problems: collects the faults.
    """
    boxes = annotations.boxes
    if boxes.masks is None or not boxes.masks.null_count:
        return annotations
    without = np.flatnonzero(boxes.masks.is_null().to_numpy(zero_copy_only=False))
    if missing == "error":
        problems.add_all(
            (f"{name_box(annotations, i)}: field segmentation is missing or empty" for i in without.tolist()),
            "draw these masks, delete the annotations, or pass missing_masks='box' to use the boxes as masks",
        )
        return annotations
    x, y, width, height = boxes.bbox[without].T
    corners = np.stack([x, y, x + width, y, x + width, y + height, x, y + height], axis=1)
    order = np.arange(len(boxes.row))
    order[without] = len(boxes.row) + np.arange(len(without))
    filled = pa.concat_arrays([boxes.masks, mask_array([[polygon] for polygon in corners])]).take(pa.array(order))
    logger.warning("%s: %d objects without a mask use their box as mask", annotations.source, len(without))
    return replace(annotations, boxes=replace(boxes, masks=filled))
