"""Where the messages of a run go: the console, between the progress bars, and `train.log`."""

import logging
import sys
from pathlib import Path

from tqdm.auto import tqdm

from ..options import message_text

LOGGER = "rfdetr_hf"


class _Lines(logging.Formatter):
    """Messages, tracebacks included, as `message_text`."""

    def format(self, record: logging.LogRecord) -> str:
        return message_text(super().format(record))


class _AboveProgressBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record))
        except (OSError, ValueError):
            # The terminal, or the program behind a pipe, has gone. The training goes on, and saves.
            logging.getLogger(LOGGER).removeHandler(self)


def log_to_console() -> None:
    """Show the package's messages, from INFO on, unless the program has set up logging itself."""
    logger = logging.getLogger(LOGGER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = _AboveProgressBars()
        handler.setFormatter(_Lines())
        logger.addHandler(handler)


def log_to_file(path: Path) -> logging.Handler:
    """Append the package's messages to a file, until the returned handler is taken off with `stop_logging`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Lines("%(asctime)s %(message)s"))
    logging.getLogger(LOGGER).addHandler(handler)
    return handler


def stop_logging(handler: logging.Handler) -> None:
    """Take a handler of `log_to_file` off and close it."""
    logging.getLogger(LOGGER).removeHandler(handler)
    handler.close()


def shows_bars() -> bool:
    """Whether somebody looks at progress bars: in a terminal or a notebook. Files and pipes have the lines alone."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def memory_size(count: int) -> str:
    """So many bytes in words: "1.50 GB"."""
    return f"{count / 2**30:.2f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"
