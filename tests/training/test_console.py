"""Messages of a run: on the console, in its file, and taken off again."""

import logging
from contextlib import contextmanager

import pytest

from rfdetr_hf import log_to_console
from rfdetr_hf.training.console import LOGGER, log_to_file, memory_size, stop_logging


@contextmanager
def bare():
    """The package's logger without a level and handlers, above it too; put back at the end of the block."""
    logger = logging.getLogger(LOGGER)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.NOTSET)
    try:
        yield logger
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def test_messages_from_info_on_are_shown_once(capsys):
    with bare() as logger:
        log_to_console()
        log_to_console()
        logging.getLogger(f"{LOGGER}.part").info("seen %s", "once")
        logging.getLogger(f"{LOGGER}.part").debug("never")
        shown = capsys.readouterr()
        assert (shown.out + shown.err).splitlines() == ["seen once"] and len(logger.handlers) == 1


def test_a_program_that_has_set_up_logging_keeps_it():
    with bare() as logger:
        mine = logging.NullHandler()
        logger.addHandler(mine)
        logger.setLevel(logging.ERROR)
        log_to_console()
        assert logger.handlers == [mine] and logger.level == logging.ERROR


def test_a_terminal_that_has_gone_costs_no_training(monkeypatch):
    with bare() as logger:
        log_to_console()

        def gone(text):
            raise BrokenPipeError

        monkeypatch.setattr("rfdetr_hf.training.console.tqdm.write", gone)
        logger.info("nobody reads this")
        assert logger.handlers == []


def test_a_file_is_appended_to_until_it_is_taken_off(tmp_path):
    with bare() as logger:
        logger.setLevel(logging.INFO)
        (tmp_path / "train.log").write_text("before\n")
        handler = log_to_file(tmp_path / "train.log")
        logger.info("names\nmake no line")
        stop_logging(handler)
        logger.info("behind the end")
        lines = (tmp_path / "train.log").read_text().splitlines()
        assert lines[0] == "before" and "names" in lines[1] and "behind" not in lines[-1] and handler.stream is None


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 MB"), (3 << 19, "1.5 MB"), (3 << 29, "1.50 GB")])
def test_bytes_in_words(count, text):
    assert memory_size(count) == text
