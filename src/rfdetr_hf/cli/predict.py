"""`rfdetr-hf predict`: find objects on images."""

from collections.abc import Sequence

from .. import PredictArguments, UsageError, parse_arguments

DESCRIPTION = """Find objects on images, in folders, videos and data sets.

  rfdetr-hf predict MODEL IMAGES...
  rfdetr-hf predict outputs/mine/best photo.jpg holiday/ clip.mp4
  rfdetr-hf predict outputs/mine/best holiday/ --formats jsonl yolo crops
  rfdetr-hf predict outputs/mine/best user/dataset --split test
  rfdetr-hf predict outputs/mine/best holiday/ --thresholds thresholds.json

What is found goes to --output_dir as it is found. Files that cannot be read,
or on which the model fails, are named and left out; the exit code is then 1,
though all others are done."""


def main(argv: Sequence[str]) -> int:
    """Detect, draw, write; returns the exit code."""
    places = {"model_name_or_path": "MODEL", "images": "IMAGES..."}
    (args,) = parse_arguments((PredictArguments,), argv, "rfdetr-hf predict", DESCRIPTION, places)
    if not args.images:
        raise UsageError("IMAGES (--images) is missing: name image files, video files or folders")
    from .. import predict

    return 1 if predict(args).skipped else 0
