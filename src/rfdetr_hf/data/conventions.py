"""How boxes are written, and whether the numbers agree with it."""

import logging
from collections.abc import Callable

import numpy as np

from ..choices import BOX_FORMATS
from .errors import Problems

logger = logging.getLogger(__name__)

_MEANING = {
    "xywh": "left, top, width, height", "xyxy": "left, top, right, bottom", "cxcywh": "centre, width, height",
    "yxhw": "top, left, height, width", "yxyx": "top, left, bottom, right", "cycxhw": "centre y, x, height, width",
}  # fmt: skip
_EXCHANGED = {"yxhw": "xywh", "yxyx": "xyxy", "cycxhw": "cxcywh"}
# With x and y exchanged nearly all boxes must lie inside, or it is something else.
_NEARLY_ALL = 0.95
_SAME_AREA = 0.02  # of an area: what is rounded
# Of corners in the wrong order a part fits another format, and that much not.
_BY_CHANCE, _MANY_BOXES = 0.05, 10
# That x and y are exchanged: boxes whose centre lies outside their image, or, where objects are large, of a fifth of
# all boxes more than a tenth of a side. Objects that are annotated beyond one border of their image are fewer or less.
_ENOUGH_CENTRES, _CENTRES_SHARE, _OUT, _OUT_SHARE = 5, 0.02, 0.1, 0.2
# Boxes may reach out of their image by so much and are still taken for inside: annotators and exporters round.
_SLACK_SHARE, _SLACK_PIXELS = 0.01, 1.0
# In smaller images a box of one pixel looks like a normalised one.
_SMALLEST_IMAGE = 8
_EXAMPLES = 3
# Of fewer boxes it is no wonder that they all lie in one corner.
_ENOUGH_BOXES = 20
# Shares of the sides that boxes of a copy of half the size reach, rounding included.
_HALF = 0.51
_HUGE = 1e100


def to_xywh(values: np.ndarray, size: np.ndarray, written: str) -> np.ndarray:
    """(n, 4) left, top, width, height in pixels.

    Args:
        values: (n, 4) as they are written.
        size: (n, 2) width and height of each box's image.
        written: one of `BOX_FORMATS`; an "n" at the end means that numbers are shares of width and height.
    """
    if written.rstrip("n") in _EXCHANGED:
        values, written = values[:, [1, 0, 3, 2]], _EXCHANGED[written.rstrip("n")] + "n" * written.endswith("n")
    if written.endswith("n"):
        values, written = values * np.tile(size, 2), written[:-1]
    first, second = values[:, :2], values[:, 2:]
    if written == "xyxy":
        return np.concatenate([first, second - first], axis=1)
    return np.concatenate([first - second / 2, second], axis=1) if written == "cxcywh" else values


