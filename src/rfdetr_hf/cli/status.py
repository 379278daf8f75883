"""`rfdetr-hf status`: where a run stands."""

import argparse
import json
from collections.abc import Sequence

from ..training.callbacks import time_left
from ..training.preemption import EXIT_CODE
from ..training.status import FAILED, FINISHED, PREEMPTED, RUNNING, read_status

EXIT_CODES = {FINISHED: 0, FAILED: 1, RUNNING: 3, PREEMPTED: EXIT_CODE}

DESCRIPTION = """Where a run stands, from its status.json and its lock.

  rfdetr-hf status outputs                      running: step 1200/9000, epoch 3.2, ETA 1:10:00, …
  rfdetr-hf status outputs --exit-code          for scripts, behind launchers that turn every exit code into 1:
                                                0 finished, 75 preempted after saving, 3 running, 1 failed or killed,
                                                2 no run there
  rfdetr-hf status outputs --json               the fields"""


def main(argv: Sequence[str], prog: str = "rfdetr-hf status") -> int:
    """Print the status of a run. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory (output_dir)")
    parser.add_argument("--exit-code", action="store_true", help="answer by the exit code as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        fields = read_status(options.run)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(fields, indent=1) if options.json else _line(fields))
    return EXIT_CODES[fields["state"]] if options.exit_code else 0


def _line(fields: dict) -> str:
    """One line for people; fields that are not there are left out."""
    parts = []
    if "step" in fields:
        parts.append(f"step {fields['step']}/{fields.get('max_steps')}")
    if fields.get("epoch") is not None:
        parts.append(f"epoch {fields['epoch']:.2f}")
    if fields.get("eta_seconds") is not None and fields["state"] == RUNNING:
        parts.append(f"ETA {time_left(fields['eta_seconds'])}")
    if fields.get("score") is not None:
        parts.append(f"best {fields.get('metric')} {fields['score']:.4f}")
    if fields.get("last_checkpoint"):
        parts.append(f"last checkpoint {fields['last_checkpoint']}")
    if fields.get("updated"):
        parts.append(f"as of {fields['updated']}")
    parts += [str(fields["message"])] if fields.get("message") else []
    return f"{fields['state']}: {', '.join(parts)}"
