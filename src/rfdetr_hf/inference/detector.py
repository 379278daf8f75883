"""A model of any task as a plain function: PIL images in, detections out."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from ..evaluation.run import Found
from ..models.files.auto import load_model, load_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRForObjectDetection


class ImageDetector:
    """A model of any task and its image processor as a detector.

    Args:
        model: is moved to `device`, and put into evaluation mode.
        image_processor: of the model.
        device: default: cuda where there is one.
        threshold: detections of this score or less are left out.
        bf16: compute in bfloat16.
    """

    def __init__(
        self,
        model: RFDETRForObjectDetection,
        image_processor: RFDETRImageProcessor,
        device: str | None = None,
        threshold: float = -1.0,
        *,
        bf16: bool = False,
    ) -> None:
        cast(torch.nn.Module, model).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.image_processor = model.eval(), image_processor
        self.threshold, self.bf16 = threshold, bf16

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], scale: float = 1.0) -> list[Found]:
        """Detections of the images, on the CPU; masks are COCO run lengths, which take little memory.

        Args:
            images: upright, RGB.
            scale: of the size of the model's input; the sides are rounded to what the model takes.
        """
        size, divisor = dict(self.image_processor.size), self.model.config.size_divisor
        if scale != 1:
            size = {side: max(round(pixels * scale / divisor), 1) * divisor for side, pixels in size.items()}
        inputs = self.image_processor(list(images), size=size, return_tensors="pt")
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.model(**{name: value.to(device) for name, value in inputs.items()})
        sizes = [(image.height, image.width) for image in images]
        options = {"pixel_mask": inputs.get("pixel_mask"), "as_rle": True}
        found = self.model.detect(outputs, self.image_processor, self.threshold, sizes, **options)
        return [{name: v.cpu() if isinstance(v, Tensor) else v for name, v in each.items()} for each in found]


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
        device, threshold, bf16: see `ImageDetector`.
        revision: branch, tag or commit of a Hub id.
    """
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    model = load_model(name_or_path, **options)
    processor = load_processor(name_or_path, model.config.resolution, revision)
    return ImageDetector(model, processor, device, threshold, bf16=bf16)
