"""`rfdetr-hf fit`: train."""

import contextlib
import shlex
from collections.abc import Sequence

from ..training.arguments import DataArguments, ModelArguments, RFDETRTrainingArguments, parse_arguments
from ..training.building import build_trainer
from ..training.checkpoint.run_directory import RunDirectory
from ..training.console import log_to_console
from ..training.preemption import Preempted
from ..training.trainer import RFDETRTrainer
from .launching import started_with

TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments)

DESCRIPTION = """Train an RF-DETR detector.

  rfdetr-hf fit --variant nano --max_steps 20             try it on synthetic shapes
  rfdetr-hf fit --model_name_or_path Roboflow/rf-detr-nano --dataset_name path/to/data --output_dir outputs/mine
  rfdetr-hf fit --config run.yaml                         options from a file; the command line wins over it
  rfdetr-hf fit --config run.yaml --resume                go on where the last checkpoint was written

The data is a folder in COCO's, Roboflow's or YOLO's layout, or a Hub data set. The best model goes to
<output_dir>/best, which `rfdetr-hf predict` and plain transformers read."""


def main(argv: Sequence[str], prog: str = "rfdetr-hf fit") -> int:
    """Train, and evaluate the test split if there is one. Returns the exit code."""
    model_args, data_args, training_args = parse_arguments(TYPES, argv, prog=prog, description=DESCRIPTION)
    log_to_console()
    train(build_trainer(model_args, data_args, training_args), argv, prog.split())
    return 0


def train(trainer: RFDETRTrainer, argv: Sequence[str], program: Sequence[str]) -> None:
    """Train; an interruption says what to type to go on.

    Args:
        trainer: of the run.
        argv: the options that it was made of.
        program: how the program is started without a launcher.

    Raises:
        Preempted: the training was asked to end, by Ctrl-C for example, and has saved.
        KeyboardInterrupt: it was interrupted twice, or before it could save.
    """
    words = started_with(program, argv)
    try:
        trainer.train()
    except (KeyboardInterrupt, Preempted):
        if trainer.accelerator.is_main_process:
            with contextlib.suppress(OSError):  # a pipe to a program that the same Ctrl-C has ended
                print(f"\n{how_to_go_on(trainer.args.output_dir, argv, words)}", flush=True)
        raise


def how_to_go_on(output_dir: str, argv: Sequence[str], program: Sequence[str]) -> str:
    """What to type after an interruption: `program`, launcher included, and its options `argv`."""
    checkpoint = RunDirectory(output_dir).newest()
    if checkpoint is None:
        return f"No checkpoint is written yet: remove {output_dir} and start again."
    command = shlex.join([*program, *_to_repeat(argv), "--resume"])
    return f"{checkpoint} is whole. Go on from there with:\n  {command}"


def _to_repeat(argv: Sequence[str]) -> list[str]:
    """The options without those of resuming, and without the secret one."""
    words, names = [], ("--resume", "--resume_from_checkpoint", "--hub_token")
    follows = False
    for word in argv:
        is_option = word.startswith("--")
        if word.split("=")[0] in names:
            follows = "=" not in word
        elif follows and not is_option:
            follows = False
        else:
            follows = False
            words.append(word)
    return words
