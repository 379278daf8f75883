"""The options of `rfdetr-hf data audit`."""

import os
from dataclasses import dataclass

from ..options import FROM_1, option, require_writable, settle_options
from .launch import one_device
from .words import answers_by_name


@answers_by_name
@dataclass
class AuditArguments:
    """How closely a data set is looked at, and where the findings go."""

    strict: bool = option(False, "End with exit code 1 where there are serious findings.", group="output", daily=True)
    html: str | None = option(None, "Write a page with pictures to this file.", daily=True)
    json: str | None = option(None, "Write counts and findings to this file.", daily=True)
    near_duplicates: bool = option(False, "Also look for pictures nearly the same (extra 'audit').", daily=True)
    headers: bool = option(False, "Read headers only: misses truncated pictures and copies.", daily=True)
    sample: int = option(200000, "Pictures of a split to read, evenly spaced where there are more.", FROM_1)
    batch_size: int = option(8, "Images that a model sees at once.", FROM_1, group="system")
    device: str | None = option(
        None, "Of the model: cpu, cuda, or a GPU by number (1, cuda:1); default: cuda if there is one.", group="system"
    )
    overwrite: bool = option(False, "Replace existing files.")

    def __post_init__(self) -> None:
        settle_options(self)
        self.device = one_device(self.device)
        paths = [os.path.realpath(path) for path in (self.html, self.json) if path is not None]
        if len(set(paths)) < len(paths):
            raise ValueError(f"html and json are both {self.json}: one would replace the other; give two names")

    def require_new(self) -> None:
        """Look whether the files may be written, before anything is read.

        Raises:
            OSError: one exists, and overwrite is not given, or cannot be written.
        """
        for name in ("html", "json"):
            if (path := getattr(self, name)) is not None:
                require_writable(path, name, self.overwrite)
