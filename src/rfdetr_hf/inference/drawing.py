"""Pictures of detections."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_SMALLEST_SIDE = 480
_MASK_OPACITY = 110
_POINT = 3


def draw_detections(
    image: Image.Image, detections: Mapping[str, Tensor], id2label: Mapping[int, str], threshold: float = 0.0
) -> Image.Image:
    """The image with boxes, class names and scores, enlarged when it is small.

    Args:
        image: RGB.
        detections: `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy in pixels; also `masks` (n, height, width) and
            `keypoints` (n, K, 2 or 3) in pixels where the model gives them.
        id2label: names of the classes.
        threshold: scores must be above it.
    """
    scale = max(1, round(_SMALLEST_SIDE / max(image.size)))
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    chosen = [i for i, score in enumerate(detections["scores"].tolist()) if score > threshold]
    if detections.get("masks") is not None:
        canvas = _with_masks(canvas, detections, chosen)
    pen = ImageDraw.Draw(canvas)
    for i in chosen:
        label, box = int(detections["labels"][i]), [value * scale for value in detections["boxes"][i].tolist()]
        colour, corner = COLOURS[label % len(COLOURS)], (box[0], max(box[1] - 12, 0))
        pen.rectangle(box, outline=colour, width=2)
        if detections.get("keypoints") is not None:
            for x, y, *_ in (detections["keypoints"][i] * scale).tolist():
                pen.ellipse((x - _POINT, y - _POINT, x + _POINT, y + _POINT), fill=colour)
        text = f"{id2label[label]} {float(detections['scores'][i]):.2f}"
        pen.rectangle(pen.textbbox(corner, text), fill=colour)
        pen.text(corner, text, fill="white")
    return canvas


def _with_masks(canvas: Image.Image, detections: Mapping[str, Tensor], chosen: list[int]) -> Image.Image:
    for i in chosen:
        colour = COLOURS[int(detections["labels"][i]) % len(COLOURS)]
        mask = np.asarray(detections["masks"][i]).astype(bool).astype(np.uint8) * _MASK_OPACITY
        stencil = Image.fromarray(mask).resize(canvas.size, Image.Resampling.NEAREST)
        canvas.paste(Image.new("RGB", canvas.size, colour), mask=stencil)
    return canvas
