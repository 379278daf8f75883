"""The `rfdetr-hf` command: finds the verb, runs it, and turns errors into exit codes."""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from .. import UsageError, __version__, end_with_launcher, explain_verb, message_text

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "fit": "train a model, or go on with an interrupted training",
    "status": "where a training stands; with --exit-code for schedulers",
    "validate": "COCO metrics of a trained model on the validation split",
    "test": "the same on the test split",
    "evaluate": "tables, errors and a report of a trained model",
    "predict": "find objects on images, folders, videos and data sets",
    "demo": "a page to try a model on, here or as a Space",
    "export": "write a trained model as ONNX or as a torch.export program",
    "data audit": "what is odd about a data set: files, copies, boxes, classes",
    "data preview": "the training images as the model will see them",
    "data convert": "write a data set as shards or as a folder",
    "convert": "turn official checkpoints into folders, and back",
    "config": "print the options of a training as they will be used, as YAML",
    "doctor": "versions, devices, and what is missing",
}

HELP = """usage: rfdetr-hf <verb> [options]

Train, evaluate and use RF-DETR object detectors.

verbs:
{verbs}

first steps:
  rfdetr-hf doctor                           is everything there?
  rfdetr-hf fit my/data --model nano         fine-tune on every GPU that is there
  rfdetr-hf fit --config run.yaml            train with the options of a file
  rfdetr-hf fit --config run.yaml --resume   go on after an interruption
  rfdetr-hf evaluate outputs/best my/data --split test
  rfdetr-hf predict outputs/best photo.jpg

`rfdetr-hf <verb> --help` lists the options of a verb.
Exit codes: 0 success, 1 failure, 2 misuse of options, 75 preempted: a
checkpoint is written unless no step was taken, 130 interrupted.
RFDETR_DEBUG=1 shows where an error comes from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words of the command line without the program; default: those of the process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no text
    if argv is None and not (sys.stderr is not None and sys.stderr.isatty()):
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")  # a bar in a file or a pipe is a heap of lines
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<12} {text}" for verb, text in VERBS.items())))
        return OK if words else USAGE
    if words[0] in ("-V", "--version"):
        print(f"rfdetr-hf {__version__}")
        return OK
    verb = next((each for each in VERBS if words[: each.count(" ") + 1] == each.split()), words[0])
    options = words[verb.count(" ") + 1 :]
    if any(each.startswith(f"{verb} ") for each in VERBS):
        print("\n".join(f"rfdetr-hf {each:<14} {text}" for each, text in VERBS.items() if each.startswith(f"{verb} ")))
        return OK if options and options[0] in ("-h", "--help") else USAGE
    if verb not in VERBS:
        return _complain(f"unknown verb {verb!r}; {explain_verb(verb, VERBS)}", USAGE)
    return _run(verb, options)


def _run(verb: str, options: list[str]) -> int:
    if verb == "fit":
        end_with_launcher()  # before the imports, which take seconds
    try:
        result = import_module(f"rfdetr_hf.cli.{verb.replace(' ', '_')}").main(options)
    except UsageError as error:
        return _complain(f"{error}\nrfdetr-hf {verb} --help lists the options", USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except SystemExit as error:  # of argparse, and of a preempted run
        return (
            error.code if isinstance(error.code, int) else OK if error.code is None else _complain(error.code, FAILED)
        )
    except Exception as error:  # noqa: BLE001 - the shell gets one line; RFDETR_DEBUG shows the rest
        if os.environ.get("RFDETR_DEBUG"):
            print(message_text(traceback.format_exc()), file=sys.stderr)
        return _complain(f"{error}" or type(error).__name__, FAILED)
    return result if isinstance(result, int) else OK


def _complain(text: object, code: int) -> int:
    print(message_text(f"rfdetr-hf: {text}"), file=sys.stderr)
    return code
