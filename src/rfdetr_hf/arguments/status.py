"""The options of a look at a run."""

from dataclasses import dataclass

from ..options import option, settle_options
from .words import answers_by_name


@answers_by_name
@dataclass
class StatusArguments:
    """Which run, and how its status is printed."""

    run: str = option(help="The run directory (output_dir).", group="output", daily=True)
    exit_code: bool = option(False, "Answer by the exit code as well.", daily=True)
    json: bool = option(False, "Print JSON.", daily=True)

    def __post_init__(self) -> None:
        settle_options(self)
