"""How boxes are written, and whether the numbers agree with it."""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
# How far two corners go together (correlation over a split) where the format is asked for, and where nobody says so.
_AS_ONE, _NEAR_EACH_OTHER = 0.9, 0.5
# Shares of boxes that no format may exceed then; of few boxes chance decides much.
_NO_FORMAT, _NO_FORMAT_OF_FEW = 2 / 3, 0.4
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
    usable = np.asarray(np.isfinite(values).all(axis=1) & (size > 0).all(axis=1))
    fits = {form: _fits(values, size, form) & usable for form in BOX_FORMATS}
    if area is not None and _note_by_area(values, size, written, fits, area, name, problems):
        return
    total = int(usable.sum())
    rival = _strongest_rival(fits, size, written, total)
    corners = _out_of_order(values, size, written, fits, usable, rival)
    if corners == written:
        return  # the repair of boxes names them
    if corners is not None:
        rows = np.flatnonzero(usable & (values[:, 2:] < values[:, :2]).any(axis=1))
        problems.add(
            f"field bbox: {len(rows)} of {total} boxes make sense only as two corners in another order than that of "
            f"{corners!r} ({_MEANING[corners.rstrip('n')]}), such as {_examples(values, rows, name)}",
            f"write the smaller x and the smaller y first, and pass bbox_format={corners!r}",
        )
        return
    if rival is None:
        return
    kind = rival.form.rstrip("n")
    scale = "between 0 and 1" if rival.form.endswith("n") else "pixels"
    text = (
        f"field bbox: {rival.count} of {total} boxes make sense only as {rival.form!r} ({_MEANING[kind]}, {scale}), "
        f"{rival.against} only as {written!r}, such as {_examples(values, np.flatnonzero(rival.speaking), name)}"
    )
    remedy = f"pass bbox_format={rival.form!r}, or correct the boxes"
    if kind in _EXCHANGED:
        remedy += "" if asked else f"; if they are right and reach out of their images, pass bbox_format={written!r}"
        certain = not asked and _reach_far_out(values[rival.speaking], size[rival.speaking], written, total)
        doubtful = True
    else:
        certain, doubtful = rival.is_certain(written, total), rival.is_doubtful(written, total)
    if certain:
        problems.add(text, remedy)
    elif doubtful and not problems.quiet:
        logger.warning("%s: %s; if that is so, %s", problems.source, text, remedy)


class _Rival(NamedTuple):
    """Another format that boxes speak for.

    Attributes:
        form: one of `BOX_FORMATS`.
        speaking: (n,) bool, the boxes that make sense only so.
        count: of these.
        against: how many make sense only as they are taken.
    """

    form: str
    speaking: np.ndarray
    count: int
    against: int

    def is_certain(self, written: str, total: int) -> bool:
        """Whether boxes of x before y are an error."""
        count, against = self.count, self.against
        if self.form.endswith("n") and not written.endswith("n"):
            return count >= 0.5 * total or count >= 3
        return (
            (count >= 3 and count >= 0.3 * total and not against)
            or (count >= 2 and total >= 10 and count >= 0.1 * total and not against)
            or (count >= 5 and count >= 0.1 * total and against <= 0.1 * count)
        )

    def is_doubtful(self, written: str, total: int) -> bool:
        """Whether they are worth a warning.

        Many boxes of each format are of two sources. Of boxes in their own format a part always speaks against others.
        """
        count, against = self.count, self.against
        normalised = self.form.endswith("n") and not written.endswith("n")
        many = count >= 0.1 * total and (count >= 3 or against <= 0.25 * count)
        return normalised or many or (count >= 2 and total >= 20 and not against)


def _strongest_rival(fits: Mapping[str, np.ndarray], size: np.ndarray, written: str, total: int) -> _Rival | None:
    """The format that most boxes speak for, less those that speak against it."""
    best = None
    for form, there in fits.items():
        if form == written or (written.endswith("n") and not form.endswith("n")):
            continue
        if form.endswith("n") and not written.endswith("n"):
            there = there & (size > _SMALLEST_IMAGE).all(axis=1)
        speaking = there & ~fits[written]
        rival = _Rival(form, speaking, int(speaking.sum()), int((fits[written] & ~there).sum()))
        # Boxes that reach out of their picture below speak for x and y exchanged too, but then others speak against it.
        if form.rstrip("n") in _EXCHANGED and (rival.against or rival.count < 3 or there.sum() < _NEARLY_ALL * total):
            continue
        if best is None or rival.count - rival.against > best.count - best.against:
            best = rival
    return best if best is not None and best.count else None


