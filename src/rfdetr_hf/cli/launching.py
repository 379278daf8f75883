"""How this process was started, for messages that say what to type."""

import os
from collections.abc import Sequence

from ..training.parent import launcher_words, words_of

SCRIPT_OF_THE_COMMAND = ("-m", "rfdetr_hf.cli")


def started_with(program: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The words in front of `argv` on the command line: those of a launcher with its options, or `program`.

    To be asked while the launcher lives: an interruption may end it before its processes.

    Args:
        program: how the program is started without a launcher: rfdetr-hf fit, python examples/train.py.
        argv: the program's own options.
    """
    parent = words_of(os.getppid())
    before, after = parent[: len(parent) - len(argv)], parent[len(parent) - len(argv) :]
    if after == [*argv] and (launcher := launcher_words(before)):
        return launcher
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return [*program]
    script = program[1:] if program[0] == "python" else [*SCRIPT_OF_THE_COMMAND, *program[1:]]
    return ["accelerate", "launch", "--num_processes", processes, *script]
