"""The options of a demo."""

from dataclasses import dataclass

from ..options import PROBABILITY, Range, option, settle_options
from .launch import one_device
from .words import answers_by_name


@answers_by_name
@dataclass
class DemoArguments:
    """Which model, and where its demo is served."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.", group="model", daily=True)
    threshold: float = option(0.5, "Where the confidence threshold stands at first.", PROBABILITY, daily=True)
    device: str | None = option(
        None, "cpu, cuda, or a GPU by number (1, cuda:1); default: cuda where there is one.", group="system", daily=True
    )
    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0: all of the machine.", group="system", daily=True)
    port: int | None = option(
        None, "Port to listen at; default: the first free one from 7860.", Range(1, 65535), group="system", daily=True
    )
    share: bool = option(
        False, "Open a public address through gradio's servers, for notebooks.", group="system", daily=True
    )
    space: str | None = option(
        None, "Push the demo as this Space of the Hub (user/name) in place of serving it.", group="hub", daily=True
    )
    private: bool | None = option(
        None, "Whether a new Space is private; default: the account's setting.", group="hub", daily=True
    )

    def __post_init__(self) -> None:
        settle_options(self)
        self.device = one_device(self.device)
        if self.space is not None and self.space.count("/") != 1:
            raise ValueError(f"space={self.space!r}: give user/name")
