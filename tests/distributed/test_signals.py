"""Signals, launchers that end, workers that hang, and second writers: nothing is lost, and every end is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill import differences, wait_for_training
from launching import WORKER, environment, finish, free_port, run, slow, start

from rfdetr_hf.cli.main import main
from rfdetr_hf.training.preemption import EXIT_CODE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="launchers are watched on Linux only")

STEP = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
LONG = STEP | {"max_steps": 5000, "save_strategy": "steps", "save_steps": 5000, "logging_steps": 1}
PYTHON = [sys.executable, "-m"]
ACCELERATE = [*PYTHON, "accelerate.commands.launch", "--cpu", "--mixed_precision", "no", "--num_machines", "1"]
LAUNCHERS = {
    "accelerate 1": [*ACCELERATE, "--num_processes", "1"],
    "accelerate 2": [*ACCELERATE, "--num_processes", "2"],
    "torchrun 2": [*PYTHON, "torch.distributed.run", "--nproc_per_node", "2"],
}


def heed():
    # A shell lets what it starts in the background ignore interruptions, the tests and so their children too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def begin():
    """Starts a program in a session of its own; what it leaves is ended: `begin(command)`."""
    started = []

    def start_session(command, **variables):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        own = {"env": environment(**variables), "start_new_session": True, "preexec_fn": heed}
        started.append(subprocess.Popen(command, **pipes, **own))
        return started[-1]

    yield start_session
    for process in started:
        if process.poll() is None:
            process.kill()


def under(launcher, job):
    port = ["--main_process_port" if "accelerate" in launcher else "--master_port", str(free_port())]
    return [*LAUNCHERS[launcher], *port, str(WORKER), json.dumps(job)]


def processes_of(output_dir):
    """The processes that have a run's directory on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if output_dir.encode() in words:
            found.append(int(path.parent.name))
    return found


def wait_for_end(output_dir, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and processes_of(output_dir):
        time.sleep(0.1)
    left = processes_of(output_dir)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes outlived the end"


def state_of(job):
    return json.loads((Path(job["output_dir"]) / "status.json").read_text())["state"]


def assert_saved(job, capsys):
    root = Path(job["output_dir"])
    assert len(list(root.glob("checkpoint-*/manifest.json"))) == 1, (root / "train.log").read_text()[-2000:]
    assert main(["status", str(root), "--exit-code"]) == EXIT_CODE
    assert capsys.readouterr().out.startswith("preempted: step ") and not (root / "run.lock").exists()


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("accelerate 1", signal.SIGTERM),
        slow("accelerate 1", signal.SIGKILL),
        slow("accelerate 2", signal.SIGTERM),
        slow("accelerate 2", signal.SIGKILL),
        slow("torchrun 2", signal.SIGTERM),
        ("torchrun 2", signal.SIGKILL),
    ],
)
def test_a_launcher_that_ends_leaves_a_checkpoint_and_no_orphan(job, begin, capsys, launcher, number):
    """Before, one process under `accelerate launch` trained on without its launcher."""
    long = job("long", options=LONG | {"dataloader_num_workers": 1})
    process = begin(under(launcher, long))
    wait_for_training(long["output_dir"], [process])
    process.send_signal(number)
    finish([process])
    wait_for_end(long["output_dir"])
    assert_saved(long, capsys)


@pytest.mark.parametrize("launcher", [slow("accelerate 1"), "accelerate 2", slow("torchrun 2")])
def test_ctrl_c_to_the_foreground_saves(job, begin, capsys, launcher):
    long = job("long", options=LONG | {"dataloader_num_workers": 1})
    process = begin(under(launcher, long))
    wait_for_training(long["output_dir"], [process])
    os.killpg(process.pid, signal.SIGINT)
    finish([process])
    wait_for_end(long["output_dir"])
    assert_saved(long, capsys)


def test_ctrl_c_saves_though_the_program_behind_the_pipe_has_ended(job, begin, capsys):
    long = job("long", options=LONG | {"disable_tqdm": False})
    words = " ".join(f"'{word}'" for word in [sys.executable, str(WORKER), json.dumps(long)])
    process = begin(["bash", "-c", f"{words} 2>&1 | cat"])
    wait_for_training(long["output_dir"], [process])
    os.killpg(process.pid, signal.SIGINT)
    finish([process])
    wait_for_end(long["output_dir"])
    assert_saved(long, capsys)


@pytest.mark.parametrize("launcher", [slow(None), "accelerate 1"])
def test_nohup_survives_its_shell(job, begin, launcher):
    long = job("long", options=LONG)
    words = under(launcher, long) if launcher else [sys.executable, str(WORKER), json.dumps(long)]
    process = begin(["bash", "-c", 'nohup "$@" >/dev/null 2>&1 & sleep 600', "bash", *words])
    wait_for_training(long["output_dir"], [process])
    os.killpg(process.pid, signal.SIGHUP)  # what a terminal that closes sends
    process.wait(timeout=20)
    try:
        log = Path(long["output_dir"]) / "train.log"
        size = log.stat().st_size
        time.sleep(4)
        assert log.stat().st_size > size and state_of(long) == "running"
    finally:
        for pid in processes_of(long["output_dir"]):
            os.kill(pid, signal.SIGKILL)


SHORT = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4,
         "logging_steps": 2, "per_device_eval_batch_size": 1, "save_total_limit": None}  # fmt: skip


