"""Detect objects on images and draw them.

    python examples/predict.py --model_name_or_path outputs/quickstart/best --images photo.jpg folder/

Without `--images` it draws held-out synthetic shapes, which is what the quickstart's model knows.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor, load_detection_dataset
from rfdetr_hf.data.schema import decode_image
from rfdetr_hf.training.arguments import parse_arguments

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass
class PredictArguments:
    """Which model, which images, where to draw."""

    model_name_or_path: str = field(metadata={"help": "A model folder or Hub id."})
    images: list[str] = field(default_factory=list, metadata={"help": "Image files or folders."})
    output_dir: str = field(default="predictions", metadata={"help": "Folder for the drawn images."})
    threshold: float = field(default=0.5, metadata={"help": "Least score that is drawn."})


def find_images(paths: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Names and upright RGB images of files and folders; eight held-out synthetic images when none are given."""
    if not paths:
        for row in load_detection_dataset("synthetic-shapes")["test"].select(range(8)):
            yield f"shapes-{row['image_id']}.png", decode_image(row)
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        for file in files:
            with Image.open(file) as image:
                yield f"{file.stem}.png", ImageOps.exif_transpose(image).convert("RGB")


def draw(image: Image.Image, detections: dict[str, torch.Tensor], id2label: dict[int, str]) -> Image.Image:
    """The image, enlarged when it is small, with boxes, class names and scores."""
    scale = max(1, round(480 / max(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for score, label, box in zip(*(detections[k].tolist() for k in ("scores", "labels", "boxes")), strict=True):
        colour, corner = COLOURS[label % len(COLOURS)], (box[0] * scale, max(box[1] * scale - 12, 0))
        pen.rectangle([value * scale for value in box], outline=colour, width=2)
        text = f"{id2label[label]} {score:.2f}"
        pen.rectangle(pen.textbbox(corner, text), fill=colour)
        pen.text(corner, text, fill="white")
    return canvas


@torch.no_grad()
def main(argv: list[str]) -> None:
    """Load, detect, draw."""
    (args,) = parse_arguments((PredictArguments,), argv, prog="predict.py")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RFDETRForObjectDetection.from_pretrained(args.model_name_or_path).to(device).eval()
    processor = RFDETRImageProcessor.from_pretrained(args.model_name_or_path)
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    for name, image in find_images(args.images):
        outputs = model(**processor(image, return_tensors="pt").to(device))
        sizes = [(image.height, image.width)]
        found = processor.post_process_object_detection(outputs, threshold=args.threshold, target_sizes=sizes)[0]
        draw(image, found, model.config.id2label).save(output / name)
        print(f"{output / name}: {len(found['scores'])} objects")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"error: {error}")
