"""Pictures of detections: boxes, masks, keypoints with their skeleton and covariance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils
from torch import Tensor

from .data.keypoints import KeypointSchema, Pairs

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_SMALLEST_SIDE = 480
_MASK_OPACITY = 110
_POINT = 3
_CORNERS = 48
# Pillow refuses coordinates beyond 32 bits.
_FARTHEST = 1e6


@dataclass(frozen=True)
class DrawingStyle:
    """What of the keypoints is drawn.

    Attributes:
        schema: whose skeletons are drawn, `model.config.keypoint_schema`; None for points alone.
        threshold: the confidence of a keypoint must be above it, in [0, 1).
        ellipses: half axes of the covariance ellipses in standard deviations; 0 for no ellipses.

    Raises:
        ValueError: a number is out of its range.
    """

    schema: Mapping[str, Any] | None = None
    threshold: float = 0.3
    ellipses: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"keypoint threshold {self.threshold} is not valid: it must be in [0, 1)")
        if not 0 <= self.ellipses < float("inf"):
            raise ValueError(f"ellipses of {self.ellipses} standard deviations are not valid: give 0 or more")

    def skeleton(self, label: int) -> Pairs:
        """The pairs of keypoints of a class between which lines are drawn."""
        classes = KeypointSchema.from_dict(self.schema).classes if self.schema else ()
        return classes[label].skeleton if label < len(classes) else ()


def draw_detections(
    image: Image.Image,
    detections: Mapping[str, Any],
    id2label: Mapping[int, str],
    threshold: float = 0.0,
    style: DrawingStyle | None = None,
) -> Image.Image:
    """The image with boxes, class names and scores, enlarged when it is small.

    Args:
        image: RGB.
        detections: `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy in pixels; also `masks`, (n, height, width) or n
            COCO run-length encodings, `keypoints` (n, K, 2) in pixels or (n, K, 3) with their confidence, and
            `keypoint_covariance` (n, K, 2, 2), where the model gives them.
        id2label: names of the classes.
        threshold: scores must be above it.
        style: of the keypoints.
    """
    style, scale = style or DrawingStyle(), max(1, round(_SMALLEST_SIDE / max(image.size)))
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
            _draw_keypoints(pen, detections, i, scale, image.size, style)
        text = f"{id2label[label]} {float(detections['scores'][i]):.2f}"
        pen.rectangle(pen.textbbox(corner, text), fill=colour)
        pen.text(corner, text, fill="white")
    return canvas


def _with_masks(canvas: Image.Image, detections: Mapping[str, Any], chosen: list[int]) -> Image.Image:
    for i in chosen:
        colour = COLOURS[int(detections["labels"][i]) % len(COLOURS)]
        mask = _pixels(detections["masks"][i]).astype(np.uint8) * _MASK_OPACITY
        stencil = Image.fromarray(mask).resize(canvas.size, Image.Resampling.NEAREST)
        canvas.paste(Image.new("RGB", canvas.size, colour), mask=stencil)
    return canvas


def _pixels(mask: Tensor | np.ndarray | Mapping[str, Any]) -> np.ndarray:
    """(height, width) bool."""
    if not isinstance(mask, Mapping):
        return np.asarray(mask).astype(bool)
    if not isinstance(mask["counts"], (str, bytes)):
        mask = mask_utils.frPyObjects(dict(mask), *mask["size"])
    return mask_utils.decode(mask).astype(bool)


def _draw_keypoints(
    pen: ImageDraw.ImageDraw,
    detections: Mapping[str, Any],
    i: int,
    scale: int,
    size: tuple[int, int],
    style: DrawingStyle,
) -> None:
    label, points = int(detections["labels"][i]), detections["keypoints"][i].double().numpy(force=True)
    colour, places = COLOURS[label % len(COLOURS)], np.clip(points[:, :2] * scale, -_FARTHEST, _FARTHEST)
    seen = np.isfinite(points).all(1) & (points[:, 2] > style.threshold if points.shape[1] > 2 else True)
    for a, b in style.skeleton(label):
        if seen[a] and seen[b]:
            pen.line([tuple(places[a]), tuple(places[b])], fill=colour, width=2)
    if style.ellipses and detections.get("keypoint_covariance") is not None:
        for outline in _ellipses(detections, i, seen, size, style.ellipses):
            pen.line([tuple(corner) for corner in outline * scale], fill=colour, width=1)
    for x, y in places[seen]:
        pen.ellipse((x - _POINT, y - _POINT, x + _POINT, y + _POINT), fill=colour)


def _ellipses(
    detections: Mapping[str, Any], i: int, seen: np.ndarray, size: tuple[int, int], deviations: float
) -> Sequence[np.ndarray]:
    """The outlines of the ellipses of what is seen, (corners, 2) in pixels.

    `keypoint_covariance` is in units of the box's share of the image, by which the loss scales it.
    """
    points, box = (detections[name][i].double().numpy(force=True) for name in ("keypoints", "boxes"))
    share = max(box[2] - box[0], 0) * max(box[3] - box[1], 0) / (size[0] * size[1])
    covariance = detections["keypoint_covariance"][i].double().numpy(force=True) * share
    turn = np.linspace(0, 2 * np.pi, _CORNERS)
    circle, outlines = deviations * np.stack([np.cos(turn), np.sin(turn)]), []
    for k in np.flatnonzero(seen & np.isfinite(covariance).all((1, 2))):
        lengths, axes = np.linalg.eigh(covariance[k])
        outline = points[k, :2] + (axes * np.sqrt(lengths.clip(min=0)) @ circle).T
        outlines.append(outline.clip(-_FARTHEST, _FARTHEST))
    return outlines