@pytest.mark.parametrize(("world", "at"), [slow(1, 4), (1, 8), slow(2, 4), slow(2, 8)])
def test_a_notice_during_an_evaluation_is_acted_on_and_keeps_every_bit(job, world, at):
    """Step 8 is the last one: there a notice was swallowed, and the run ended with 0 after the evaluation."""
    undisturbed, noticed = (job(name, held_out=24, options=SHORT | STEP) for name in ("undisturbed", "noticed"))
    run(undisturbed, world)
    begun = Path(f"{noticed['output_dir']}.evaluating")
    processes = start(noticed | {"slow_evaluation": {"path": str(begun), "step": at, "seconds": 10}}, world)
    deadline = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    processes[-1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [EXIT_CODE] * world, outputs[0][-3000:]
    assert time.monotonic() - began < 100  # the evaluation takes 240 s, shared by two 120
    assert f"preempted: saved step {at}" in outputs[0]
    run(noticed | {"resume": True}, world)
    assert differences(undisturbed["output_dir"], noticed["output_dir"], 8) == []


@pytest.mark.parametrize("world", [slow(1), 2])
def test_a_notice_is_acted_on_while_data_is_waited_for(job, tmp_path, world):
    hanging = tmp_path / "hang"
    waiting = job("waiting", wait_while=str(hanging), options=LONG | {"dataloader_num_workers": 1})
    processes = start(waiting, world)
    wait_for_training(waiting["output_dir"], processes)
    hanging.touch()
    time.sleep(4)
    # At once, as launchers do: after the save a signal would meet processes that are ending.
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [EXIT_CODE] * world, outputs[0][-3000:]


@pytest.mark.parametrize("world", [1, slow(2)])
def test_a_worker_that_hangs_ends_the_run_with_a_message(job, world):
    stuck = job("stuck", options=LONG | {"dataloader_num_workers": 1, "dataloader_timeout": 4})
    processes = start(stuck, world)
    wait_for_training(stuck["output_dir"], processes)
    workers = [
        int(pid) for pid in Path(f"/proc/{processes[-1].pid}/task/{processes[-1].pid}/children").read_text().split()
    ]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    codes, outputs = finish(processes)
    assert 0 not in codes and EXIT_CODE not in codes, outputs
    assert "gave no batch for 4 s (dataloader_timeout)" in outputs[-1], outputs[-1][-3000:]
    assert state_of(stuck) == "failed"
    assert len(list(Path(stuck["output_dir"]).glob("checkpoint-*/manifest.json"))) == 1


def test_a_read_of_the_process_itself_that_hangs_ends_the_run_too(job, tmp_path):
    hanging = tmp_path / "hang"
    stuck = job("stuck", wait_while=str(hanging), options=LONG | {"dataloader_num_workers": 0, "dataloader_timeout": 2})
    processes = start(stuck)
    wait_for_training(stuck["output_dir"], processes)
    hanging.touch()
    codes, outputs = finish(processes)
    assert codes == [1] and "gave no batch for 2 s (dataloader_timeout)" in outputs[0], outputs[0][-3000:]
    assert state_of(stuck) == "failed"


def test_a_second_writer_is_refused_and_leaves_the_first_alone(job):
    long = job("long", options=LONG)
    first = start(long)
    wait_for_training(long["output_dir"], first)
    for resume in (None, True):
        codes, outputs = finish(start(long | {"resume": resume}))
        assert (
            codes == [1] and f"is in use by another run: host {os.uname().nodename}, pid {first[0].pid}" in outputs[0]
        )
    assert first[0].poll() is None
    first[0].terminate()
    assert finish(first)[0] == [EXIT_CODE]


def test_auto_waits_for_a_run_that_ends(job):
    """A scheduler restarts while the processes of before still save."""
    cut = job("cut", beat=2.0, options=LONG | {"max_steps": 40, "save_steps": 40})
    first = start(cut)
    wait_for_training(cut["output_dir"], first)
    os.kill(first[0].pid, signal.SIGSTOP)
    second = start(cut | {"resume": "auto"})
    time.sleep(4)  # the second one comes as far as the lock, and finds it fresh
    first[0].terminate()
    os.kill(first[0].pid, signal.SIGCONT)
    assert finish(first)[0] == [EXIT_CODE]
    codes, outputs = finish(second)
    assert codes == [0], outputs[0][-3000:]
    assert "resumed from" in outputs[0]


@pytest.mark.slow
def test_a_run_that_was_suspended_and_replaced_writes_nothing_more(job):
    cut = job("cut", beat=0.5, options=LONG | {"save_steps": 5, "save_total_limit": None})
    first = start(cut)
    wait_for_training(cut["output_dir"], first)
    root = Path(cut["output_dir"])
    deadline = time.monotonic() + 60
    while not list(root.glob("checkpoint-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(first[0].pid, signal.SIGSTOP)
    time.sleep(2)
    second = start(cut | {"resume": True, "options": cut["options"] | {"max_steps": 60}})
    try:
        codes, outputs = finish(second)
        assert codes == [0] and "is taken over: no sign of life" in outputs[0], outputs[0][-3000:]
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    finally:
        os.kill(first[0].pid, signal.SIGCONT)
    codes, outputs = finish(first)
    assert codes == [1] and "writes nothing more and ends" in outputs[0], outputs[0][-3000:]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert state_of(cut) == "finished"
