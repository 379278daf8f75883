"""A model of any task as a plain function: PIL images in, detections out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.run import Found
from ..models.files.auto import load_model, load_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRPreTrainedModel


class ImageDetector:
    """A model and its image processor as a detector.

    Args:
        model: takes what the processor makes; moved nowhere, so put it on its device first.
        image_processor: with `size` and `post_process_object_detection`.
        size_divisor: what the sides of scaled inputs must be multiples of.
        post_process: (outputs, target_sizes, pixel_mask) -> detections, for models that give more than boxes; default
            the processor's `post_process_object_detection` without a threshold.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        image_processor: Any,
        size_divisor: int = 1,
        post_process: Callable[[Any, list[tuple[int, int]], Tensor | None], list[Found]] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.autocast = autocast
        self.image_processor = image_processor
        self.size_divisor = size_divisor
        self.post_process = post_process or self._boxes

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], scale: float = 1.0) -> list[Found]:
        """Detections of the images, on the CPU; `scale` changes the size of the model's input."""
        size = {side: self._scaled(pixels, scale) for side, pixels in dict(self.image_processor.size).items()}
        inputs = self.image_processor(list(images), size=size, return_tensors="pt")
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            outputs = self.model.eval()(**{name: value.to(device) for name, value in inputs.items()})
        sizes = [(image.height, image.width) for image in images]
        found = self.post_process(outputs, sizes, inputs.get("pixel_mask"))
        return [{name: v.cpu() if isinstance(v, Tensor) else v for name, v in each.items()} for each in found]

    def _scaled(self, side: int, scale: float) -> int:
        return side if scale == 1 else max(round(side * scale / self.size_divisor), 1) * self.size_divisor

    def _boxes(self, outputs: Any, sizes: list[tuple[int, int]], pixel_mask: Tensor | None) -> list[Found]:
        return self.image_processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)


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
        threshold: detections of masks and keypoints of this score or less are left out; boxes are all there.
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
    post_process = _post_process(model, processor, threshold)
    return ImageDetector(model, processor, model.config.size_divisor, post_process, torch.bfloat16 if bf16 else None)


def _post_process(
    model: RFDETRPreTrainedModel, processor: RFDETRImageProcessor, threshold: float
) -> Callable[..., list[dict[str, Any]]] | None:
    """What turns outputs into detections; None for the default, boxes."""

    def masks(outputs: Any, sizes: list[tuple[int, int]], mask: torch.Tensor | None) -> list[dict[str, Any]]:
        options: dict[str, Any] = {"target_sizes": sizes, "pixel_mask": mask, "as_rle": True}
        return processor.post_process_instance_segmentation(outputs, threshold, **options)

    def keypoints(outputs: Any, sizes: list[tuple[int, int]], mask: torch.Tensor | None) -> list[dict[str, Any]]:
        counts = model.config.num_keypoints_per_class
        return processor.post_process_keypoint_detection(outputs, counts, threshold, target_sizes=sizes)

    return {"segmentation": masks, "keypoints": keypoints}.get(model.task)
