"""A training on several processes of this machine: starts them, passes signals on, answers with their exit code."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..arguments.launch import LaunchArguments
from ..choices import counted
from ..cores import usable_cores
from .parent import LAUNCHER_VARIABLE, chosen_threads, fit_launcher, launcher_words, words_of
from .preemption import EXIT_CODE, SIGNALS

logger = logging.getLogger(__name__)

_LOOK, _GRACE = 0.1, 30.0
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def run_processes(args: LaunchArguments, command: Sequence[str]) -> int | None:
    """Run a command on as many processes as `args` and the machine say.

    Signals of this process go to all of them. When one fails, the others are ended.

    Args:
        args: devices and number of processes.
        command: what each process runs, after the interpreter.

    Returns:
        The exit code of the first process that failed, or 0. None where one process is enough or this one was started
        by a launcher: it does the work itself, and finds its device in the environment.

    Raises:
        ValueError: the machine has not these GPUs, or a launcher has decided already.
    """
    if fit_launcher() is not None:
        return None
    if any(name in os.environ for name in _OF_LAUNCHERS):
        for name in ("device", "num_processes"):
            if (value := getattr(args, name)) is not None:
                raise ValueError(f"{name}={value!r} is for a start without a launcher; give it to the launcher")
        return None
    count, variables = plan(args, torch.cuda.device_count())
    if count == 1:
        os.environ.update(variables)
        return None
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // count))
    each = counted(int(threads), "thread") if threads.isdecimal() else f"{threads} threads"
    where = "the CPU" if "ACCELERATE_USE_CPU" in variables else f"{count} GPUs"
    print(f"{count} processes on {where}, {each} each; --num_processes 1 starts one", flush=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, **variables, LAUNCHER_VARIABLE: str(os.getpid()), "OMP_NUM_THREADS": threads}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return _watch([sys.executable, *command], [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)])


def plan(args: LaunchArguments, gpus: int) -> tuple[int, dict[str, str]]:
    """The number of processes, and the variables of the environment that say where they run.

    Args:
        args: what is asked for.
        gpus: how many PyTorch sees.

    Raises:
        ValueError: the machine has not these GPUs.
    """
    named = args.gpus
    if args.device == "cpu" or not gpus and args.device is None:
        count = args.num_processes or 1
        return count, {"ACCELERATE_USE_CPU": "true"} if args.device == "cpu" or count > 1 else {}
    if not gpus or named and max(named) >= gpus:
        raise ValueError(f"device={args.device!r}: PyTorch sees {gpus or 'no'} GPU{'s' * (gpus != 1)} here")
    count = args.num_processes or len(named) or gpus
    if count > gpus:
        raise ValueError(f"num_processes={count}: PyTorch sees {gpus} GPU{'s' * (gpus != 1)} here")
    if not named:
        return count, {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # PyTorch stops at the first that does not exist
    names = visible[:gpus] if visible[0].strip() else [str(n) for n in range(gpus)]
    return count, {"CUDA_VISIBLE_DEVICES": ",".join(names[n] for n in named)}


def use_cores(device: torch.device, processes: int) -> None:
    """Give a run on the CPU its share of the cores where the launcher, and not the user, has set one thread.

    Args:
        device: where the run computes.
        processes: of this run on this machine.
    """
    share = max(1, usable_cores() // processes)
    if device.type != "cpu" or torch.get_num_threads() != 1 or share == 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        return
    if launcher_words(words_of(os.getppid())) and not chosen_threads(os.getppid()):
        torch.set_num_threads(share)
        logger.info("%s for each of %s, where the launcher set 1; OMP_NUM_THREADS=1 keeps that",
                    counted(share, "thread"), counted(processes, "process"))  # fmt: skip


def _watch(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Start the processes and wait for them."""
    processes: list[subprocess.Popen[bytes]] = []
    noticed: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        noticed.append(number)
        for process in processes:
            # Elsewhere an interruption reaches all processes of the console by itself.
            if process.poll() is None and (os.name == "posix" or number == signal.SIGTERM):
                process.send_signal(number)

    # What was started with these ignored (nohup, a shell's background) leaves them to its processes.
    earlier = {n: signal.signal(n, pass_on) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    code, deadline = 0, None
    try:
        for each in environments:
            processes.append(subprocess.Popen(command, env=dict(each)))
        for number in noticed[:]:  # those that came before all were there
            pass_on(number, None)
        while None in [process.poll() for process in processes]:
            time.sleep(_LOOK)
            failed = next((p.returncode for p in processes if p.returncode), 0)
            if failed and not code:
                code, deadline = failed, time.monotonic() + _GRACE
                if failed != EXIT_CODE:  # those that save end by themselves
                    pass_on(signal.SIGTERM, None)
            if deadline is not None and code != EXIT_CODE and time.monotonic() > deadline:
                for process in processes:
                    process.kill()
        code = code or next((p.returncode for p in processes if p.returncode), 0)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    return 128 - code if code < 0 else code
