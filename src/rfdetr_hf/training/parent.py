"""The process that started this one: whether it is a launcher, and a signal when it ends (Linux)."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

LAUNCHER_SCRIPTS = ("accelerate", "accelerate-launch", "torchrun", "deepspeed")
LAUNCHER_MODULES = (
    "accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run",
    "torch.distributed.launch", "deepspeed.launcher.launch", "deepspeed.launcher.runner",
)  # fmt: skip
# Holds the process id of the command that has started this one and its like; see `processes.py` and `fit_launcher`.
LAUNCHER_VARIABLE = "RFDETR_LAUNCHER"
# Options of the interpreter that are followed by a word of their own.
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_PR_SET_PDEATHSIG = 1
# This process, and the launcher that was its parent when it was first looked for.
_launched: tuple[int, int] | None = None
# This process, and the command `rfdetr-hf fit` that has started it.
_of_fit: tuple[int, int] | None = None


def fit_launcher() -> int | None:
    """The process of `rfdetr-hf fit` on several devices that has started this one.

    Its variable is taken out of the environment: what this process starts is none of that command's.
    """
    global _of_fit
    if value := os.environ.pop(LAUNCHER_VARIABLE, ""):
        _of_fit = os.getpid(), int(value)
    return _of_fit[1] if _of_fit is not None and _of_fit[0] == os.getpid() else None


def words_of(pid: int) -> list[str]:
    """The command line of a process; empty where the system does not tell."""
    if sys.platform == "linux":
        try:
            return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
        except OSError:
            return []
    import psutil

    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def launcher_words(words: Sequence[str]) -> list[str]:
    """A launcher's command line as one would type it: `accelerate launch …`, `python -m torch.distributed.run …`.

    Args:
        words: the command line of any process.

    Returns:
        Empty for what is no launcher, such as a shell that has one in its script.
    """
    if not words:
        return []
    if Path(words[0]).stem in LAUNCHER_SCRIPTS:
        return [Path(words[0]).stem, *words[1:]]
    if not Path(words[0]).name.startswith(("python", "pypy")):
        return []
    n = 1
    while n < len(words) and words[n].startswith("-") and words[n] not in ("-m", "-c"):
        n += 2 if words[n] in _WITH_VALUE else 1
    script = list(words[n:])
    if len(script) > 1 and script[0] == "-m":
        return ["python", *script] if script[1] in LAUNCHER_MODULES else []
    if script and Path(script[0]).stem in LAUNCHER_SCRIPTS:
        return [Path(script[0]).stem, *script[1:]]
    return []


def chosen_threads(launcher: int) -> bool:
    """Whether a user has chosen for a launcher, by its options or environment, how many threads its processes have.

    Args:
        launcher: its process id.
    """
    import psutil

    try:
        set_before = "OMP_NUM_THREADS" in psutil.Process(launcher).environ()
    except psutil.Error:
        return True  # nobody knows: nothing is changed
    return set_before or any(word.startswith("--num_cpu_threads_per_process") for word in words_of(launcher))


def signal_at_launchers_end(number: int) -> bool:
    """Have the system send a signal to this process when the launcher that started it ends, however it ends.

    A launcher that only waits passes no signal on, and one that is killed cannot: its processes would train on as
    orphans. Nothing is asked for where the parent is a shell, a notebook or another program, and outside Linux.

    Args:
        number: the signal.

    Returns:
        Whether a launcher that an earlier call has seen, or this one, has ended already: no signal comes any more.
    """
    global _launched
    process, parent, ours = os.getpid(), os.getppid(), fit_launcher()
    if _launched is None or _launched[0] != process:
        if sys.platform != "linux":
            return False
        if ours not in (None, parent) and not words_of(ours):
            return True
        if ours != parent and not launcher_words(words_of(parent)):
            return False
        _launched = process, parent
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0) != 0:
        logger.warning("no signal will come at the launcher's end: %s", os.strerror(ctypes.get_errno()))
    return os.getppid() != _launched[1]


def end_with_launcher() -> None:
    """End this process by SIGTERM when the launcher that started it ends, or has ended: nothing is to be saved yet.

    `rfdetr-hf fit` calls it first, and [`RFDETRTrainer`] at its construction; a script that prepares data and model for
    long calls it at its start. In [`RFDETRTrainer.train`] the same signal saves before it ends the run. Launchers are
    those of accelerate, torchrun and DeepSpeed and `rfdetr-hf fit` itself, on Linux; elsewhere nothing happens.
    """
    if signal_at_launchers_end(signal.SIGTERM):
        signal.raise_signal(signal.SIGTERM)
