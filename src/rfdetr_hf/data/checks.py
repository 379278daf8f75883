"""The rules for annotations of all formats: what is an error, what is repaired and counted in the log."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ..choices import counted
from ..tasks import BOXES_ALONE
from .annotations import Annotations, Boxes, Labels, MissingMasks, ReadOptions, name_box
from .conventions import check_convention, to_xywh, warn_of_scale
from .errors import DetectionDataError, Problems
from .masks import Polygons, mask_array, mask_extents, parse_mask

logger = logging.getLogger(__name__)

AS_THEY_ARE = (
    "these rows are used as they are, without such options: load a local copy, and write it again with rfdetr-hf data "
    "convert"
)
"""What is said of rows that nobody settles."""
_EXAMPLES = 5
# More images without objects than that are worth a warning.
BACKGROUND_SHARE = 0.5
# Masks that show nothing, or lie elsewhere than their box, are dropped up to this share of all; more are a fault.
_ODD_MASKS_SHARE = 0.1
# So many boxes of which nothing is left are no slips: their numbers mean something else.
_LOST_SHARE = 0.1
# Of fewer boxes in a sample of a split shares say little.
_ENOUGH_OF_A_SAMPLE = 20
_ROUNDING = 0.5  # pixels, by which a box reaches beyond its image without a word
# Of its box, below which an object is a line, and the width of the thinnest line in pixels.
_LEAST_AREA, _THINNEST = 0.01, 0.25
_APART = 0.1  # overlap (IoU) of a box with its mask's extent below which the two belong to different objects
# What masks and keypoints of so many objects have in common is no chance: the median overlap of masks with boxes of
# sides that rounding does not change, how exactly one line leads from corners to corners, keypoints beside their box.
_ENOUGH_OBJECTS, _SHARP_SIDE, _USUAL_OVERLAP, _EXACTLY, _MANY_BESIDE = 10, 16.0, 0.8, 0.03, 0.15
_SAME_PLACE = 1e-3  # pixels
_SMALLEST_IMAGE = 8  # pixels; in a smaller one an object may be less than a pixel


def settle(
    annotations: Annotations,
    labels: Labels,
    options: ReadOptions,
    problems: Problems,
    masks: Sequence[Any] | None = None,
    written: str | None = "xywh",
) -> Annotations:
    """Check the annotations of a split, and repair what a rule repairs.

    Args:
        annotations: as they were read; categories are labels.
        labels: the class table.
        options: what was asked for.
        problems: with the faults that the reader has found; raised with those that are found here.
        masks: one per box, in any form that `parse_mask` reads, where the task has masks.
        written: how the boxes are written; None for left, top, width, height in pixels that need no check.

    Raises:
        DetectionDataError: faults that no rule repairs.
    """
    find_broken(annotations, problems)
    boxes, given = annotations.boxes, annotations.boxes.bbox
    if written is not None:
        size = annotations.size[boxes.row]
        asked = options.bbox_format is not None
        check_convention(boxes.bbox, size, written, lambda i: name_box(annotations, i), problems, boxes.area, asked)
        boxes = replace(boxes, bbox=to_xywh(boxes.bbox, size, written))
    else:
        _note_other_unit(annotations, problems)
    if not problems.count:
        size = annotations.size[boxes.row]
        warn_of_scale(given, size, written or "xywh", lambda i: name_box(annotations, i), problems.source)
    if masks is not None:
        boxes = replace(boxes, masks=_read_masks(masks, annotations, problems))
    if labels.keypoints is not None and boxes.keypoints is not None:
        # Filled with zeros, or without the columns that no class of the label table has.
        fitted = np.zeros((len(boxes.keypoints), 3 * labels.keypoints.num_keypoints))
        shared = min(fitted.shape[1], boxes.keypoints.shape[1])
        fitted[:, :shared] = boxes.keypoints[:, :shared]
        boxes = replace(boxes, keypoints=fitted)
    problems.raise_if_any()
    before = np.bincount(boxes.row, minlength=len(annotations.size)) > 0
    repeated = written_twice(boxes.row, boxes.category, boxes.iscrowd, boxes.bbox, boxes.masks, boxes.keypoints)
    _report(replace(annotations, boxes=boxes), "dropped", "written twice", repeated)
    settled = _repair_boxes(replace(annotations, boxes=boxes.select(~repeated) if repeated.any() else boxes), problems)
    settled = _settle_odd_masks(settled, options.missing_masks, problems)
    settled = _settle_missing_masks(settled, options.missing_masks, problems)
    settled = _settle_keypoints(settled, problems)
    problems.raise_if_any()
    _report_background(settled, before)
    return settled


def check_as_they_are(annotations: Annotations, sample: bool, tell: bool = True) -> bool:
    """Check the boxes of rows that nobody has settled and that are used as they are, such as those of shards of others.

    Args:
        annotations: in which `find_broken` finds nothing; categories are labels.
        sample: they stand for their split. Shares of other rows, and of few boxes, are no fault of the split.
        tell: warn of what is no error.

    Returns:
        Whether there is something to warn of.

    Raises:
        DetectionDataError: faults of a sample that `settle` would not repair.
    """
    problems, boxes = Problems(annotations.source, quiet=not tell), annotations.boxes
    size, settled = annotations.size[boxes.row], annotations
    check_convention(boxes.bbox, size, "xywh", lambda i: name_box(annotations, i), problems, boxes.area)
    if not problems.count:
        verbs = ("kept", "kept", "kept the area of") if tell else ("", "", "")
        settled = _repair_boxes(annotations, problems, verbs)
    problems.suggest(AS_THEY_ARE)
    try:
        problems.raise_if_any()
    except DetectionDataError as error:
        if sample and len(boxes.row) >= _ENOUGH_OF_A_SAMPLE:
            raise
        if tell:
            logger.warning("%s", error)
        return True
    same = len(settled.boxes.row) == len(boxes.row)
    return not same or not np.allclose(settled.boxes.bbox, boxes.bbox, rtol=0, atol=_ROUNDING)


def _note_other_unit(annotations: Annotations, problems: Problems) -> None:
    """Note a fault when most boxes are less than a pixel: their format has one unit, and the file has another."""
    boxes = annotations.boxes
    sides = boxes.bbox[:, 2:]
    tiny = np.all((sides < 1) & (sides > 0) & (annotations.size[boxes.row] > _SMALLEST_IMAGE), axis=1)
    if tiny.sum() >= max(3, 0.5 * len(tiny)):
        problems.add(
            f"{name_box(annotations, int(np.flatnonzero(tiny)[0]))}: {tiny.sum()} of {len(tiny)} boxes are smaller "
            "than a pixel",
            "write the coordinates in the unit of the format: Label Studio has per cent of the picture's sides, CVAT "
            "pixels, YOLO shares of the sides",
        )


def find_broken(annotations: Annotations, problems: Problems) -> None:
    """Note what no rule can repair: sizes that are none, image ids used twice, boxes and areas that are no numbers."""
    size = annotations.size
    for row in np.flatnonzero((size <= 0).any(axis=1) | (size >= 2**31).any(axis=1)).tolist():
        problems.add(
            f"image id {annotations.image_id[row]}: fields width and height are {size[row].tolist()}",
            "correct the sizes, or leave the fields out to have them read from the files",
        )
    ids, counts = np.unique(annotations.image_id, return_counts=True)
    problems.add_all(
        (
            f"image id {i}: used by {counted(count, 'image')}"
            for i, count in zip(ids[counts > 1], counts[counts > 1], strict=True)
        ),
        "give every image of a split an id of its own (a Hub data set without the column image_id is numbered by row)",
    )
    boxes = annotations.boxes
    # Numbers near the end of what floats hold are no positions, and their products are infinite.
    finite = np.isfinite(boxes.bbox).all(axis=1) & (np.abs(boxes.bbox) < 1e100).all(axis=1)
    problems.add_all(
        (
            f"{name_box(annotations, i)}: field bbox is {boxes.bbox[i].tolist()}, not finite"
            for i in np.flatnonzero(~finite).tolist()
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


def drop_repeated_images(
    annotations: Annotations, files: Sequence[str], problems: Problems, masks: Sequence[Any] | None = None
) -> np.ndarray:
    """The rows to keep when a file is listed under several image ids: all, or the first of entries that agree.

    Args:
        annotations: categories are labels.
        files: one per image; empty where the image has no file.
        problems: collects files whose entries differ.
        masks: of the boxes, as the source has them.
    """
    first: dict[str, int] = {}
    keep = np.ones(len(files), bool)
    repeated = [row for row, file in enumerate(files) if file and first.setdefault(file, row) != row]
    # An id used twice is a fault of its own.
    repeated = [row for row in repeated if annotations.image_id[row] != annotations.image_id[first[files[row]]]]
    if not repeated:
        return keep
    boxes, counts = annotations.boxes, Counter(files)
    members: dict[int, list[tuple]] = {row: [] for row, file in enumerate(files) if counts[file] > 1}
    details: dict[int, list[tuple]] = {row: [] for row in members}
    for index in np.flatnonzero(np.isin(boxes.row, list(members))).tolist():
        place = tuple(np.round(boxes.bbox[index] / _SAME_PLACE).tolist())
        row, box = int(boxes.row[index]), (int(boxes.category[index]), *place)
        points = () if boxes.keypoints is None else tuple(boxes.keypoints[index].tolist())
        members[row].append(box)
        details[row].append((*box, bool(boxes.iscrowd[index]), points, str(masks[index]) if masks else ""))
    for row in repeated:
        original = first[files[row]]
        fault = "boxes"
        if sorted(members[row]) == sorted(members[original]):
            fault = "masks, keypoints or crowds"
            if sorted(details[row]) == sorted(details[original]):
                own = annotations.labelled
                keep[row] = own is not None and own[row] != own[original]
                if not keep[row]:
                    continue
                fault = "labelled classes"
        problems.add(
            f"{annotations.file_name[row]} is listed as image id {annotations.image_id[original]} and as image id "
            f"{annotations.image_id[row]}, with different {fault}",
            "list each file once, with all of its boxes",
        )
    if not keep.all():
        names = ", ".join(str(annotations.file_name[row]) for row in np.flatnonzero(~keep)[:_EXAMPLES].tolist())
        logger.warning(
            "%s: dropped %s of files that are listed twice with the same boxes: %s",
            annotations.source, counted(int((~keep).sum()), "entry"), names,
        )  # fmt: skip
    return keep


def without_repeated_files(
    annotations: Annotations, paths: Sequence[str], masks: list[Any] | None, problems: Problems
) -> tuple[Annotations, list[str], list[Any] | None]:
    """What is left of images, files and masks of boxes by `drop_repeated_images`; links are followed."""
    keep = drop_repeated_images(annotations, [path and os.path.realpath(path) for path in paths], problems, masks)
    if keep.all():
        return annotations, list(paths), masks
    annotations, inside = annotations.keep_images(keep)
    kept = [path for path, stays in zip(paths, keep, strict=True) if stays]
    return annotations, kept, masks and [masks[i] for i in inside.tolist()]


def written_twice(
    row: np.ndarray, category: np.ndarray, iscrowd: np.ndarray, bbox: np.ndarray, masks: Any, keypoints: Any
) -> np.ndarray:
    """(n,) bool, the objects that stand there before: same image, class, kind and place, no other mask or keypoints.

    Args:
        row: (n,) of the image.
        category, iscrowd: (n,)
        bbox: (n, 4) in pixels.
        masks: Arrow array of n masks, null for none; or None.
        keypoints: (n, 3K), zeros for none; or None.
    """
    keys = np.column_stack([row, category, iscrowd, np.round(bbox / _SAME_PLACE)])
    _, place, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    place = place.ravel()
    # What an object has beside its box; 0 is nothing.
    detail = np.zeros(len(keys), np.int64)
    for index in np.flatnonzero(counts[place] > 1).tolist():
        if masks is not None and masks[index].is_valid:
            detail[index] = hash(str(masks[index].as_py())) or 1
        elif keypoints is not None and keypoints[index].any():
            detail[index] = hash(keypoints[index].tobytes()) or 1
    _, first = np.unique(np.column_stack([place, detail]), axis=0, return_index=True)
    repeated = np.ones(len(keys), bool)
    repeated[first] = False
    return repeated | ((detail == 0) & (np.bincount(place, detail != 0) > 0)[place])


def _wrong_areas(boxes: Boxes) -> dict[str, np.ndarray]:
    """Areas that no object in its box has, by reason; (boxes,) bool each."""
    whole = np.maximum(np.abs(boxes.bbox[:, 2:].prod(axis=1)), 1.0)  # of a pixel at least
    share = boxes.area / whole
    given = share[(boxes.area > 0) & np.isfinite(share)]
    # A wire along its box covers more than that; a split of nothing thicker has another unit.
    line = np.minimum(_LEAST_AREA * whole, _THINNEST * np.abs(boxes.bbox[:, 2:]).max(axis=1, initial=0))
    small = (boxes.area < line) & (boxes.area > 0)
    reason = f"field area is below {_LEAST_AREA:.0%} of width x height in most of the split"
    return {
        "field area is 0": boxes.area == 0,
        "field area is more than twice width x height": share > 2,
        reason: small & (len(given) > 2 and 2 * small.sum() > len(given)),
    }


def _repair_boxes(
    annotations: Annotations,
    problems: Problems,
    verbs: tuple[str, str, str] = ("dropped", "clamped", "took width x height as the area of"),
) -> Annotations:
    """Clamp boxes to their images, and drop those of which nothing is left; count both in the log.

    Many boxes of which nothing is left are a fault: the others are then wrong too. Missing areas become width x height
    of the clamped box; given areas stay. Boxes inside their image keep their bits.
    """
    boxes = annotations.boxes
    limit = annotations.size[boxes.row].astype(np.float64)
    start, end = boxes.bbox[:, :2], boxes.bbox[:, :2] + boxes.bbox[:, 2:]
    reversed_ = np.any(boxes.bbox[:, 2:] < 0, axis=1)
    empty = np.any(boxes.bbox[:, 2:] == 0, axis=1) & ~reversed_
    low, high = start.clip(min=0), np.minimum(end, limit)
    outside = ~empty & ~reversed_ & np.any(high <= low, axis=1)
    # Some exporters write a box of zeros into each image without objects.
    mark = ~boxes.bbox.any(axis=1) & ~(boxes.area > 0)
    mark &= ~np.isin(boxes.row, boxes.row[~mark])
    if boxes.masks is not None:
        mark &= boxes.masks.is_null().to_numpy(zero_copy_only=False)
    if boxes.keypoints is not None:
        mark &= ~boxes.keypoints.any(axis=1)
    drop = verbs[0] and "dropped"  # these always: where shards are read, too
    _report(annotations, drop, "of zeros alone, as a mark of images without objects", mark)
    empty &= ~mark
    lost = empty | reversed_ | outside | mark
    clamped = np.any((start < 0) | (end > limit), axis=1) & ~lost
    bbox = np.where(clamped[:, None], np.concatenate([low, high - low], axis=1), boxes.bbox)
    no_area = {reason: mask & ~lost for reason, mask in _wrong_areas(boxes).items()}
    for reason, mask in no_area.items():
        _report(annotations, verbs[2], reason, mask)
    missing = np.logical_or.reduce([np.isnan(boxes.area), *no_area.values()])
    area = np.where(missing, bbox[:, 2] * bbox[:, 3], boxes.area)
    # Exporters round to two decimals or so; such a box is repaired, but not worth a word.
    clearly = clamped & np.any((start < -_ROUNDING) | (end > limit + _ROUNDING), axis=1)
    reasons = {
        "a negative width or height": (
            reversed_, "have ", "their corners are exchanged: write the smaller x and the smaller y first"
        ),
        "no width or no height": (empty, "have ", "draw them again, or delete these annotations"),
        "lie outside their image": (
            outside, "",
            "their numbers are in another order or for another size of picture, and then all boxes are wrong: "
            "correct the boxes or the sizes of the images (bbox_format=… names an order); if the others are right, "
            "delete these annotations",
        ),
    }  # fmt: skip
    for reason, (mask, verb, remedy) in reasons.items():
        if mask.sum() < max(3, _LOST_SHARE * len(mask)):
            _report(annotations, drop if mask is empty else verbs[0], reason, mask)
            continue
        first = [(name_box(annotations, i), boxes.bbox[i], limit[i]) for i in np.flatnonzero(mask)[:3].tolist()]
        examples = "; ".join(f"{name}: {box.round(2).tolist()} in {w:.0f} x {h:.0f}" for name, box, (w, h) in first)
        count = f"{mask.sum()} of {len(mask)} boxes (left, top, width, height)"
        problems.add(f"field bbox: {count} {verb}{reason}, such as {examples}", remedy)
    _report(annotations, verbs[1], "reach beyond their image", clearly)
    return replace(annotations, boxes=replace(boxes, bbox=bbox, area=area).select(~lost))


def _report(annotations: Annotations, verb: str, reason: str, mask: np.ndarray, noun: str = "box") -> None:
    rows = np.flatnonzero(mask)
    if len(rows) and verb:
        names = ", ".join(name_box(annotations, i) for i in rows[:_EXAMPLES].tolist())
        more = ", …" if len(rows) > _EXAMPLES else ""
        logger.warning("%s: %s %s (%s): %s%s", annotations.source, verb, counted(len(rows), noun), reason, names, more)


def _report_background(annotations: Annotations, annotated: np.ndarray) -> None:
    """One line on images without objects; a warning when they are more than what makes sense."""
    total = len(annotations.size)
    filled = np.bincount(annotations.boxes.row, minlength=total) > 0
    empty = int(total - filled.sum())
    lost = int((annotated & ~filled).sum())
    reasons = dict(annotations.background) or {"without annotations": int((~annotated).sum())}
    reasons["that lost all boxes to the rules above"] = lost
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    level = logging.WARNING if empty > BACKGROUND_SHARE * total else logging.INFO
    logger.log(
        level, "%s: %s, %d of them background%s", annotations.source, counted(total, "image"), empty, why and f": {why}"
    )


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


def _settle_odd_masks(annotations: Annotations, missing: MissingMasks, problems: Problems) -> Annotations:
    """Without the objects whose mask shows nothing or lies elsewhere than their box: in training and in scoring.

    Masks without a pixel count as missing where a missing mask is the box.
    """
    boxes = annotations.boxes
    if boxes.masks is None or not len(boxes.masks):
        return annotations
    size = annotations.size[boxes.row]
    # left, top, right, bottom, and whether there are pixels; NaN without a mask
    extent, visible = mask_extents(boxes.masks, size)
    given = boxes.masks.is_valid().to_numpy(zero_copy_only=False)
    share = np.abs(extent).max(axis=1, initial=0)
    normalised = given & ~visible & (share > 0) & (share <= 1.0) & (size > 8).all(axis=1)
    if normalised.sum() >= max(1, 0.5 * (given & ~visible).sum()) and normalised.sum() > _ODD_MASKS_SHARE * given.sum():
        problems.add(
            f"{name_box(annotations, int(np.flatnonzero(normalised)[0]))}: field segmentation of {normalised.sum()} "
            "objects is between 0 and 1",
            "write polygons in pixels: multiply them by width and height",
        )
        return annotations
    low = np.maximum(extent[:, :2], boxes.bbox[:, :2])
    high = np.minimum(extent[:, 2:], boxes.bbox[:, :2] + boxes.bbox[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    union = boxes.bbox[:, 2:].prod(axis=1) + (extent[:, 2:] - extent[:, :2]).prod(axis=1) - shared
    apart = given & visible & ~boxes.iscrowd & (shared < _APART * union)
    large = given & visible & ~boxes.iscrowd & (boxes.bbox[:, 2:] >= _SHARP_SIDE).all(axis=1)
    if _note_moved_masks(
        annotations, extent, np.divide(shared, union, where=large, out=np.ones(len(union))), large, problems
    ):
        return annotations
    hollow = given & ~visible
    if missing == "box" and hollow.any():
        _report(annotations, "used the box of", "their mask covers no pixel", hollow, "object")
        keep = pa.array([None if empty else i for i, empty in enumerate(hollow.tolist())], pa.int64())
        boxes, hollow = replace(boxes, masks=boxes.masks.take(keep)), np.zeros_like(hollow)
    odd = apart | hollow
    if odd.sum() > _ODD_MASKS_SHARE * given.sum():
        for mask, text in ((hollow, "covers no pixel of the image"), (apart, "lies elsewhere than the box")):
            problems.add_all(
                (f"{name_box(annotations, i)}: field segmentation {text}" for i in np.flatnonzero(mask).tolist()),
                "correct these masks, delete the annotations, or load the data with task='detection'",
            )
        return annotations
    _report(annotations, "dropped", "their mask covers no pixel of the image", hollow, "object")
    _report(annotations, "dropped", "their mask lies elsewhere than their box", apart, "object")
    return replace(annotations, boxes=boxes.select(~odd))


def _note_moved_masks(
    annotations: Annotations, extent: np.ndarray, overlap: np.ndarray, large: np.ndarray, problems: Problems
) -> bool:
    """Whether the masks of a split lie beside their boxes by one scale and shift, a fault; warn where only beside."""
    rows = np.flatnonzero(large)
    if len(rows) < _ENOUGH_OBJECTS or np.median(overlap[rows]) >= _USUAL_OVERLAP:
        return False
    box, mask = annotations.boxes.bbox[rows], extent[rows]
    box = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1).reshape(-1, 2, 2)  # (n, corner, axis)
    mask = mask.reshape(-1, 2, 2)
    lines = [np.polyfit(mask[..., axis].ravel(), box[..., axis].ravel(), 1) for axis in (0, 1)]
    moved = np.stack([np.polyval(line, mask[..., axis]) for axis, line in enumerate(lines)], axis=2)
    worst = rows[np.argsort(overlap[rows], kind="stable")[:3]].tolist()
    examples = ", ".join(f"{name_box(annotations, i)} ({overlap[i]:.2f})" for i in worst)
    text = (
        f"field segmentation: the median overlap (IoU) of {len(rows)} masks with their boxes is "
        f"{np.median(overlap[rows]):.2f}, such as {examples}"
    )
    side = np.diff(box, axis=1).min(axis=(1, 2))
    beside = np.abs(moved - box).max(axis=(1, 2)) / side
    # Objects at one place, such as of a fixed camera, say nothing: a margin round them is a scale too.
    steps = box.mean(axis=1) - mask.mean(axis=1)
    spread = np.abs(steps - np.median(steps, axis=0)).max(axis=1) / side
    scales = np.array([line[0] for line in lines])
    is_told = np.median(spread) > 2 * _EXACTLY or (np.abs(scales - 1) < _EXACTLY).all()
    if np.median(beside) < _EXACTLY and is_told:
        (a, b), (c, d) = np.round(lines, 3).tolist()
        problems.add(
            f"{text}; x becomes that of the box by {a:g} x + {b:g}, and y by {c:g} y + {d:g}",
            f"the masks are of another size or part of the pictures: correct them, or {BOXES_ALONE}",
        )
        return True
    logger.warning("%s: %s; look at the masks in rfdetr-hf data preview", problems.source, text)
    return False


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
    if missing == "error" and len(without) == len(boxes.row) > 1:
        fault = f"none of the {len(without)} objects has a mask (polygon, run lengths or mask file)"
        problems.add(fault, f"{BOXES_ALONE}, or use the boxes as masks (--missing_masks box)")
        return annotations
    if missing == "error":
        problems.add_all(
            (f"{name_box(annotations, i)}: field segmentation is missing or empty" for i in without.tolist()),
            "draw or delete these, or use the boxes as masks (--missing_masks box, missing_masks='box')",
        )
        return annotations
    x, y, width, height = boxes.bbox[without].T
    corners = np.stack([x, y, x + width, y, x + width, y + height, x, y + height], axis=1)
    order = np.arange(len(boxes.row))
    order[without] = len(boxes.row) + np.arange(len(without))
    filled = pa.concat_arrays([boxes.masks, mask_array([[polygon] for polygon in corners])]).take(pa.array(order))
    count = counted(len(without), "object")
    logger.warning("%s: took the box as the mask of %s without one", annotations.source, count)
    return replace(annotations, boxes=replace(boxes, masks=filled))


def _settle_keypoints(annotations: Annotations, problems: Problems) -> Annotations:
    """Keypoints outside their image are not labelled, in training and in scoring; counted in the log."""
    boxes: Boxes = annotations.boxes
    if boxes.keypoints is None or not boxes.keypoints.size:
        return annotations
    points = boxes.keypoints.reshape(len(boxes.row), -1, 3)
    labelled = points[..., 2] > 0
    size = annotations.size[boxes.row][:, None]
    shares = labelled & (np.abs(points[..., :2]) <= 1).all(axis=-1) & (size > 8).all(axis=-1)
    if shares.sum() >= max(3, 0.5 * labelled.sum()):
        problems.add(
            f"{name_box(annotations, int(np.flatnonzero(shares.any(axis=1))[0]))}: field keypoints: {shares.sum()} of "
            f"{labelled.sum()} keypoints are between 0 and 1",
            "write keypoints in pixels: multiply x and y by width and height",
        )
        return annotations
    outside = labelled & ((points[..., :2] < 0) | (points[..., :2] > size)).any(axis=-1)
    _report(
        annotations,
        "took as not labelled the keypoints of",
        "they lie outside their image",
        np.any(outside, axis=1),
        "object",
    )
    points = np.where(outside[..., None], 0.0, points)
    # Of a real object some keypoint is in its box, or not far beside it.
    low, high = boxes.bbox[:, None, :2], boxes.bbox[:, None, :2] + boxes.bbox[:, None, 2:]
    margin = (high - low) / 10
    beside = (points[..., 2] > 0) & ((points[..., :2] < low - margin) | (points[..., :2] > high + margin)).any(axis=-1)
    if beside.sum() > _MANY_BESIDE * labelled.sum() and len(boxes.row) >= _ENOUGH_OBJECTS:
        examples = ", ".join(name_box(annotations, i) for i in np.flatnonzero(beside.any(axis=1))[:3].tolist())
        logger.warning(
            "%s: field keypoints: %d of %d keypoints lie beside the box of their object, such as of %s: are they of "
            "another size of picture? look at them in rfdetr-hf data preview",
            annotations.source, beside.sum(), labelled.sum(), examples,
        )  # fmt: skip
    far = ((points[..., :2] < low - (high - low) / 2) | (points[..., :2] > high + (high - low) / 2)).any(axis=-1)
    labelled = points[..., 2] > 0
    apart = np.asarray(labelled.any(axis=1) & ~(labelled & ~far).any(axis=1))
    if apart.sum() > _ODD_MASKS_SHARE * labelled.any(axis=1).sum():
        problems.add_all(
            (
                f"{name_box(annotations, i)}: field keypoints: all lie elsewhere than the box"
                for i in np.flatnonzero(apart).tolist()
            ),
            f"correct these keypoints or boxes, delete the annotations, or {BOXES_ALONE}",
        )
        return annotations
    _report(
        annotations, "took as not labelled the keypoints of", "they all lie elsewhere than the box", apart, "object"
    )
    flat = np.where(apart[:, None, None], 0.0, points).reshape(boxes.keypoints.shape)
    return replace(annotations, boxes=replace(boxes, keypoints=flat))
