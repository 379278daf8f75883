"""The progress bars of transformers."""

import pytest
from transformers.utils import logging

from rfdetr_hf.models.bars import no_transformers_bars


def test_bars_of_transformers_come_back_if_they_were_there():
    before = logging.is_progress_bar_enabled()
    try:
        for shown in (True, False):
            (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
            with pytest.raises(KeyError), no_transformers_bars():
                assert not logging.is_progress_bar_enabled()
                raise KeyError
            assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
