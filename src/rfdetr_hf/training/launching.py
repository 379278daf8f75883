"""How this process was started, for messages that say what to type."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from accelerate import PartialState

from ..options import word_without_secrets
from .checkpoint.resume import require_folder
from .checkpoint.run_directory import RunDirectory
from .parent import fit_launcher, launcher_words, words_of
from .preemption import Preempted

SCRIPT_OF_THE_COMMAND = ("-m", "rfdetr_hf.cli")
# Options that the command of a resumed run must not repeat, and those that no terminal should show.
_NOT_REPEATED = ("--resume", "--resume_from_checkpoint", "--hub_token")


@contextmanager
def resume_hint(output_dir: str, argv: Sequence[str], program: Sequence[str]) -> Iterator[None]:
    """Around a training: when it has to end early, the main process prints what to type to go on.

    Args:
        output_dir: of the run.
        argv: the options that it was made of.
        program: how the program is started without a launcher: rfdetr-hf fit, python examples/train.py.
    """
    words = started_with(program, argv)  # now: an interruption may end the launcher before its processes
    try:
        yield
    except (KeyboardInterrupt, Preempted):
        if PartialState().is_main_process:
            with suppress(OSError):  # a pipe to a program that the same Ctrl-C has ended
                print(f"\n{how_to_go_on(output_dir, argv, words)}", flush=True)
        raise


def check_run_directory(output_dir: str, resume: bool | str | None) -> None:
    """Look whether a run may begin in a directory, or go on, before a model or data is fetched.

    Args:
        output_dir: of the run.
        resume: `resume_from_checkpoint`.

    Raises:
        FileExistsError: a new run would write into the files of an earlier one.
        CheckpointError: the local folder to resume from is no checkpoint.
    """
    RunDirectory(output_dir).require_new(resume)
    require_folder(resume)


def how_to_go_on(output_dir: str, argv: Sequence[str], program: Sequence[str]) -> str:
    """What to type after an interruption: `program`, launcher included, and its options `argv`."""
    checkpoint = RunDirectory(output_dir).newest()
    if checkpoint is None:
        return f"No checkpoint is written yet: remove {output_dir} and start again."
    words, left_out, option = [], False, ""
    for word in argv:
        named = word.startswith("--")
        option = word[2:].split("=")[0].replace("-", "_") if named else option
        if named and f"--{option}" in _NOT_REPEATED:
            left_out = "=" not in word
        elif named or not left_out:
            left_out = False
            name, equals, value = word.partition("=") if named else ("", "", word)
            words.append(f"{name}{equals}{word_without_secrets(value, option)}")
        else:
            left_out = False
    return f"{checkpoint} is complete. Go on from there with:\n  {shlex.join([*program, *words, '--resume'])}"


def started_with(program: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The words in front of `argv` on the command line: those of a launcher with its options, or `program`."""
    if fit_launcher() is not None:  # the program has started its processes itself
        return [*program]
    parent = words_of(os.getppid())
    before, after = parent[: len(parent) - len(argv)], parent[len(parent) - len(argv) :]
    if after == [*argv] and (launcher := launcher_words(before)):
        return launcher
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes == "1":
        return [*program]
    script = program[1:] if program[0] == "python" else [*SCRIPT_OF_THE_COMMAND, *program[1:]]
    return ["accelerate", "launch", "--num_processes", processes, *script]
