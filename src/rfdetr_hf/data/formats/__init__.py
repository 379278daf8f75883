"""One file a format.

A format is a module with `find(root, options) -> Found | None`, which recognises a source; `read(found, splits,
options) -> dict[str, Dataset]`, which reads the chosen splits into the schema; and `near(folder) -> str`, which says
how near a folder comes to it. `data.sources.FORMATS` lists them in the order of asking.
"""

import functools
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...choices import counted
from ..annotations import ReadOptions
from ..errors import SplitMissingError
from ..images import files_below

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Found(NamedTuple):
    """A source that a format has recognised.

    Attributes:
        source: its name in messages.
        kind: what it is, such as "Roboflow COCO".
        splits: the splits by the source's own names, with what the format needs to read each.
        details: what else the format found out.
    """

    source: str
    kind: str
    splits: Mapping[str, Any]
    details: Any = None


def warn_of_others(
    found: Found, splits: Mapping[str, Any], used: Collection[Path], suffix: str, is_one: Callable[[Path], bool]
) -> None:
    """Say which files below the folder of a source are read with none of its splits.

    Args:
        found: the source.
        splits: those that are read.
        used: the files, and the folders with files, that belong to splits, or to those that nobody asked for.
        suffix: of the files, such as ".xml".
        is_one: whether a file is one of the format.
    """
    root = Path(found.source)
    if not root.is_dir():
        return
    # Links to folders are followed once a folder, not once a file.
    resolved = functools.cache(os.path.realpath)
    known = {os.path.join(resolved(file.parent), file.name) for file in used}
    others = []
    for file in files_below(root, suffix):
        real = Path(resolved(file.parent), file.name)
        if not known.intersection(map(str, (real, *real.parents))) and is_one(file):
            others.append(file.relative_to(root).as_posix())
    if others:
        logger.warning(
            "%s: %s in none of the splits %s and left out, such as %s", found.source,
            counted(len(others), f"{suffix[1:].upper()} file", "is"), list(splits), ", ".join(others[:3]),
        )  # fmt: skip


def read_splits(splits: Mapping[str, Any], options: ReadOptions, read: Callable[[str, Any], T]) -> dict[str, T]:
    """`read(name, split)` of each split; a test split that is not there is left out unless it was asked for."""
    results = {}
    for name, split in splits.items():
        try:
            results[name] = read(name, split)
        except SplitMissingError as error:
            if name != "test" or options.need_test or len(splits) == 1:
                raise
            logger.warning("the test split is left out: %s", error)
    return results
