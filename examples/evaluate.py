"""COCO metrics of a trained model on one split of a data set, and what is wrong with it.

    python examples/evaluate.py outputs/quickstart/best synthetic-shapes --split test
    python examples/evaluate.py --model_name_or_path outputs/bccd/best --dataset_name bccd --split test \\
        --output_dir evaluation/bccd --report

The output folder gets metrics.json, per_class.csv, errors.txt, predictions.json (COCO results with the category ids of
the source) and, with `--report`, curves, the worst images and report.html. `rfdetr-hf evaluate` is this script as a
command.
"""

import sys

from rfdetr_hf.cli.evaluate import TYPES, evaluate
from rfdetr_hf.cli.trained import as_options
from rfdetr_hf.training.arguments import parse_arguments
from rfdetr_hf.training.console import log_to_console


def main(argv: list[str]) -> None:
    """Load, evaluate, print."""
    log_to_console()
    args, data_args = parse_arguments(TYPES, as_options(argv, TYPES), prog="evaluate.py")
    print(evaluate(args, data_args).tables())
    if args.output_dir:
        print(f"\nresults are in {args.output_dir}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
