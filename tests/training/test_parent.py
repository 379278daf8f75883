"""The process that started this one, and its end."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.notices import LISTEN, heed, needs_senders

from rfdetr_hf.training.parent import launcher_words, words_of


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/bin/bash", "-c", "accelerate launch train.py"], []),
        (["bash", "/bin/torchrun"], []),
        (["python3", "train.py", "torchrun"], []),
        (["python", "-c", "import torch.distributed.run"], []),
        (["python", "-m", "ipykernel_launcher", "-f", "x.json"], []),
        (["nohup", "torchrun", "train.py"], []),
        (["vim", "accelerate"], []),
        ([], []),
        (["/usr/bin/python3.11", "/venv/bin/accelerate", "launch", "x.py"], ["accelerate", "launch", "x.py"]),
        (["python", "-u", "-X", "dev", "-m", "torch.distributed.run", "x.py"],
         ["python", "-m", "torch.distributed.run", "x.py"]),
        (["/venv/bin/torchrun", "x.py"], ["torchrun", "x.py"]),
        ([r"C:\\python\\Scripts\\accelerate.exe".replace("\\\\", "/"), "launch"], ["accelerate", "launch"]),
        (["/usr/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"],
         ["python", "-m", "deepspeed.launcher.launch", "--world_info=x"]),
    ],
)  # fmt: skip
def test_launchers_are_told_from_shells_and_other_programs(words, expected):
    assert launcher_words(words) == expected


def test_the_words_of_a_process_come_from_the_system():
    process = subprocess.Popen([sys.executable, "-c", "input()", "a b", ""], stdin=subprocess.PIPE)
    time.sleep(0.3)
    assert words_of(process.pid)[1:] == ["-c", "input()", "a b", ""]
    process.communicate(b"\n")
    assert words_of(process.pid) == []


LAUNCHERS = {
    # As the launchers of accelerate (one process) and DeepSpeed: it starts the training and only waits.
    "accelerate": "import subprocess, sys; subprocess.Popen(sys.argv[2:]).wait()",
    "torchrun": "import subprocess, sys; subprocess.Popen(sys.argv[2:], start_new_session=True).wait()",
    "wrapper": "import subprocess, sys; subprocess.Popen(sys.argv[2:]).wait()",
}


@pytest.fixture
def launched(tmp_path):
    """Starts a listener below a program of a name and ends that program: what the listener says."""

    def start(name, number, *words, listener=LISTEN):
        script = tmp_path / name
        script.write_text(LAUNCHERS[name])
        command = [sys.executable, str(script), "launch", sys.executable, "-c", listener, *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        process = subprocess.Popen(command, preexec_fn=heed, start_new_session=True, **pipes)
        pid = int(process.stdout.readline().split()[1])
        process.send_signal(number)
        process.wait(timeout=20)
        try:
            return process.stdout.read()  # until the listener, which has the pipe, has ended as well
        finally:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    return start


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux only")
@pytest.mark.parametrize("name", ["accelerate", "torchrun"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_a_launcher_is_a_notice(launched, name, number):
    assert launched(name, number, 20, "leave", "act") == "received\nafter\n"


PREPARING = {
    "the command, before its imports": """
import os, sys, time, types
from rfdetr_hf.cli.main import main
def prepare(options):
    print("ready", os.getpid(), flush=True)
    time.sleep(10)
    print("survived", flush=True)
sys.modules["rfdetr_hf.cli.fit"] = types.SimpleNamespace(main=prepare)
main(["fit"])
""",
    "a script that calls it": """
import os, time
from rfdetr_hf import end_with_launcher
end_with_launcher()
print("ready", os.getpid(), flush=True)
time.sleep(10)
print("survived", flush=True)
""",
}
# Whoever handles SIGTERM while data and model are loaded learns of the end when the training begins.
IGNORING = """
import os, signal, time
from rfdetr_hf import end_with_launcher
from rfdetr_hf.training.preemption import PreemptionNotice
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_launcher()
launcher = os.getppid()
print("ready", os.getpid(), flush=True)
while os.getppid() == launcher:
    time.sleep(0.05)
with PreemptionNotice() as notice:
    print("received" if notice.received else "nothing", flush=True)
    notice.acted = True
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux only")
@pytest.mark.parametrize("at", PREPARING)
def test_the_end_of_a_launcher_before_the_training_ends_the_process(launched, at):
    assert launched("accelerate", signal.SIGKILL, listener=PREPARING[at]) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux only")
def test_an_end_of_the_launcher_that_was_not_heeded_is_a_notice_when_the_training_begins(launched):
    assert launched("accelerate", signal.SIGKILL, listener=IGNORING) == "received\n"


def test_the_end_of_another_parent_is_none(launched):
    assert launched("wrapper", signal.SIGKILL, 2) == "nothing\nafter\n"


ORPHAN = """
import os, signal, time, torch
from torch.utils.data import DataLoader, Dataset
from rfdetr_hf.training.preemption import shield_workers
class Stuck(Dataset):
    def __len__(self):
        return 10
    def __getitem__(self, i):
        while i:
            time.sleep(60)
        return torch.zeros(1)
batches = iter(shield_workers(DataLoader(Stuck(), num_workers=1)))
next(batches)
print(batches._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_senders
def test_a_worker_that_hangs_ends_with_its_owner():
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while time.monotonic() < deadline and words_of(pid):
        time.sleep(0.1)
    assert not words_of(pid)
