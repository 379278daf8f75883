"""The progress bars of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_transformers_bars() -> Iterator[None]:
    """Keep the bars out of the output that transformers shows for the tensors of one file, in fractions of a second."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
