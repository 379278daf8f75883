"""A model of any task as a plain function: PIL images in, detections out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..arguments.launch import one_device
from ..bit_depth import upright_rgb
from ..evaluation.metrics import highest_rejected
from ..evaluation.run import Found
from ..models.files.auto import load_model, load_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRForObjectDetection
from ..models.thresholds import class_thresholds


def above(found: Found, thresholds: Sequence[float]) -> Found:
    """What scores more than the threshold of its label."""
    least = highest_rejected(np.array(thresholds))[np.asarray(found["labels"])]
    kept = np.flatnonzero(np.asarray(found["scores"], dtype=np.float64) > least).tolist()
    return {name: [v[i] for i in kept] if isinstance(v, list) else v[kept] for name, v in found.items()}


class ImageDetector:
    """A model of any task and its image processor as a detector.

    Args:
        model: is moved to `device`, and put into evaluation mode.
        image_processor: of the model.
        device: "cpu", "cuda", or a GPU by number ("1", "cuda:1"); default: cuda where there is one.
        threshold: detections of this score or less are left out; by class as for `class_thresholds`.
        bf16: compute in bfloat16.
    """

    def __init__(
        self,
        model: RFDETRForObjectDetection,
        image_processor: RFDETRImageProcessor,
        device: str | None = None,
        threshold: float | Sequence[float] | Mapping[str, float] = -1.0,
        *,
        bf16: bool = False,
    ) -> None:
        cast(torch.nn.Module, model).to(one_device(device) or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.image_processor = model.eval(), image_processor
        self.thresholds, self.bf16 = class_thresholds(threshold, model.config), bf16

    @property
    def value_range(self) -> Sequence[float] | None:
        """The range (low, high) that pictures of more than 8 bits had in training, if there were any."""
        return self.image_processor.value_range

    @property
    def image_decoder(self) -> str:
        """Who decoded the JPEG files of the training, see `decode_image`."""
        return self.image_processor.image_decoder

    @property
    def model_labels(self) -> list[str] | None:
        """The class names of the model, by label; None in a subclass that gives labels of its own."""
        return [name for _, name in sorted(self.model.config.id2label.items())]

    @property
    def model_keypoints(self) -> dict[str, Any] | None:
        """The `keypoint_schema` of the model."""
        return self.model.config.keypoint_schema

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], scale: float = 1.0) -> list[Found]:
        """Detections of the images, on the CPU; masks are COCO run lengths, which take little memory.

        Args:
            images: of any mode and depth; those with an EXIF orientation are turned first, and boxes are in the turned
                picture. Open them with Pillow alone: `convert("RGB")` cuts pictures of more than 8 bits off at 255.
            scale: of the size of the model's input; the sides are rounded to what the model takes.

        Raises:
            TypeError: `images` is no list of Pillow's images.
        """
        wrong: Any = images
        if isinstance(images, Sequence):
            wrong = next((image for image in images if not isinstance(image, Image.Image)), None)
        if wrong is not None:
            kind = f"{type(wrong).__name__}{'' if wrong is images else ' in it'}"
            raise TypeError(f"a detector takes a list of Pillow's images, detect([Image.open(path)]), and got {kind}")
        images = [upright_rgb(image, self.value_range) for image in images]
        size, divisor = dict(self.image_processor.size), self.model.config.size_divisor
        if scale != 1:
            size = {side: max(round(pixels * scale / divisor), 1) * divisor for side, pixels in size.items()}
        inputs = self.image_processor(images, size=size, return_tensors="pt")
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.model(**{name: value.to(device) for name, value in inputs.items()})
        options = {"pixel_mask": inputs.get("pixel_mask"), "as_rle": True}
        found = self.model.detect(outputs, self.image_processor, min(self.thresholds), inputs.original_sizes, **options)
        found = [{name: v.cpu() if isinstance(v, Tensor) else v for name, v in each.items()} for each in found]
        return [above(each, self.thresholds) for each in found]


def load_detector(
    name_or_path: str,
    device: str | None = None,
    threshold: float | Sequence[float] | Mapping[str, float] = -1.0,
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
    with naming(f"the model {name_or_path} (config.json, model.safetensors)", str(name_or_path)):
        model = load_model(name_or_path, **options)
    with naming(f"{name_or_path}, preprocessor_config.json", str(name_or_path)):
        processor = load_processor(name_or_path, model.config.resolution, revision)
        _check_loaded(str(name_or_path), model, processor)
    return ImageDetector(model, processor, device, threshold, bf16=bf16)


@contextmanager
def naming(what: str, known: str) -> Iterator[None]:
    """Errors without the name `known` get `what` in front: wrong fields of files end in errors of all kinds."""
    try:
        yield
    except Exception as error:
        if known in str(error) or isinstance(error, ImportError):
            raise
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


def _check_loaded(name: str, model: RFDETRForObjectDetection, processor: RFDETRImageProcessor) -> None:
    """What a prediction would fail on without knowing the file."""
    broken = [key for key, weight in model.state_dict().items() if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"{name}: {len(broken)} of its weights are NaN or infinite, {broken[0]} the first")
    labels: Any = model.config.id2label
    if sorted(labels) != list(range(model.config.num_labels)) or not all(isinstance(v, str) for v in labels.values()):
        raise ValueError(
            f"{name}, config.json: id2label {labels} must give each label 0 to {model.config.num_labels - 1} a text"
        )
    size, divisor = dict(processor.size), model.config.size_divisor
    sides = [size[side] for side in ("height", "width") if side in size]
    if min(size.values(), default=0) < 1 or any(side % divisor for side in sides):
        raise ValueError(
            f"{name}, preprocessor_config.json: size {size} must have positive sides, height and width multiples of "
            f"{divisor}"
        )
