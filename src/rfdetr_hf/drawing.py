"""Pictures of objects: boxes with labels, masks, keypoints with their skeleton and covariance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_SMALLEST_SIDE = 480
_MASK_OPACITY = 110
_POINT = 3
_CORNERS = 48
# Pillow refuses coordinates beyond 32 bits.
_FARTHEST = 1e6


@dataclass
class Shape:
    """What is drawn of one object, in pixels of the image.

    Attributes:
        box: x1, y1, x2, y2.
        colour: of all its parts.
        text: the label; "" for none.
        mask: (height, width), or a COCO run-length encoding.
        points: (n, 2) x, y.
        lines: polylines, (corners, 2) each, two pixels wide.
        outlines: polylines one pixel wide.
    """

    box: Sequence[float]
    colour: str
    text: str = ""
    mask: Any = None
    points: Sequence[Sequence[float]] | np.ndarray = ()
    lines: Sequence[np.ndarray] = ()
    outlines: Sequence[np.ndarray] = ()


def draw_shapes(canvas: Image.Image, shapes: Sequence[Shape], scale: float = 1.0) -> Image.Image:
    """The canvas, an RGB image enlarged by `scale`, with masks below boxes, and labels on top."""
    for shape in shapes:
        if shape.mask is not None:
            stencil = Image.fromarray(_pixels(shape.mask) * np.uint8(_MASK_OPACITY))
            stencil = stencil.resize(canvas.size, Image.Resampling.NEAREST)
            canvas.paste(Image.new("RGB", canvas.size, shape.colour), mask=stencil)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for shape in shapes:
        # Pillow refuses a box whose corners are in the wrong order, which nothing keeps a detector from giving.
        (left, right), (top, bottom) = (sorted(_placed(shape.box[axis::2], scale).tolist()) for axis in (0, 1))
        pen.rectangle((left, top, right, bottom), outline=shape.colour, width=2)
        for width, lines in ((2, shape.lines), (1, shape.outlines)):
            for line in lines:
                pen.line([tuple(corner) for corner in _placed(line, scale).tolist()], fill=shape.colour, width=width)
        for x, y in _placed(shape.points, scale).reshape(-1, 2).tolist():
            pen.ellipse((x - _POINT, y - _POINT, x + _POINT, y + _POINT), fill=shape.colour)
        if shape.text:
            corner = (left, max(top - 12, 0))
            pen.rectangle(pen.textbbox(corner, shape.text, font), fill=shape.colour)
            pen.text(corner, shape.text, "white", font)
    return canvas


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
            `keypoint_covariance` (n, K, 2, 2), where the model gives them. Arrays, or tensors on the CPU.
        id2label: names of the classes.
        threshold: scores must be above it.
        style: of the keypoints.
    """
    scale, style = max(1, round(_SMALLEST_SIDE / max(image.size))), style or DrawingStyle()
    canvas = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    shapes = []
    for i in np.flatnonzero(np.asarray(detections["scores"]) > threshold).tolist():
        label, box = int(detections["labels"][i]), np.asarray(detections["boxes"][i], dtype=np.float64)
        text = f"{id2label[label]} {float(detections['scores'][i]):.2f}"
        shape = Shape(box.tolist(), COLOURS[label % len(COLOURS)], text)
        if detections.get("masks") is not None:
            shape.mask = detections["masks"][i]
        if detections.get("keypoints") is not None:
            points = np.asarray(detections["keypoints"][i], dtype=np.float64)
            seen = np.isfinite(points).all(1) & (points[:, 2] > style.threshold if points.shape[1] > 2 else True)
            classes = (style.schema or {}).get("classes", ())
            skeleton = (classes[label].get("skeleton") or ()) if label < len(classes) else ()
            shape.points = points[seen, :2]
            shape.lines = [points[[a, b], :2] for a, b in skeleton if seen[a] and seen[b]]
            if style.ellipses and detections.get("keypoint_covariance") is not None:
                # The covariance is in units of the box's share of the image, by which the loss scales it.
                share = np.clip(box[2:] - box[:2], 0, None).prod() / (image.width * image.height)
                covariance = np.asarray(detections["keypoint_covariance"][i], dtype=np.float64) * share
                seen &= np.isfinite(covariance).all((1, 2))
                shape.outlines = _ellipses(points[seen, :2], covariance[seen], style.ellipses)
        shapes.append(shape)
    return draw_shapes(canvas, shapes, scale)


def _ellipses(centres: np.ndarray, covariance: np.ndarray, deviations: float) -> list[np.ndarray]:
    """The outlines (corners, 2) of the ellipses around `centres` (n, 2) with `covariance` (n, 2, 2)."""
    turn = np.linspace(0, 2 * np.pi, _CORNERS)
    circle = deviations * np.stack([np.cos(turn), np.sin(turn)])
    lengths, axes = np.linalg.eigh(covariance)
    return list(centres[:, None] + (axes * np.sqrt(lengths.clip(min=0))[:, None] @ circle).transpose(0, 2, 1))


def _placed(values: Any, scale: float) -> np.ndarray:
    return np.clip(np.asarray(values, dtype=np.float64) * scale, -_FARTHEST, _FARTHEST)


def _pixels(mask: Any) -> np.ndarray:
    """(height, width) bool."""
    if isinstance(mask, Mapping):
        lengths: Any = dict(mask)
        if not isinstance(mask["counts"], (str, bytes)):
            lengths = mask_utils.frPyObjects(lengths, *mask["size"])
        mask = mask_utils.decode(lengths)
    return np.asarray(mask).astype(bool)