def check_convention(
    values: np.ndarray, size: np.ndarray, written: str, name: Callable[[int], str], problems: Problems,
    area: np.ndarray | None = None, asked: bool = False,
) -> None:  # fmt: skip
    """Note a fault when the boxes of a split are written in another format; warn when they may be.

    A box speaks for another format when it lies inside its image as that format says, and not as `written` says; it
    speaks against it when it is the other way round. It is the split's boxes together that decide.

    Args:
        values: (n, 4) as they are written.
        size: (n, 2) of each box's image.
        written: what they are taken for.
        name: of a box, for examples.
        problems: collects the fault.
        area: (n,) of each box, NaN where there is none.
        asked: the user says that they are written so; then an order of x and y that fits better is a warning.
    """
    usable = np.isfinite(values).all(axis=1) & (size > 0).all(axis=1)
    here = _fits(values, size, written) & usable
    total = int(usable.sum())
    if area is not None and _note_by_area(values, size, written, area, name, problems):
        return
    best: tuple[int, int, str, np.ndarray] | None = None
    for other in BOX_FORMATS:
        if other == written or (written.endswith("n") and not other.endswith("n")):
            continue
        there = _fits(values, size, other) & usable
        if other.endswith("n") and not written.endswith("n"):
            there &= (size > _SMALLEST_IMAGE).all(axis=1)
        speak_for, against = there & ~here, int((here & ~there).sum())
        count = int(speak_for.sum())
        # Boxes that reach out of their picture below speak for x and y exchanged too, but then others speak against it.
        if other.rstrip("n") in _EXCHANGED and (against or count < 3 or there.sum() < _NEARLY_ALL * total):
            continue
        if best is None or count - against > best[0] - best[1]:
            best = count, against, other, speak_for
    if best is None or not best[0]:
        return
    count, against, other, speak_for = best
    if written.rstrip("n") in ("xyxy", "yxyx") and _exchanged_corners(values[usable], size[usable], written, other):
        return  # the repair of boxes names them
    examples = ", ".join(
        f"{name(i)} {[round(v, 4) for v in values[i].tolist()]}" for i in np.flatnonzero(speak_for)[:_EXAMPLES].tolist()
    )
    scale = "between 0 and 1" if other.endswith("n") else "pixels"
    text = (
        f"field bbox: {count} of {total} boxes make sense only as {other!r} ({_MEANING[other.rstrip('n')]}, {scale}), "
        f"{against} only as {written!r}, such as {examples}"
    )
    remedy = f"pass bbox_format={other!r}, or correct the boxes"
    normalised = other.endswith("n") and not written.endswith("n")
    exchanged = other.rstrip("n") in _EXCHANGED
    if exchanged:
        remedy += "" if asked else f"; if they are right and reach out of their images, pass bbox_format={written!r}"
        certain = not asked and _reach_far_out(values[speak_for], size[speak_for], written, total)
    elif normalised:
        certain = count >= 0.5 * total or count >= 3
    else:
        certain = (
            (count >= 3 and count >= 0.3 * total and not against)
            or (count >= 2 and total >= 10 and count >= 0.1 * total and not against)
            or (count >= 5 and count >= 0.1 * total and against <= 0.1 * count)
        )
    if certain:
        problems.add(text, remedy)
    # Many boxes of each format are of two sources. Of boxes in their own format a part always speaks against others.
    elif not problems.quiet and (
        normalised
        or exchanged
        or (count >= 0.1 * total and (count >= 3 or against <= 0.25 * count))
        or (count >= 2 and total >= 20 and not against)
    ):
        logger.warning("%s: %s; if that is so, %s", problems.source, text, remedy)


def _reach_far_out(values: np.ndarray, size: np.ndarray, written: str, total: int) -> bool:
    """Whether boxes reach out of their image so far that of `total` boxes no annotator means it."""
    boxes = to_xywh(values, size.astype(np.float64), written)
    # The share of a side that is outside.
    outside = ((boxes[:, :2] + boxes[:, 2:] - size) / boxes[:, 2:]).max(axis=1)
    centres, many = int((outside > 0.5).sum()), int((outside > _OUT).sum())
    return centres >= max(_ENOUGH_CENTRES, _CENTRES_SHARE * total) or many >= max(_ENOUGH_CENTRES, _OUT_SHARE * total)


def _exchanged_corners(values: np.ndarray, size: np.ndarray, written: str, other: str) -> bool:
    """Whether boxes look more like corners in the wrong order, of which a part fits another format by chance."""
    firsts, seconds = values[:, :2], values[:, 2:]
    mended = np.concatenate([np.minimum(firsts, seconds), np.maximum(firsts, seconds)], axis=1)
    explained = int(_fits(mended, size, written).sum()) - int(_fits(values, size, other).sum())
    if len(values) < _MANY_BOXES or explained < 0:
        return explained > _BY_CHANCE * len(values)
    shares = values / np.tile(size, 2)  # of small objects both corners are nearly one
    spread = shares.std(axis=0)
    moved = (shares - shares.mean(axis=0))[:, :2] * (shares - shares.mean(axis=0))[:, 2:]
    return explained > _BY_CHANCE * len(values) or bool((moved.mean(axis=0) > 0.9 * spread[:2] * spread[2:]).all())


