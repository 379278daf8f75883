"""`rfdetr-hf evaluate`: how good a trained model is on a split, and what is wrong with it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import TASKS, DataArguments, EvaluateArguments
from .trained import load_subject, parse_verb

if TYPE_CHECKING:
    from .. import DetectorEvaluation

DESCRIPTION = """How good a trained model is on a split of a data set, and what is wrong with
it.

  rfdetr-hf evaluate MODEL DATA --split test
  rfdetr-hf evaluate outputs/mine/best my/data --output_dir eval --report
  rfdetr-hf evaluate outputs/mine/best my/data --flip --scales 0.75 1 1.25
  rfdetr-hf evaluate outputs/mine/best my/data --tile 640

Prints COCO's numbers, a row for each class and the types of errors; for masks
and keypoints those of boxes too. The output folder gets them as files with
predictions.json (COCO results with the category ids of the source) and, with
--report, curves, the worst images and report.html."""

TYPES = (EvaluateArguments, DataArguments)


def main(argv: Sequence[str], prog: str = "rfdetr-hf evaluate") -> int:
    """Evaluate, print the tables; returns the exit code."""
    args, data_args = parse_verb(TYPES, argv, prog, DESCRIPTION)
    from .. import log_to_console

    log_to_console()
    print(evaluate(args, data_args).tables())
    if args.output_dir:
        print(f"\nresults are in {args.output_dir}")
    return 0


def evaluate(args: EvaluateArguments, data_args: DataArguments) -> "DetectorEvaluation":
    """Load a model of any task, score it on a split, and write what is asked for.

    Raises:
        ValueError: model, data and options do not fit each other.
        FileExistsError: the output folder has files.
    """
    from tqdm.auto import tqdm

    from .. import ImageDetector, check_output, evaluate_detector, message_text, with_views

    check_output(args.output_dir, args.report)
    model, processor, dataset = load_subject(args.model_name_or_path, data_args, args.split)
    plain = ImageDetector(model, processor, args.device, bf16=args.bf16)
    detect = with_views(plain, args, args.batch_size)
    with tqdm(total=len(dataset), desc="evaluating", leave=False, disable=None) as bar:
        return evaluate_detector(
            detect,
            dataset,
            batch_size=args.batch_size,
            iou_types=TASKS[model.task].iou_types,
            max_dets=args.max_dets,
            backend=args.backend,
            output_dir=args.output_dir,
            report=args.report,
            title=message_text(f"{args.model_name_or_path} on {data_args.dataset_name}, {args.split}"),
            progress=lambda done, total: bar.update(done - bar.n),
        )