def _examples(
    values: np.ndarray, rows: np.ndarray, name: Callable[[int], str], note: Callable[[int], str] = lambda i: ""
) -> str:
    """The first of some boxes, with what `note` says of each."""
    shown = ((i, [round(v, 4) for v in values[i].tolist()]) for i in rows[:_EXAMPLES].tolist())
    return ", ".join(f"{name(i)} {numbers}{note(i)}" for i, numbers in shown)


def _reach_far_out(values: np.ndarray, size: np.ndarray, written: str, total: int) -> bool:
    """Whether boxes reach out of their image so far that of `total` boxes no annotator means it."""
    boxes = to_xywh(values, size.astype(np.float64), written)
    # The share of a side that is outside.
    outside = ((boxes[:, :2] + boxes[:, 2:] - size) / boxes[:, 2:]).max(axis=1)
    centres, many = int((outside > 0.5).sum()), int((outside > _OUT).sum())
    return centres >= max(_ENOUGH_CENTRES, _CENTRES_SHARE * total) or many >= max(_ENOUGH_CENTRES, _OUT_SHARE * total)


def _out_of_order(
    values: np.ndarray, size: np.ndarray, written: str, fits: Mapping[str, np.ndarray], usable: np.ndarray,
    rival: _Rival | None,
) -> str | None:  # fmt: skip
    """The format of two corners that boxes are in but for the order of these; a part then fits other formats by chance.

    Any two points of an image are corners in some order: so where nobody says so no format may fit most boxes, and they
    must lie near each other, as the corners of objects do.
    """
    total, asked = int(usable.sum()), written.rstrip("n") in ("xyxy", "yxyx")
    if (asked and rival is None) or not total:
        return None
    firsts, seconds = values[:, :2], values[:, 2:]
    wrong = usable & (seconds < firsts).any(axis=1)
    mended = np.concatenate([np.minimum(firsts, seconds), np.maximum(firsts, seconds)], axis=1)
    rows = usable if asked else wrong
    shares = values[rows] / np.tile(size[rows], 2)  # of small objects both corners are nearly one
    together = len(shares) >= _MANY_BOXES or (not asked and len(shares) >= 4 and wrong.sum() == total)
    if together:
        spread, centred = shares.std(axis=0), shares - shares.mean(axis=0)
        moved = (centred[:, :2] * centred[:, 2:]).mean(axis=0)
        together = bool((moved > (_AS_ONE if asked else _NEAR_EACH_OTHER) * spread[:2] * spread[2:]).all())
    plain = fits[rival.form].sum() if asked and rival else max(fit.sum() for fit in fits.values())
    for form in (written,) if asked else ("xyxy", "yxyx", "xyxyn", "yxyxn"):
        if written.endswith("n") and not form.endswith("n"):
            continue
        fitting = int((_fits(mended, size, form) & usable).sum())
        if asked and (fitting - plain > _BY_CHANCE * total or (together and fitting >= plain)):
            return form
        most = (_NO_FORMAT if len(shares) >= _MANY_BOXES else _NO_FORMAT_OF_FEW) * total
        if not asked and together and plain <= most and fitting >= _NEARLY_ALL * total:
            return form
    return None


def _note_by_area(
    values: np.ndarray, size: np.ndarray, written: str, fits: Mapping[str, np.ndarray], area: np.ndarray,
    name: Callable[[int], str], problems: Problems,
) -> bool:  # fmt: skip
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
        against = (fits[written] & ~fits[other])[known]
        if there.mean() > _NEARLY_ALL and not against.any():
            examples = _examples(values, known, name, lambda i: f" area {area[i]:g}")
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
    examples = _examples(values, usable, name, lambda i: f" in {size[i, 0]} x {size[i, 1]}")
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
