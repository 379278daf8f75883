"""Detect objects on images and draw them.

    python examples/predict.py outputs/quickstart/best photo.jpg folder/

Without images it draws held-out synthetic shapes, which is what the quickstart's model knows. `rfdetr-hf predict`
does more: JSON and COCO files, batches, videos frame by frame.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from rfdetr_hf import (
    DrawingStyle,
    ViewArguments,
    decode_image,
    draw_detections,
    find_images,
    load_detection_dataset,
    load_detector,
    option,
    parse_arguments,
    with_views,
)

PLACES = {"model_name_or_path": "MODEL", "images": "IMAGES..."}


@dataclass(kw_only=True)
class PredictOptions(ViewArguments):
    """Which model, which images, what to draw; `ViewArguments` adds flips, scales and tiles."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.")
    images: list[str] = option(list, "Image files, video files and folders; default: synthetic shapes.")
    output_dir: str = option("predictions", "Folder for the pictures; those of the same name are replaced.")
    threshold: float = option(0.5, "Confidence threshold of what is drawn.")
    ellipses: float = option(0.0, "Draw covariance ellipses of keypoints, of so many standard deviations.")
    device: str | None = option(None, "cpu, cuda, cuda:1; default: cuda where there is one.")


def main(argv: list[str]) -> None:
    """Load the model, detect, draw."""
    (args,) = parse_arguments((PredictOptions,), argv, prog="predict.py", positional=PLACES)

    # The detector: a list of PIL images in; scores, labels and boxes (masks, keypoints) of each out, in its pixels.
    plain = load_detector(args.model_name_or_path, args.device)
    config, detect = plain.model.config, with_views(plain, args)
    style = DrawingStyle(config.keypoint_schema, ellipses=args.ellipses)

    if args.images:
        images = ((item.name, item.image) for item in find_images(args.images, image_decoder=plain.image_decoder))
    else:  # eight synthetic images that no training has seen
        shapes = load_detection_dataset("synthetic-shapes")["test"].select(range(8))
        images = ((f"shapes-{row['image_id']}", decode_image(row)) for row in shapes)

    for name, image in images:
        (found,) = detect([image])
        path = Path(args.output_dir) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_detections(image, found, config.id2label, args.threshold, style).save(path)
        count = int((found["scores"] > args.threshold).sum())
        print(f"{path}: {count} object{'' if count == 1 else 's'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        sys.exit(f"error: {error}")
