"""Pictures of objects: boxes with labels, masks, keypoints with their skeleton and covariance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

from .bit_depth import upright_rgb

_SMALLEST_SIDE = 480
_MASK_OPACITY = 110
_LINE, _POINT, _TEXT = 2, 3, 12  # pixels, of pictures up to `_UNIT_SIDE`; they grow with larger ones
_UNIT_SIDE = 640
_CORNERS = 48
# Pillow refuses coordinates beyond 32 bits.
_FARTHEST = 1e6
# Fonts that systems bring along, for names that Pillow's own font has no glyphs for.
_FONTS = (
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "simsun.ttc", "arialuni.ttf",
    "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",
)  # fmt: skip


def _palette(first: Sequence[str], count: int) -> tuple[str, ...]:
    """Colours as far from each other as possible, on which white text can be read."""
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    light = grid @ np.array([0.299, 0.587, 0.114])
    grid = grid[(light > 25) & (light < 170)]
    chosen = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in first]
    nearest = np.full(len(grid), np.inf)
    for number in range(count):
        if number >= len(chosen):
            chosen.append(grid[nearest.argmax()].tolist())
        # The eye distinguishes greens better than reds, and reds better than blues.
        distance = (((grid - chosen[number]) ** 2) * np.array([3, 4, 2])).sum(1)
        nearest = np.minimum(nearest, distance)
    return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in chosen)


COLOURS = _palette(("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000"), count=96)


@dataclass
class Shape:
    """What is drawn of one object, in pixels of the image.

    Attributes:
        box: x1, y1, x2, y2; one that is not finite is left out.
        colour: of all its parts.
        text: the label; "" for none.
        plain_text: the label where no font has the glyphs of `text`.
        mask: (height, width), or a COCO run-length encoding.
        points: (n, 2) x, y.
        lines: polylines, (corners, 2) each, as wide as the box's.
        outlines: polylines half as wide.
    """

    box: Sequence[float]
    colour: str
    text: str = ""
    plain_text: str = ""
    mask: Any = None
    points: Sequence[Sequence[float]] | np.ndarray = ()
    lines: Sequence[np.ndarray] = ()
    outlines: Sequence[np.ndarray] = ()


def draw_shapes(canvas: Image.Image, shapes: Sequence[Shape], scale: float = 1.0) -> Image.Image:
    """The canvas, an RGB image enlarged by `scale`, with masks below boxes, and labels on top.

    Lines and labels grow with the canvas. Labels stay inside it, and beside each other while there is room; the first
    shapes choose first.
    """
    for shape in shapes:
        if shape.mask is not None:
            stencil = Image.fromarray(_pixels(shape.mask) * np.uint8(_MASK_OPACITY))
            stencil = stencil.resize(canvas.size, Image.Resampling.NEAREST)
            canvas.paste(Image.new("RGB", canvas.size, shape.colour), mask=stencil)
    unit = max(max(canvas.size) / _UNIT_SIDE, 1.0)
    pen, thick, thin, radius = ImageDraw.Draw(canvas), round(_LINE * unit), round(_LINE * unit / 2), _POINT * unit
    boxes = [_placed(shape.box, scale).tolist() if np.isfinite(shape.box).all() else None for shape in shapes]
    for shape, box in zip(shapes, boxes, strict=True):
        if box is not None:
            # Pillow refuses a box whose corners are in the wrong order, which nothing keeps a detector from giving.
            box[:] = [*np.minimum(box[:2], box[2:]).tolist(), *np.maximum(box[:2], box[2:]).tolist()]
            pen.rectangle(box, outline=shape.colour, width=thick)
        for width, lines in ((thick, shape.lines), (thin, shape.outlines)):
            for line in lines:
                pen.line([tuple(corner) for corner in _placed(line, scale).tolist()], fill=shape.colour, width=width)
        for x, y in _placed(shape.points, scale).reshape(-1, 2).tolist():
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shape.colour)
    taken = np.zeros((0, 4))
    for shape, box in zip(shapes, boxes, strict=True):
        if shape.text and box is not None:
            text, font = _label(shape, round(_TEXT * unit), canvas.width)
            left, top, right, bottom = pen.textbbox((0, 0), text, font)
            x, y = _free_place(box, (right + 2 * thin, bottom + 2 * thin), canvas.size, taken)
            place = (x, y, x + right + 2 * thin, y + bottom + 2 * thin)
            taken = np.concatenate([taken, [place]])
            pen.rectangle(place, fill=shape.colour)
            pen.text((x + thin, y + thin), text, "white", font)
    return canvas


def _free_place(
    box: Sequence[float], size: tuple[float, float], canvas: tuple[int, int], taken: np.ndarray
) -> tuple[float, float]:
    """The corner of a label (width, height): above the box, in its corners, below it, or where it hides least."""
    (left, top, right, bottom), (width, height) = box, size
    corners = [(left, top - height), (left, top), (right - width, top - height), (right - width, top), (left, bottom)]
    corners += [(left, bottom - height), (right - width, bottom), (right - width, bottom - height)]
    corners += [(left, top + n * height) for n in range(1, 12)] + [(left, top - n * height) for n in range(2, 12)]
    places = np.array(corners).clip(0, np.maximum(np.array(canvas) - size, 0))
    if not len(taken):
        return places[0, 0], places[0, 1]
    low = np.maximum(places[:, None], taken[:, :2])
    high = np.minimum(places[:, None] + np.array(size), taken[:, 2:])
    hidden = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    x, y = places[hidden.argmin()]
    return x, y


def _label(shape: Shape, size: int, room: int) -> tuple[str, Any]:
    """The text on one line, no wider than the picture, and a font that has its glyphs."""
    text = " ".join(shape.text.split())
    font = _font_for(frozenset(text), size)
    if font is None:
        text, font = shape.plain_text or text.encode("ascii", "replace").decode(), ImageFont.load_default(size)
    while len(text) > 1 and font.getlength(text) > room:
        text = text.rstrip("…")[:-1] + "…" if _font_for(frozenset("…"), size) == font else text[:-1]
    return text, font


@lru_cache(maxsize=512)
def _font_for(characters: frozenset[str], size: int) -> Any:
    """A font with glyphs for these characters, or None."""
    for name in ("", *_FONTS):
        try:
            font: Any = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
        except OSError:
            continue  # this system has no such font
        # A character that no font has shows how a missing one looks.
        missing = bytes(font.getmask("\U0010fffe"))
        if all(each == " " or bytes(font.getmask(each)) != missing for each in characters):
            return font
    return None


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
    side: int | None = None,
) -> Image.Image:
    """The image with boxes, class names and scores, enlarged when it is small.

    Args:
        image: in any mode and depth; it is turned as its EXIF tag says, as detectors do, and the picture is RGB.
        detections: `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy in pixels; also `masks`, (n, height, width) or n
            COCO run-length encodings, `keypoints` (n, K, 2) in pixels or (n, K, 3) with their confidence, and
            `keypoint_covariance` (n, K, 2, 2), where the model gives them. Arrays, or tensors on the CPU. Objects of
            the annotations have no `scores`, and all are drawn.
        id2label: names of the classes.
        threshold: scores must be above it.
        style: of the keypoints.
        side: the longer side of the picture in pixels; default: as the image, a multiple of it where that is small.

    Raises:
        ValueError: a mask has not the size of the image.
    """
    style, scores, image = style or DrawingStyle(), detections.get("scores"), upright_rgb(image)
    scale = max(1, round(_SMALLEST_SIDE / max(image.size))) if side is None else side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    how = Image.Resampling.NEAREST if float(scale).is_integer() else Image.Resampling.BILINEAR
    canvas = image.resize(size, how)
    shapes = []
    shown = range(len(detections["labels"])) if scores is None else np.flatnonzero(np.asarray(scores) > threshold)
    for i in map(int, shown):
        label, box = int(detections["labels"][i]), np.asarray(detections["boxes"][i], dtype=np.float64)
        score = "" if scores is None else f" {float(scores[i]):.2f}"
        text, plain_text = f"{id2label.get(label, label)}{score}", f"{label}{score}"
        shape = Shape(box.tolist(), COLOURS[label % len(COLOURS)], text, plain_text)
        if detections.get("masks") is not None:
            shape.mask = _pixels(detections["masks"][i])
            if shape.mask.shape != (image.height, image.width):
                raise ValueError(
                    f"masks: that of detection {i} has the shape {shape.mask.shape}, and the image {image.height} x "
                    f"{image.width} (height, width): give post-processing the target_sizes of the images"
                )
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


def draw_batch(
    pixel_values: Any, targets: Sequence[Mapping[str, Any]], names: Sequence[str], scale: float = 1.0, side: int = 480
) -> list[Image.Image]:
    """The images of a training batch with their objects, as the model sees them.

    Args:
        pixel_values: (B, 3, H, W) uint8; of other numbers each image is stretched to the range of a picture.
        targets: of each image `size` (height, width) without padding, `class_labels` (n,), `boxes` (n, 4) cxcywh in
            [0, 1]; where there are any `masks` (n, h, w) and `keypoints` (n, K, 3), x and y in [0, 1].
        names: of the classes.
        scale: share of H and W that the step resizes to.
        side: the longer side of each picture in pixels.
    """
    pictures = []
    for pixels, target in zip(np.asarray(pixel_values), targets, strict=True):
        height, width = (int(length) for length in target["size"])
        array = pixels[:, :height, :width].transpose(1, 2, 0)  # (3, H, W) -> (height, width, 3)
        if array.dtype != np.uint8:
            low, high = float(array.min()), float(array.max())
            array = ((array - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(array))
        if scale != 1:
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            image = image.resize(size, Image.Resampling.BILINEAR)
        boxes, unit = np.asarray(target["boxes"], dtype=np.float64).reshape(-1, 4), np.array(image.size)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        objects: dict[str, Any] = {"labels": target["class_labels"], "boxes": corners * np.tile(unit, 2)}
        if target.get("masks") is not None:  # of a part of the image's size, as the loss takes them
            masks = (Image.fromarray(_pixels(mask)) for mask in target["masks"])
            objects["masks"] = [np.asarray(mask.resize(image.size, Image.Resampling.NEAREST)) for mask in masks]
        if "keypoints" in target:
            objects["keypoints"] = np.asarray(target["keypoints"], dtype=np.float64) * [*unit, 1]
        pictures.append(draw_detections(image, objects, dict(enumerate(names)), side=side))
    return pictures


def mosaic(pictures: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Pictures in rows from left to right, each in a cell of the largest width and height, on white."""
    width, height = max(p.width for p in pictures) + gap, max(p.height for p in pictures) + gap
    rows, columns = -(-len(pictures) // columns), min(columns, len(pictures))
    canvas = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for number, picture in enumerate(pictures):
        canvas.paste(picture, (number % columns * width, number // columns * height))
    return canvas


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
