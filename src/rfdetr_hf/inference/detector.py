"""From a checkpoint of any task to a detector of PIL images, with views and tiles where they are asked for."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch

from ..models.files.auto import load_model, load_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRPreTrainedModel
from .views import AugmentedDetector, Detector, ImageDetector, TiledDetector

LEAST_TILE, LARGEST_OVERLAP = 32, 0.9


@dataclass(kw_only=True)
class ViewArguments:
    """How a model looks at images.

    Raises:
        ValueError: for a value out of its range.
    """

    flip: bool = field(default=False, metadata={"help": "Fuse the boxes with those of the mirrored image."})
    scales: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Fuse the boxes of these input sizes: 0.75 1 1.5, say."}
    )
    tile: int = field(default=0, metadata={"help": "Side of the tiles of large images in pixels; 0: no tiles."})
    tile_overlap: float = field(default=0.2, metadata={"help": "Share of a tile that its neighbour covers too."})

    def __post_init__(self) -> None:
        self.scales = [float(scale) for scale in self.scales]
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales} is not valid: give one or more positive numbers")
        if self.tile and self.tile < LEAST_TILE:
            raise ValueError(f"tile={self.tile} is not valid: it must be {LEAST_TILE} or more, or 0 for no tiles")
        if not 0 <= self.tile_overlap <= LARGEST_OVERLAP:
            raise ValueError(f"tile_overlap={self.tile_overlap} is not valid: it must be in [0, {LARGEST_OVERLAP}]")

    @property
    def fuses(self) -> bool:
        """Whether boxes of several views are fused."""
        return self.flip or self.scales != [1.0]

    def check_task(self, task: str) -> None:
        """Whether a model for `task` ("detection", "segmentation", "keypoints") can look so.

        Raises:
            ValueError: views and tiles merge boxes alone, and the model gives more.
        """
        given = {"flip": self.flip, "scales": self.scales != [1.0], "tile": bool(self.tile)}
        asked = ", ".join(f"--{name}" for name, is_given in given.items() if is_given)
        if asked and task != "detection":
            extra = "masks" if task == "segmentation" else "keypoints"
            raise ValueError(f"{asked}: only boxes are merged, and this model gives {extra}; leave it out")


def load_detector(
    name_or_path: str,
    device: str | None = None,
    threshold: float = -1.0,
    *,
    revision: str | None = None,
    bf16: bool = False,
) -> ImageDetector:
    """The model of a folder, Hub id or official file, of any task, with its image processor.

    Args:
        name_or_path: what `load_model` takes.
        device: default: cuda where there is one.
        threshold: detections of this score or less are left out.
        revision: branch, tag or commit of a Hub id.
        bf16: compute in bfloat16.

    Returns:
        PIL images in, detections out; `masks` are COCO run lengths, which take little memory.
    """
    model = load_model(name_or_path, **({} if revision is None else {"revision": revision}))
    processor = load_processor(name_or_path, model.config.resolution, revision)
    return make_detector(model, processor, device, threshold, bf16=bf16)


def make_detector(
    model: RFDETRPreTrainedModel,
    processor: RFDETRImageProcessor,
    device: str | None = None,
    threshold: float = -1.0,
    *,
    bf16: bool = False,
) -> ImageDetector:
    """A model of any task, moved to its device, and its image processor as a detector.

    Args:
        model: the model.
        processor: its image processor.
        device, threshold, bf16: see `load_detector`.
    """
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    def post_process(outputs: Any, sizes: list[tuple[int, int]], mask: torch.Tensor | None) -> list[dict[str, Any]]:
        return model.detect(outputs, processor, threshold, sizes, pixel_mask=mask, as_rle=True)

    return ImageDetector(model, processor, model.config.size_divisor, post_process, torch.bfloat16 if bf16 else None)


def with_views(detect: ImageDetector, args: ViewArguments, batch_size: int = 8) -> Detector:
    """A detector that looks as `args` say.

    Args:
        detect: of a model.
        args: flip, scales, tiles.
        batch_size: tiles that the model gets at once.

    Raises:
        ValueError: the model gives masks or keypoints, and `args` ask for more than a plain look.
    """
    args.check_task(detect.model.task)
    top_k, found = detect.model.config.num_queries, cast(Detector, detect)
    if args.fuses:
        found = AugmentedDetector(found, args.flip, args.scales, top_k=top_k)
    if args.tile:
        found = TiledDetector(found, args.tile, args.tile_overlap, top_k=top_k, batch_size=batch_size)
    return found
