"""COCO metrics of a trained model on one split of a data set, and what is wrong with it.

    python examples/evaluate.py outputs/quickstart/best --split test
    python examples/evaluate.py outputs/bccd/best bccd --split test \
        --output_dir evaluation/bccd --report

The output folder gets metrics.json, per_class.csv, errors.txt, predictions.json (COCO results with the category ids of
the source) and, with `--report`, curves, the worst images and report.html. `rfdetr-hf evaluate` does the same as a
command.
"""

import sys
from dataclasses import dataclass

from rfdetr_hf import (
    TASKS,
    DataArguments,
    ViewArguments,
    evaluate_detector,
    load_detection_dataset,
    load_detector,
    log_to_console,
    option,
    parse_arguments,
    with_views,
)

PLACES = {"model_name_or_path": "MODEL", "dataset_name": "DATA"}


@dataclass(kw_only=True)
class EvaluateOptions(ViewArguments):
    """Which model and split, and where the results go; `ViewArguments` adds flips, scales and tiles."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.")
    split: str = option("validation", "Split of the data set.")
    output_dir: str | None = option(None, "Folder for the results; new or empty.")
    report: bool = option(False, "Also curves, worst images and report.html.")
    batch_size: int = option(8, "Images of a batch.")
    device: str | None = option(None, "cpu, cuda, cuda:1; default: cuda where there is one.")


def main(argv: list[str]) -> None:
    """Load the model and its data, evaluate, print."""
    args, data_args = parse_arguments((EvaluateOptions, DataArguments), argv, prog="evaluate.py", positional=PLACES)
    log_to_console()

    # The detector: PIL images in, detections out. Its model says what the data must hold, and how classes are called.
    plain = load_detector(args.model_name_or_path, args.device)
    model, detect = plain.model, with_views(plain, args, args.batch_size)
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    dataset = load_detection_dataset(**data_args.load_options(model.task), class_names=names)
    if args.split not in dataset:
        raise ValueError(f"{data_args.dataset_name} has no split {args.split!r}; it has {', '.join(dataset)}")

    result = evaluate_detector(
        detect,
        dataset[args.split],
        batch_size=args.batch_size,
        iou_types=TASKS[model.task].iou_types,
        output_dir=args.output_dir,
        report=args.report,
    )
    print(result.tables())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
