"""The options of a conversion of data."""

from dataclasses import dataclass
from pathlib import Path

from ..choices import DATA_FORMATS
from ..options import FROM_1, option, settle_options
from .words import answers_by_name


@answers_by_name
@dataclass
class DataConvertArguments:
    """What a data set becomes."""

    dst: str = option(help="The folder to write; new or empty.", group="output", daily=True)
    format: str = option("parquet", "Parquet or tar shards, or a COCO folder.", DATA_FORMATS, daily=True)
    shard_mb: int = option(256, "Megabytes of a shard, which has 10,000 rows at most.", FROM_1, daily=True)

    def __post_init__(self) -> None:
        settle_options(self)

    def require_new(self) -> None:
        """Look whether the folder can be made, before anything is read.

        Raises:
            OSError: there is something, or its folder cannot be written to.
        """
        from ..data.shards.writer import require_new

        require_new(Path(self.dst))
