"""Notices of an early end: of schedulers, of a terminal, of a launcher that ends; workers of a loader survive them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from helpers.runs import quick_arguments
from torch.utils.data import DataLoader

from rfdetr_hf import RFDETRTrainer, read_status
from rfdetr_hf.training import trainer
from rfdetr_hf.training.parent import launcher_words, words_of
from rfdetr_hf.training.preemption import Preempted, shield_workers

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
    # A shell lets what it starts in the background ignore interruptions, the tests and so their children too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def test_waiting_for_data_ends_with_the_notice():
    process, started = listen(1, "wait", "act"), time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "noticed\nreceived\nafter\n" and time.monotonic() - started < 10


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


needs_senders = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="nobody can tell who sent a signal here")


@needs_senders
def test_a_worker_survives_what_launchers_and_terminals_send(worker):
    for name in ("SIGINT", "SIGTERM", "SIGTERM", "SIGHUP", "SIGUSR1"):
        sending = f"import os, signal; os.kill({worker}, signal.{name})"
        subprocess.run([sys.executable, "-c", sending], check=True)
    assert not ends(worker, 1)
    # torch and multiprocessing send theirs so close together that a busy worker sees a single one.
    os.kill(worker, signal.SIGTERM)
    assert ends(worker, 10)


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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_notice_before_the_first_step_is_an_early_end_that_goes_on_under_auto(
    tmp_path, tiny_model, shapes, monkeypatch, caplog, name
):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    args = partial(quick_arguments, tmp_path, max_steps=2, eval_strategy="no")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(trainer, "audit_splits", lambda *given: signal.raise_signal(getattr(signal, name)))
        RFDETRTrainer(tiny_model(), args(), shapes).train()
    assert "preempted before the first step" in caplog.text
    assert read_status(tmp_path)["state"] == "preempted" and not list(tmp_path.glob("checkpoint-*"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    RFDETRTrainer(tiny_model(), args(resume_from_checkpoint="auto"), shapes).train()
    assert read_status(tmp_path)["state"] == "finished"
