"""One file a format.

A format is a module with `find(root, options) -> Found | None`, which recognises a source; `read(found, splits,
options) -> dict[str, Dataset]`, which reads the chosen splits into the schema; and `near(folder) -> str`, which says
how near a folder comes to it. `data.sources.FORMATS` lists them in the order of asking.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from ..annotations import ReadOptions
from ..errors import SplitMissingError

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
