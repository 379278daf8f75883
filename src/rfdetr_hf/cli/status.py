"""`rfdetr-hf status`: where a run stands."""

import argparse
import json
from collections.abc import Sequence

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
    from .. import STATUS_EXIT_CODES, read_status, status_line

    try:
        fields = read_status(options.run)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(fields, indent=1) if options.json else status_line(fields))
    return STATUS_EXIT_CODES[fields["state"]] if options.exit_code else 0
