"""One file a format.

A format is a module with `find(root, options) -> Found | None`, which recognises a source, and `read(found,
splits, options) -> dict[str, Dataset]`, which reads the chosen splits into the schema. `data.sources.FORMATS` lists
them in the order of asking.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Found(NamedTuple):
    """A source that a format has recognised.

    Attributes:
        source: its name in messages.
        splits: the splits by the source's own names, with what the format needs to read each.
        details: what else the format found out.
    """

    source: str
    splits: Mapping[str, Any]
    details: Any = None
