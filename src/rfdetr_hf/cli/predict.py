"""`rfdetr-hf predict`: find objects on images."""

from collections.abc import Sequence

from .. import PredictArguments, UsageError, parse_arguments

DESCRIPTION = """Find objects on images, in folders and in videos.

  rfdetr-hf predict --model_name_or_path outputs/mine/best --images photo.jpg holiday/ clip.mp4
  rfdetr-hf predict ... --formats json coco --threshold 0.3

  rfdetr-hf predict ... --thresholds evaluation/mine/thresholds.json

Pictures with boxes, predictions.json and coco.json go to --output_dir. Files that cannot be read are named and left
out; the exit code is then 1, though all others are done."""


def main(argv: Sequence[str]) -> int:
    """Detect, draw, write; returns the exit code."""
    (args,) = parse_arguments((PredictArguments,), argv, prog="rfdetr-hf predict", description=DESCRIPTION)
    if not args.images:
        raise UsageError("--images is missing: name image files, video files or folders")
    from .. import predict

    return 1 if predict(args).skipped else 0
