"""Processes that wait for a notice of an early end."""

import signal
import subprocess
import sys

import pytest

LISTEN = """
import os, signal, sys, time
from rfdetr_hf.training.preemption import Noticed, PreemptionNotice
notice = PreemptionNotice()
with notice:
    print("ready", os.getpid(), flush=True)
    waiting = "wait" in sys.argv
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end and not (notice.received and "leave" in sys.argv):
        try:
            if waiting:
                with notice.interrupts():
                    time.sleep(30)
            time.sleep(0.05)
        except Noticed:
            waiting = False
            print("noticed", flush=True)
    if "act" in sys.argv:
        notice.acted = notice.received
    print("received" if notice.received else "nothing", flush=True)
print("after", flush=True)
"""


def listen(*words, before=(), **options):
    """A process within a notice, the words after it has said that it is ready."""
    command = [*before, sys.executable, "-c", LISTEN, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, **{"preexec_fn": heed, "start_new_session": True, **options})
    assert process.stdout.readline().startswith("ready")
    return process


def heed():
    """Heed Ctrl-C and SIGHUP: shells and nohup let the tests ignore them, and so what these start."""
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


needs_senders = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="nobody can tell who sent a signal here")
