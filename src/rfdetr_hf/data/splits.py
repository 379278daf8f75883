"""Names of splits: what sources call them, and which ones become train, validation and test."""

import logging
import re
from collections.abc import Sequence

from .errors import DetectionDataError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def canonical_split(name: str) -> str | None:
    """Our name for names such as "train2017", "valid" or "annotations_val"; None when it is unclear."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)}
    return found.pop() if len(found) == 1 else None


def choose_splits(
    found: Sequence[str],
    source: str,
    train: str | None,
    validation: str | None,
    test: str | None,
    need_train: bool = True,
) -> dict[str, str]:
    """Which split of the source each of ours is: ours -> the source's, in the order train, validation, test.

    Args:
        found: the splits that the source has.
        source: names it in errors.
        train, validation, test: the source's names where the user gave them; None finds them by name. A source with
            one split of no telling name has only a training split.
        need_train: whether a source without a training split is an error.

    Raises:
        DetectionDataError: a named split does not exist, or a name fits several; says what there is.
    """
    chosen: dict[str, str] = {}
    for ours, given in (("train", train), ("validation", validation), ("test", test)):
        if given is not None and given not in found:
            raise DetectionDataError(f"{source}: {ours}_split={given!r} does not exist; the splits are {list(found)}")
        name = given if given is not None else _recognised(found, ours, source)
        if name is not None:
            chosen[ours] = name
    if "train" not in chosen and len(found) == 1 and not chosen:
        chosen["train"] = found[0]
    if need_train and "train" not in chosen:
        raise DetectionDataError(
            f"{source}: no training split among {list(found)}; name it with train_split=…, "
            "or give the label table with class_names=… to load the others without it"
        )
    unused = [name for name in found if name not in chosen.values()]
    if unused:
        logger.info(
            "%s: splits %s are not used; name one with train_split, validation_split or test_split", source, unused
        )
    return {ours: chosen[ours] for ours in SPLIT_NAMES if ours in chosen}


def _recognised(found: Sequence[str], ours: str, source: str) -> str | None:
    if ours in found:
        return ours
    names = [name for name in found if canonical_split(name) == ours]
    if len(names) > 1:
        raise DetectionDataError(f"{source}: several splits may be {ours}: {names}; choose with {ours}_split=…")
    return names[0] if names else None
