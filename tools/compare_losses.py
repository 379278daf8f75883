"""Compare the loss curves of two runs, for instance of two commits, step by step.

    python tools/compare_losses.py outputs/before outputs/after --rtol 1e-4

Prints the largest relative difference of each loss term and the first step beyond `--rtol`; the exit code is then 1.
"""

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

Curves = dict[str, dict[int, float]]


class Difference(NamedTuple):
    """What differs in one term: the largest relative difference, its step, and the first step beyond the tolerance."""

    largest: float
    step: int
    first: int | None


def read_curves(run: str | Path) -> Curves:
    """The loss terms of a run by step, from the `metrics.csv` of its folder.

    Raises:
        ValueError: if no loss was logged.
    """
    path = Path(run) / "metrics.csv" if Path(run).is_dir() else Path(run)
    curves: Curves = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name.startswith("loss") and value:
                    curves.setdefault(name, {})[int(row["step"])] = float(value)
    if not curves:
        raise ValueError(f"{path} has no loss; was anything logged (logging_steps)?")
    return curves


def difference(first: dict[int, float], second: dict[int, float], rtol: float) -> Difference | None:
    """Compare two curves at the steps that both have; None when there are none."""
    steps = sorted(first.keys() & second.keys())
    if not steps:
        return None
    relative = {step: _relative(first[step], second[step]) for step in steps}
    worst = max(steps, key=lambda step: relative[step])
    return Difference(relative[worst], worst, next((step for step in steps if relative[step] > rtol), None))


def _relative(a: float, b: float) -> float:
    if a == b or math.isnan(a) and math.isnan(b):
        return 0.0
    scale = max(abs(a), abs(b))
    return abs(a - b) / scale if math.isfinite(a - b) else math.inf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run_a", help="a run's folder, or its metrics.csv")
    parser.add_argument("run_b", help="likewise")
    parser.add_argument("--rtol", type=float, default=1e-5, help="largest relative difference that passes")


def main(argv: list[str]) -> int:
    """Compare and print; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    first, second = read_curves(args.run_a), read_curves(args.run_b)
    differs = False
    for name in sorted(first.keys() | second.keys()):
        found = difference(first.get(name, {}), second.get(name, {}), args.rtol)
        if found is None:
            told, failed = "no step in common", True
        else:
            told, failed = f"{found.largest:.2e} at step {found.step}", found.first is not None
            told += f"; beyond {args.rtol:g} from step {found.first} on" if failed else ""
        print(f"{'DIFFERS' if failed else 'equal':<8} {name:<24} {told}")
        differs |= failed
    return int(differs)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
