"""Names of splits: what sources call them, and which ones become train, validation and test."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence

from .errors import DetectionDataError, Problems

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# Words that folders of splits have beside its name: "train_images", "val-set".
_BESIDE_A_SPLIT = ("data", "dataset", "frames", "image", "images", "img", "imgs", "pictures", "set", "split")


def canonical_split(name: str) -> str | None:
    """Our name for names such as "train2017", "valid" or "annotations_val"; None when it is unclear."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {split for split, names in SPLIT_NAMES.items() if any(word in names for word in words)}
    return found.pop() if len(found) == 1 else None


def check_one_split(source: str, split: str, file_names: Sequence[str], problems: Problems) -> None:
    """Note a fault when the pictures of one split lie in the folders of several.

    A file that has the name of a split ("train", "trainval2014") is meant so, and gets a warning; so do folders with
    other words in their names.

    Args:
        source: the annotation file, for messages.
        split: what the file or its split is called.
        file_names: of the pictures, with their folders.
        problems: collects the fault.
    """
    parts = [name.replace("\\", "/").split("/")[:-1] for name in file_names]
    shared = len(os.path.commonprefix(parts))
    meant = {each: next(filter(None, map(canonical_split, each)), None) for each in {tuple(p[shared:]) for p in parts}}
    counts = Counter(meant[tuple(each[shared:])] for each in parts)
    within = sorted(filter(None, counts))
    if len(within) < 2:
        return
    first = [next(n for n, p in zip(file_names, parts, strict=True) if meant[tuple(p[shared:])] == s) for s in within]
    found = f"the folders of its pictures mean {len(within)} splits: " + ", ".join(
        f"{name} {counts[name]} pictures, such as {example}" for name, example in zip(within, first, strict=True)
    )
    remedy = "write one annotation file for each split"
    # Scenes and places may be called so too: "train_station", "test_track".
    names = {*_BESIDE_A_SPLIT}.union(*SPLIT_NAMES.values())
    named = [part for key, split in meant.items() if split for part in key if canonical_split(part)]
    is_clear = all(names.issuperset(filter(None, re.split(r"[^a-z]+", part.lower()))) for part in named)
    if not is_clear or re.search("train|val|test", split.lower()) or 2 * counts[None] > len(parts):
        logger.warning("%s: %s; all are read as one split, %r; if that is wrong, %s", source, found, split, remedy)
    else:
        problems.add(found, f"{remedy}; to train on all of it, give the file a name with 'train'")


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
