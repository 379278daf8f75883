"""Waiting for batches ends with a notice."""

import signal
import time

from helpers.notices import listen


def test_waiting_for_data_ends_with_the_notice():
    process, started = listen(1, "wait", "act"), time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "noticed\nreceived\nafter\n" and time.monotonic() - started < 10
