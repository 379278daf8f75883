"""The options of a conversion."""

from dataclasses import dataclass

from ..options import option, settle_options
from .words import answers_by_name


@answers_by_name
@dataclass
class ConvertArguments:
    """Which checkpoint, and what it becomes."""

    src: str = option(help="An official file (.pth, .pt, .ckpt), model folder or Hub id.", group="model", daily=True)
    dst: str = option(help="The official file (.pth, .pt) or folder to write.", daily=True)
    variant: str | None = option(None, "Variant of an official file that does not tell.", daily=True)
    use_ema: bool = option(False, "Take the EMA weights of an official training checkpoint.", daily=True)
    drop_unused_rows: bool = option(False, 'Leave out class rows that are called "N/A".', daily=True)
    revision: str | None = option(None, "Branch, tag or commit of a Hub id.", daily=True)

    def __post_init__(self) -> None:
        settle_options(self)
