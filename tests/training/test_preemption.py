"""Notices of an early end: of schedulers, of a terminal, of a launcher that ends; workers of a loader survive them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.notices import listen, needs_senders
from torch.utils.data import DataLoader

from rfdetr_hf.training.preemption import shield_workers


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_each_signal_is_a_notice_and_once_acted_on_leaves_no_trace(name):
    process = listen(20, "leave", "act")
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=20)
    assert out == "received\nafter\n" and process.returncode == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_a_notice_that_nobody_acted_on_is_raised_again_at_the_end(name):
    process = listen(20, "leave")
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=20)
    assert out == "received\n" and process.returncode == -getattr(signal, name), err
    assert f"{name} came too late to be acted on" in err


def test_what_a_launcher_makes_of_one_ctrl_c_is_one_notice():
    process = listen(3, "act")
    process.send_signal(signal.SIGINT)
    for pause, name in ((0.2, "SIGINT"), (0.3, "SIGTERM"), (1.5, "SIGTERM")):
        time.sleep(pause)
        process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=20)
    assert out == "received\nafter\n" and process.returncode == 0


def test_a_second_ctrl_c_after_a_second_ends_at_once():
    process, started = listen(60, "act"), time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(1.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert "after" not in out and err.rstrip().endswith("KeyboardInterrupt") and time.monotonic() - started < 20


def test_what_was_ignored_at_the_start_stays_ignored():
    """As under `nohup` and in a shell's background."""

    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = listen(2, preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "nothing\nafter\n"


def test_a_shell_that_ends_is_survived_under_nohup():
    """The terminal hangs up on its whole session."""
    script = 'nohup "$@" 2>/dev/null & while :; do sleep 1; done'
    process = listen(3, before=["bash", "-c", script, "bash"])
    os.killpg(process.pid, signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == "nothing\nafter\n"


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


@needs_senders
def test_a_worker_survives_what_launchers_and_terminals_send(worker):
    for name in ("SIGINT", "SIGTERM", "SIGTERM", "SIGHUP", "SIGUSR1"):
        sending = f"import os, signal; os.kill({worker}, signal.{name})"
        subprocess.run([sys.executable, "-c", sending], check=True)
    assert not ends(worker, 1)
    # torch and multiprocessing send theirs so close together that a busy worker sees a single one.
    os.kill(worker, signal.SIGTERM)
    assert ends(worker, 10)
