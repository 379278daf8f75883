"""Detect objects on images and draw them.

    python examples/predict.py --model_name_or_path outputs/quickstart/best --images photo.jpg folder/

Without `--images` it draws held-out synthetic shapes, which is what the quickstart's model knows. `rfdetr-hf predict`
is this script as a command.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.pipeline.pixels import decode_image
from rfdetr_hf.inference.images import NamedImage
from rfdetr_hf.inference.predict import PredictArguments, predict
from rfdetr_hf.training.arguments import parse_arguments


def held_out_shapes() -> Iterator[NamedImage]:
    """Eight synthetic images that no training has seen."""
    for row in load_detection_dataset("synthetic-shapes")["test"].select(range(8)):
        name = f"shapes-{row['image_id']}"
        yield NamedImage(name, Path(f"{name}.png"), decode_image(row))


def main(argv: list[str]) -> None:
    """Parse, detect, draw."""
    (args,) = parse_arguments((PredictArguments,), argv, prog="predict.py")
    predict(args, None if args.images else held_out_shapes())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
