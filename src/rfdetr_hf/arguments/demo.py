"""The options of a demo."""

from dataclasses import dataclass

from ..options import PROBABILITY, Range, option, settle_options


@dataclass
class DemoArguments:
    """Which model, and where its demo is served."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.")
    threshold: float = option(0.5, "Where the slider of the confidence threshold stands at first.", PROBABILITY)
    device: str | None = option(None, "Default: cuda where there is one.")
    host: str = option("127.0.0.1", "Address to listen at; 0.0.0.0 for all that the machine has.")
    port: int | None = option(None, "Port to listen at; default: the first free one from 7860.", Range(1, 65535))
    share: bool = option(False, "Open a public address for 72 hours through gradio's servers, as notebooks need it.")
    space: str | None = option(None, "Push the demo as this Space of the Hub (user/name) in place of serving it.")
    private: bool | None = option(None, "Whether a new Space is private; default: the account's setting.")

    def __post_init__(self) -> None:
        settle_options(self)