def _note_by_area(
    values: np.ndarray, size: np.ndarray, written: str, area: np.ndarray, name: Callable[[int], str], problems: Problems
) -> bool:
    """Note a fault when nearly all areas are width x height in another format, and none in this one."""
    known = np.flatnonzero(np.isfinite(values).all(axis=1) & (size > 0).all(axis=1) & np.isfinite(area) & (area > 0))
    if len(known) < _EXAMPLES:
        return False

    def agree(kind: str) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            sides = to_xywh(values[known], size[known].astype(np.float64), kind)[:, 2:]
            return (sides > 0).all(axis=1) & (np.abs(sides.prod(axis=1) / area[known] - 1) < _SAME_AREA)

    here = agree(written)
    if here.mean() >= 1 - _NEARLY_ALL or len(np.unique(values[known], axis=0)) < _EXAMPLES:  # of one box it is chance
        return False
    for other in ("xywh", "xyxy", "xywhn", "xyxyn"):
        there = agree(other)
        against = (_fits(values, size, written) & ~_fits(values, size, other))[known]
        if there.mean() > _NEARLY_ALL and not against.any():
            examples = ", ".join(
                f"{name(i)} {[round(v, 4) for v in values[i].tolist()]} area {area[i]:g}"
                for i in known[:_EXAMPLES].tolist()
            )
            problems.add(
                f"field bbox: the areas of {there.sum()} of {len(known)} boxes are those of {other!r} "
                f"({_MEANING[other.rstrip('n')]}), and of {here.sum()} those of {written!r}, such as {examples}",
                f"pass bbox_format={other!r}, or correct the boxes or the areas",
            )
            return True
    return False


def warn_of_scale(values: np.ndarray, size: np.ndarray, written: str, name: Callable[[int], str], source: str) -> None:
    """Warn when all boxes of a split lie where they lie if their numbers are per cent, or of a smaller picture.

    Args:
        values, size, written, name: as for `check_convention`.
        source: the file, for the message.
    """
    usable = np.isfinite(values).all(axis=1) & (np.abs(values) < _HUGE).all(axis=1) & (size > 0).all(axis=1)
    usable = np.flatnonzero(usable)
    usable = usable[(to_xywh(values[usable], size[usable], written)[:, 2:] > 0).all(axis=1)]
    if len(usable) < _ENOUGH_BOXES:
        return
    numbers, sizes = values[usable], size[usable].astype(np.float64)
    boxes = to_xywh(numbers, sizes, written)
    reach = ((boxes[:, :2] + boxes[:, 2:]) / sizes).max(axis=0)
    if not written.endswith("n") and 1 < numbers.max() <= 100 and sizes.min() >= 2 * 100:
        seen, cause = "no number is above 100", "they are per cent of the picture's sides"
    elif (reach <= _HALF).all():
        seen = f"no box reaches beyond {reach[0]:.0%} of the width and {reach[1]:.0%} of the height of its picture"
        cause = "they are of a smaller copy of the pictures"
    else:
        return
    examples = ", ".join(
        f"{name(i)} {[round(v, 4) for v in values[i].tolist()]} in {size[i, 0]} x {size[i, 1]}"
        for i in usable[:_EXAMPLES].tolist()
    )
    logger.warning(
        "%s: field bbox: of %d boxes %s, such as %s; if %s, write them in the unit of the format and for the size of "
        "the pictures", source, len(numbers), seen, examples, cause,
    )  # fmt: skip


def _fits(values: np.ndarray, size: np.ndarray, written: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = to_xywh(values, size.astype(np.float64), written)
        slack = _SLACK_SHARE * size + (0 if written.endswith("n") else _SLACK_PIXELS)
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        inside = ((low >= -slack) & (high <= size + slack)).all(axis=1)
        # No side of a pixel is no object: that is how shares look when they are taken for pixels.
        large = np.ones(len(boxes), bool) if written.endswith("n") else boxes[:, 2:].max(axis=1, initial=0) >= 1
        return inside & large & (boxes[:, 2:] > 0).all(axis=1)
