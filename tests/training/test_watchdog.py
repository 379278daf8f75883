"""A training that makes no progress says where it waits."""

import time

from rfdetr_hf.training.watchdog import Watchdog


def test_a_stage_that_lasts_is_named_ever_more_rarely(caplog):
    with Watchdog(patience=0.2, who="process 1") as watchdog:
        watchdog.at("loading data")
        time.sleep(1.2)
    lines = [text for text in caplog.messages if "process 1: no progress: loading data since" in text]
    assert len(lines) == 3  # after 0.2, 0.4 and 0.8 s
    time.sleep(0.3)
    assert len(caplog.messages) == len(lines)


def test_progress_keeps_it_silent_and_an_inner_stage_wins(caplog):
    with Watchdog(patience=0.3) as watchdog:
        for _ in range(8):
            watchdog.at("forward")
            time.sleep(0.1)
        assert not caplog.messages
        with watchdog.during("evaluation"):
            time.sleep(0.5)
        time.sleep(0.5)
    assert "evaluation" in caplog.messages[0] and "forward" in caplog.messages[-1]
