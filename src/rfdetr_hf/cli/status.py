"""`rfdetr-hf status`: where a run stands."""

import json
from collections.abc import Sequence

from .. import StatusArguments, UsageError, parse_arguments

DESCRIPTION = """Where a run stands, from its status.json and its lock.

  rfdetr-hf status RUN          running: step 1200/9000, epoch 3.2, ETA 1:10:00
  rfdetr-hf status RUN --json   the fields
  rfdetr-hf status RUN --exit_code

The last one is for scripts, behind launchers that turn every exit code into 1:
0 finished, 75 preempted, 3 running, 1 failed or killed, 2 no run
there."""


def main(argv: Sequence[str], prog: str = "rfdetr-hf status") -> int:
    """Print the status of a run. Returns the exit code."""
    (args,) = parse_arguments((StatusArguments,), argv, prog, DESCRIPTION, {"run": "RUN"})
    from .. import STATUS_EXIT_CODES, read_status, status_line

    try:
        fields = read_status(args.run)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(json.dumps(fields, indent=1) if args.json else status_line(fields))
    return STATUS_EXIT_CODES[fields["state"]] if args.exit_code else 0
