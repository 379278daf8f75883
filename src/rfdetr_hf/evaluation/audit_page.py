"""The findings of an audit as an HTML page with pictures."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from ..data.findings import DataAudit, Example, Finding, boxes_of
from ..data.pipeline.pixels import DECODE_ERRORS, decode_image
from ..data.schema import class_names, undecoded
from ..drawing import COLOURS, Shape, draw_shapes, mosaic
from .page import figure, page, table, text

_SIDE, _COLUMNS = 240, 4


def write_audit_page(audit: DataAudit, splits: Mapping[str, Dataset], path: str | os.PathLike[str]) -> None:
    """Write a page that is one file: counts, classes, and each finding with a grid of its examples.

    Args:
        audit: of these splits.
        splits: as `audit_data` got them.
        path: of the page; an existing one is replaced.
    """
    counts = [["split", "images", "without objects", "boxes", "crowds", "most in an image"]]
    for name, report in audit.reports.items():
        numbers = report.num_images, report.num_empty_images, report.num_boxes, report.num_crowds, report.max_boxes
        counts.append([name, *(str(n) if report.counted or place == 0 else "?" for place, n in enumerate(numbers))])
    names = list(next(iter(audit.reports.values())).boxes_per_class)
    classes = [["class", *audit.reports]]
    classes += [[name, *(boxes_of(report, name) for report in audit.reports.values())] for name in names]
    title = "Boxes of each class"
    if any(report.labelled_images for report in audit.reports.values()):
        title += " / images in which it is labelled completely"
    body = ["<h2>Splits</h2>", table(counts, "slim"), f"<h2>{title}</h2>", table(classes, "slim")]
    body.append("<h2>Findings</h2>" if audit.findings else "<p class='lead'>Nothing odd was found.</p>")
    for each in audit.findings:
        kind = "" if each.serious else " (for information)"
        body += [f"<h3>{text(each.split)}: {text(each.kind)}{kind}</h3>", f"<p>{text(each.text)}</p>"]
        body += _pictures(each, splits)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page("Audit of the data", body), encoding="utf-8")


def _pictures(finding: Finding, splits: Mapping[str, Dataset]) -> list[str]:
    drawn, names = [], []
    for example in finding.examples:
        names.append(os.path.basename(example.name))
        picture = _picture(example, splits)
        if picture is not None:
            drawn.append(picture)
    if not drawn:
        return [f"<p class='note'>{text(', '.join(names))}</p>"] if names else []
    buffer = io.BytesIO()
    mosaic(drawn, min(_COLUMNS, len(drawn))).save(buffer, "JPEG", quality=85)
    return [figure(buffer.getvalue(), "jpeg", finding.kind, ", ".join(names))]


def _picture(example: Example, splits: Mapping[str, Dataset]) -> Image.Image | None:
    """The picture with its boxes, those that are meant in red, and a model's; None where it cannot be read."""
    row: dict[str, Any] = {"objects": {"bbox": [], "category": []}}
    try:
        if example.row < 0:
            with Image.open(example.name) as opened:
                image = opened.convert("RGB")
        else:
            row = undecoded(splits[example.split])[example.row]
            image = decode_image(row)
    except DECODE_ERRORS:  # of which DetectionDataError is one
        return None
    scale = _SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shapes = []
    for place, (box, category) in enumerate(zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)):
        meant = place in example.objects
        label = class_names(splits[example.split])[category] if meant else ""
        x, y, width, height = box
        shapes.append(Shape((x, y, x + width, y + height), "#e6194b" if meant else COLOURS[2], label, label))
    for (x, y, width, height), name in example.found:
        label = f"model: {name}" + ("" if example.score is None else f" {example.score:.2f}")
        shapes.append(Shape((x, y, x + width, y + height), COLOURS[1], label, label))
    return draw_shapes(image.resize(size), shapes, scale)
