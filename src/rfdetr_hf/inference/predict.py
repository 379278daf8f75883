"""Detect objects on images and write what was found: pictures, JSON, COCO."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..evaluation.inference import ImageDetector
from ..models.auto import load_model
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from .drawing import DrawingStyle, draw_detections
from .images import NamedImage, find_images
from .results import CocoResults, as_records

FORMATS = ("pictures", "json", "coco")
TASKS = ("detection", "segmentation", "keypoints")
_KEYPOINTS = "post_process_keypoint_detection"
_POST_PROCESS = {
    "RFDETRForInstanceSegmentation": "post_process_instance_segmentation",
    "RFDETRForKeypointDetection": _KEYPOINTS,
}


@dataclass
class PredictArguments:
    """Which model, which images, what to write."""

    model_name_or_path: str = field(metadata={"help": "A model folder or Hub id."})
    images: list[str] = field(default_factory=list, metadata={"help": "Image files, video files and folders."})
    output_dir: str = field(default="predictions", metadata={"help": "Folder for what is written."})
    formats: list[str] = field(
        default_factory=lambda: ["pictures"],
        metadata={
            "help": "pictures with boxes, predictions.json (a list for each image), coco.json (a COCO data set).",
            "choices": list(FORMATS),
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "Least score of what is drawn and written."})
    task: str | None = field(
        default=None,
        metadata={"help": "What the model must be for; default: what it is for.", "choices": list(TASKS)},
    )
    keypoint_threshold: float = field(default=0.3, metadata={"help": "Least confidence of keypoints in pictures."})
    ellipses: float = field(
        default=0.0, metadata={"help": "Draw covariance ellipses of keypoints, of so many standard deviations."}
    )
    batch_size: int = field(default=8, metadata={"help": "Images that the model sees at once."})
    every: int = field(default=1, metadata={"help": "Take each n-th frame of videos."})
    device: str | None = field(default=None, metadata={"help": "Default: cuda where there is one."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not valid: it must be at least 1")
        self.style()

    def style(self, schema: Mapping[str, Any] | None = None) -> DrawingStyle:
        """How keypoints of this schema are drawn."""
        return DrawingStyle(schema, self.keypoint_threshold, self.ellipses)


def load_detector(name_or_path: str, device: str | None = None, threshold: float = -1.0) -> ImageDetector:
    """The model of a folder or Hub id, of any task, with its image processor: PIL images in, detections out.

    Args:
        name_or_path: a model folder or Hub id.
        device: default: cuda where there is one.
        threshold: detections of masks and keypoints below it are left out, which saves the memory of their masks.
    """
    model = load_model(name_or_path).to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    processor = RFDETRImageProcessor.from_pretrained(name_or_path)
    name = _POST_PROCESS.get(type(model).__name__)
    post_process = None
    if name is not None:
        counts = model.config.num_keypoints_per_class
        options = {"num_keypoints_per_class": counts} if name == _KEYPOINTS else {}
        method = partial(getattr(processor, name), threshold=threshold, **options)

        def post_process(outputs: Any, sizes: list[tuple[int, int]], mask: torch.Tensor | None) -> list[dict[str, Any]]:
            return method(outputs, target_sizes=sizes, **({} if name == _KEYPOINTS else {"pixel_mask": mask}))

    return ImageDetector(model, processor, model.config.size_divisor, post_process)


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
    """
    if images is None and not args.images:
        raise ValueError("--images is missing: name image files, video files or folders")
    detect = load_detector(args.model_name_or_path, args.device, args.threshold)
    if args.task not in (None, detect.model.task):
        raise ValueError(f"--task {args.task}: {args.model_name_or_path} holds a model for {detect.model.task}")
    id2label, style = detect.model.config.id2label, args.style(detect.model.config.keypoint_schema)
    output, plain, coco, count = Path(args.output_dir), {}, CocoResults(id2label), 0
    output.mkdir(parents=True, exist_ok=True)
    for batch in _batches(find_images(args.images, args.every) if images is None else images, args.batch_size):
        for item, found in zip(batch, detect([item.image for item in batch]), strict=True):
            records = as_records(found, id2label, args.threshold)
            plain[item.name] = {"source": str(item.source), "objects": records}
            coco.add(str(item.source), item.image.size, found, args.threshold)
            where = item.source
            if "pictures" in args.formats:
                where = output / f"{item.name}.png"
                where.parent.mkdir(parents=True, exist_ok=True)
                draw_detections(item.image, found, id2label, args.threshold, style).save(where)
            say(f"{where}: {len(records)} objects")
            count += 1
    for name, file, value in (("json", "predictions.json", plain), ("coco", "coco.json", coco.to_dict())):
        if name in args.formats:
            (output / file).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            say(f"{output / file}: {count} images")
    return count


def _batches(items: Iterable[NamedImage], size: int) -> Iterator[list[NamedImage]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
