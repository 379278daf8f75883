"""How this process was started, for messages that say what to type."""

import os
from collections.abc import Sequence
from pathlib import Path

LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun")
LAUNCHER_MODULES = ("accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run")
SCRIPT_OF_THE_COMMAND = ("-m", "rfdetr_hf.cli")


def started_with(program: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The words in front of `argv` on the command line: those of a launcher with its options, or `program`.

    To be asked while the launcher lives: an interruption may end it before its processes.

    Args:
        program: how the program is started without a launcher: rfdetr-hf fit, python examples/train.py.
        argv: the program's own options.
    """
    parent = _words_of_parent()
    before, after = parent[: len(parent) - len(argv)], parent[len(parent) - len(argv) :]
    if after == [*argv] and (launcher := _from_launcher(before)):
        return launcher
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return [*program]
    script = program[1:] if program[0] == "python" else [*SCRIPT_OF_THE_COMMAND, *program[1:]]
    return ["accelerate", "launch", "--num_processes", processes, *script]


def _from_launcher(words: Sequence[str]) -> list[str]:
    for n, word in enumerate(words):
        if Path(word).name in LAUNCHERS:
            return [Path(word).name, *words[n + 1 :]]
        if word in LAUNCHER_MODULES:
            return ["python", "-m", *words[n:]]
    return []


def _words_of_parent() -> list[str]:
    """The command line of the process that started this one; empty where the system does not tell."""
    try:
        import psutil
    except ImportError:
        return []
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
