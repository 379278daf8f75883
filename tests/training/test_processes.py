"""How `fit` starts the processes of a run: how many, where, their signals, exit codes and threads."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rfdetr_hf import LaunchArguments, run_processes
from rfdetr_hf.training import parent, processes
from rfdetr_hf.training.processes import plan, use_cores

RUN = """
import sys
from rfdetr_hf import LaunchArguments, run_processes
sys.exit(run_processes(LaunchArguments(device="cpu", num_processes=2), ["-c", {code!r}]))
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", parent.LAUNCHER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parent, "_of_fit", None)


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        ({}, 0, (1, {})),
        ({}, 1, (1, {})),
        ({}, 4, (4, {})),
        ({"num_processes": 1}, 4, (1, {})),
        ({"num_processes": 2}, 4, (2, {})),
        ({"num_processes": 2}, 0, (2, {"ACCELERATE_USE_CPU": "true"})),
        ({"device": "cpu"}, 4, (1, {"ACCELERATE_USE_CPU": "true"})),
        ({"device": "cuda"}, 2, (2, {})),
        ({"device": "0,2"}, 4, (2, {"CUDA_VISIBLE_DEVICES": "0,2"})),
        ({"device": "cuda:1"}, 4, (1, {"CUDA_VISIBLE_DEVICES": "1"})),
    ],
)
def test_every_gpu_has_a_process_unless_something_else_is_asked_for(given, gpus, expected):
    assert plan(LaunchArguments(**given), gpus) == expected


def test_numbers_of_gpus_count_among_the_visible_ones(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert plan(LaunchArguments(device="0,2"), 3) == (2, {"CUDA_VISIBLE_DEVICES": "4,7"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,-1")  # PyTorch sees two
    assert plan(LaunchArguments(device="0,1"), 2) == (2, {"CUDA_VISIBLE_DEVICES": "2,3"})


@pytest.mark.parametrize(
    ("given", "gpus", "message"),
    [
        ({"device": "cuda"}, 0, "device='cuda': PyTorch sees no GPUs here"),
        ({"device": "0,3"}, 2, "device='0,3': PyTorch sees 2 GPUs here"),
        ({"num_processes": 3}, 1, "num_processes=3: PyTorch sees 1 GPU here"),
        ({"device": "tpu"}, 0, "device='tpu' is not known; give cpu, cuda, or GPUs by number"),
        ({"device": "1,1"}, 2, "device='1,1' is not known"),
        ({"device": "0,1", "num_processes": 3}, 4, "names 2 GPUs, and num_processes is 3"),
    ],
)
def test_what_the_machine_has_not_is_refused(given, gpus, message):
    with pytest.raises(ValueError, match=message):
        plan(LaunchArguments(**given), gpus)


def test_a_launcher_decides_and_so_do_the_processes_that_are_started_here(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_processes(LaunchArguments(), ["-c", "1/0"]) is None
    with pytest.raises(ValueError, match="num_processes=2 is for a start without a launcher; give it to the launcher"):
        run_processes(LaunchArguments(num_processes=2), ["-c", "1/0"])
    monkeypatch.setenv(parent.LAUNCHER_VARIABLE, "1")
    assert run_processes(LaunchArguments(num_processes=2), ["-c", "1/0"]) is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, sys; sys.exit(75 if os.environ['RANK'] == '1' else 0)", 75),
        ("import os, sys, time; os.environ['RANK'] == '0' and sys.exit(3); time.sleep(60)", 3),
        ("import os, sys, time; os.environ['RANK'] == '1' and sys.exit(4); time.sleep(60)", 4),
        ("import os, signal, time; os.environ['RANK'] == '0' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)",
         137),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_the_first_process_that_fails_and_the_others_end(code, expected, capfd):
    start = time.monotonic()
    assert run_processes(LaunchArguments(device="cpu", num_processes=2), ["-c", code]) == expected
    assert time.monotonic() - start < 20
    assert "2 processes on the CPU, 1 thread each; --num_processes 1 starts one" in capfd.readouterr().out


def test_signals_are_passed_on(tmp_path):
    """Each process writes that it is ready, and ends with 75 at SIGTERM, as a training that has saved."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", RUN.format(code=code)])
    deadline = time.monotonic() + 200
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75


def test_a_run_on_the_cpu_gets_its_cores_where_only_the_launcher_chose_one_thread(monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(processes, "usable_cores", lambda: 8)
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cpu = torch.device("cpu")
    monkeypatch.setattr(processes, "words_of", lambda pid: ["bash"])
    use_cores(cpu, 2)
    monkeypatch.setattr(processes, "words_of", lambda pid: ["accelerate", "launch", "train.py"])
    monkeypatch.setattr(processes, "chosen_threads", lambda pid: True)
    use_cores(cpu, 2)
    monkeypatch.setattr(processes, "chosen_threads", lambda pid: False)
    use_cores(torch.device("meta"), 2)
    use_cores(cpu, 8)
    assert given == []
    with caplog.at_level("INFO", "rfdetr_hf"):
        use_cores(cpu, 2)
    assert given == [4] and "4 threads for each of 2 processes" in caplog.text


def test_a_user_chooses_threads_by_the_environment_or_the_option_of_the_launcher(monkeypatch):
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    wait = [sys.executable, "-c", "input()"]
    for extra, words, expected in (
        ({}, [], False), ({"OMP_NUM_THREADS": "1"}, [], True), ({}, ["--num_cpu_threads_per_process=1"], True),
    ):  # fmt: skip
        process = subprocess.Popen([*wait, *words], stdin=subprocess.PIPE, env=clean | extra)
        time.sleep(0.1)
        assert parent.chosen_threads(process.pid) is expected
        process.communicate(b"\n")


def test_a_launcher_that_ended_before_its_process_looked_is_noticed(monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setenv(parent.LAUNCHER_VARIABLE, str(ended.pid))
    assert parent.signal_at_launchers_end(signal.SIGTERM) is True


@pytest.mark.parametrize("shell", [[], ["sh", "-c", '"$@"; exit $?', "sh"]])
def test_what_a_process_of_several_starts_is_none_of_them(shell):
    look = "from rfdetr_hf import end_with_launcher; end_with_launcher(); "
    child = [*shell, sys.executable, "-c", f"{look}print('alive')"]
    fork = f"import os; n = os.fork(); {look}os.waitpid(n, 0) if n else os._exit(0)"
    code = f"{look}import subprocess; subprocess.run({child!r}, check=True); {fork}"
    assert subprocess.run([sys.executable, "-c", RUN.format(code=code)], check=False).returncode == 0


def test_a_running_launcher_that_is_not_the_parent_ends_nobody(monkeypatch):
    monkeypatch.setenv(parent.LAUNCHER_VARIABLE, str(os.getpid()))
    assert parent.signal_at_launchers_end(signal.SIGTERM) is False
    assert parent.LAUNCHER_VARIABLE not in os.environ and parent.fit_launcher() == os.getpid()
