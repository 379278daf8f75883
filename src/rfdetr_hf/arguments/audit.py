"""The options of `rfdetr-hf data audit`."""

from dataclasses import dataclass

from ..options import FROM_1, option, settle_options
from .words import answers_by_name


@answers_by_name
@dataclass
class AuditArguments:
    """How closely a data set is looked at, and where the findings go."""

    strict: bool = option(False, "End with exit code 1 where there are serious findings.", group="output", daily=True)
    html: str | None = option(None, "Write a page with pictures to this file.", daily=True)
    json: str | None = option(None, "Write counts and findings to this file.", daily=True)
    near_duplicates: bool = option(
        False, "Also look for pictures nearly the same (extra 'audit').", daily=True
    )
    headers: bool = option(False, "Read headers only: misses truncated pictures and copies.", daily=True)
    sample: int = option(200000, "Pictures of a split to read, evenly spaced where there are more.", FROM_1)
    overwrite: bool = option(False, "Replace existing files.")

    def __post_init__(self) -> None:
        settle_options(self)
