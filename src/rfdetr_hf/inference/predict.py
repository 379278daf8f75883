"""Detect objects on images and write what was found: pictures, JSON, COCO."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..drawing import DrawingStyle, draw_detections
from ..tasks import TASKS
from .detector import load_detector
from .images import NamedImage, find_images
from .results import CocoResults, as_records, keypoints_of_classes
from .views import ViewArguments, with_views

FORMATS = ("pictures", "json", "coco")


@dataclass
class PredictArguments(ViewArguments):
    """Which model, which images, what to write."""

    model_name_or_path: str = field(metadata={"help": "A model folder, Hub id or official file."})
    images: list[str] = field(default_factory=list, metadata={"help": "Image files, video files and folders."})
    output_dir: str = field(default="predictions", metadata={"help": "Folder for what is written; new or empty."})
    formats: list[str] = field(
        default_factory=lambda: ["pictures"],
        metadata={
            "help": "pictures, predictions.json (a list for each image), coco.json (a COCO data set).",
            "choices": list(FORMATS),
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "Least score of what is drawn and written."})
    task: str | None = field(
        default=None,
        metadata={"help": "What the model must be for; default: what it is for.", "choices": list(TASKS)},
    )
    keypoint_threshold: float = field(
        default=0.3, metadata={"help": "Least confidence of keypoints in pictures and coco.json."}
    )
    ellipses: float = field(
        default=0.0, metadata={"help": "Draw covariance ellipses of keypoints, of so many standard deviations."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images that the model sees at once."})
    every: int = field(default=1, metadata={"help": "Take each n-th frame of videos."})
    device: str | None = field(default=None, metadata={"help": "Default: cuda where there is one."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that has files, and replace them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not valid: it must be at least 1")
        self.style()

    def style(self, schema: Mapping[str, Any] | None = None) -> DrawingStyle:
        """How keypoints of this schema are drawn."""
        return DrawingStyle(schema, self.keypoint_threshold, self.ellipses)


def predict(
    args: PredictArguments, images: Iterable[NamedImage] | None = None, say: Callable[[str], None] = print
) -> int:
    """Detect on all images and write what `args.formats` names into `args.output_dir`.

    Args:
        args: what to do.
        images: default: what `args.images` names.
        say: takes a line for each image.

    Returns:
        The number of images.

    Raises:
        ValueError: no images are named, one cannot be read, or views are asked for of a model that gives more than
            boxes.
        FileNotFoundError: an image or the model is not there.
        FileExistsError: the output folder has files and `overwrite` is not set, or a picture would replace its source.
    """
    if images is None and not args.images:
        raise ValueError("--images is missing: name image files, video files or folders")
    output = Path(args.output_dir)
    if not args.overwrite and output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"--output_dir {output} has files: choose another, or replace them with --overwrite true")
    # Boxes of several views are fused before they are cut.
    threshold = -1.0 if args.fuses or args.tile else args.threshold
    plain = load_detector(args.model_name_or_path, args.device, threshold, bf16=args.bf16)
    model, detect = plain.model, with_views(plain, args, args.batch_size)
    if args.task not in (None, model.task):
        raise ValueError(f"--task {args.task}: {args.model_name_or_path} holds a model for {model.task}")
    config: Any = model.config
    id2label, style = config.id2label, args.style(config.keypoint_schema)
    objects, count = {}, 0
    coco = CocoResults(id2label, keypoints_of_classes(config), args.keypoint_threshold)
    output.mkdir(parents=True, exist_ok=True)
    for batch in _batches(find_images(args.images, args.every) if images is None else images, args.batch_size):
        for item, found in zip(batch, detect([item.image for item in batch]), strict=True):
            records = as_records(found, id2label, args.threshold)
            objects[item.name] = {"source": str(item.source), "objects": records}
            coco.add(str(item.source), item.image.size, found, args.threshold)
            where = item.source
            if "pictures" in args.formats:
                where = output / f"{item.name}.png"
                if where.resolve() == item.source.resolve():
                    raise FileExistsError(f"--output_dir {output}: the picture would replace its source {where}")
                where.parent.mkdir(parents=True, exist_ok=True)
                draw_detections(item.image, found, id2label, args.threshold, style).save(where)
            say(f"{where}: {len(records)} objects")
            count += 1
    for name, file, value in (("json", "predictions.json", objects), ("coco", "coco.json", coco.to_dict())):
        if name in args.formats:
            (output / file).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            say(f"{output / file}: {count} images")
    return count


def _batches(items: Iterable[NamedImage], size: int) -> Iterator[list[NamedImage]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
