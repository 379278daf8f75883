"""`rfdetr-hf predict`: find objects on images."""

from collections.abc import Sequence

from .. import PredictArguments, UsageError, parse_arguments, predict

DESCRIPTION = """Find objects on images, in folders and in videos.

  rfdetr-hf predict --model_name_or_path outputs/mine/best --images photo.jpg holiday/ clip.mp4
  rfdetr-hf predict ... --formats json coco --threshold 0.3

Pictures with boxes, predictions.json and coco.json go to --output_dir."""


def main(argv: Sequence[str]) -> int:
    """Detect, draw, write; returns the exit code."""
    (args,) = parse_arguments((PredictArguments,), argv, prog="rfdetr-hf predict", description=DESCRIPTION)
    if not args.images:
        raise UsageError("--images is missing: name image files, video files or folders")
    predict(args)
    return 0
