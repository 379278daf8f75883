"""Workers of a loader and the signals that reach them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader

from rfdetr_hf.training.preemption import shield_workers

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="nobody can tell who sent a signal here")


@pytest.fixture
def worker():
    """The process id of the one worker of a shielded loader."""
    loader = DataLoader(torch.arange(100), num_workers=1, persistent_workers=True)
    batches = iter(shield_workers(loader))
    next(batches)
    yield batches._workers[0].pid
    batches._shutdown_workers()


def ends(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


def signal_of_another_process(pid):
    subprocess.run([sys.executable, "-c", f"import os; os.kill({pid}, {int(signal.SIGTERM)})"], check=True)


def test_a_launchers_notice_is_survived_once(worker):
    signal_of_another_process(worker)
    assert not ends(worker, 1)
    signal_of_another_process(worker)
    assert ends(worker, 10)


def test_one_signal_of_the_training_process_is_enough(worker):
    # torch and multiprocessing send theirs so close together that a busy worker sees a single one.
    os.kill(worker, signal.SIGTERM)
    assert ends(worker, 10)
