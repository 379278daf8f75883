"""The numbers of an evaluation for people and for files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..choices import printable
from .analysis import DetectionAnalysis
from .error_types import KINDS
from .evaluator import PREFIXES

TITLES = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_CLASS_COLUMNS = ("objects", "map", "map_50", "map_75", "mar", "precision", "recall", "f1", "best_threshold", "best_f1")


def scores_table(scores: Mapping[str, float]) -> str:
    """Names and values side by side; "-" where there was nothing to score."""
    width = max(map(len, scores), default=0)
    return "\n".join(f"{name:<{width}}  {_cell(value):>7}" for name, value in scores.items())


def summaries(analyses: Mapping[str, DetectionAnalysis]) -> dict[str, float]:
    """`precision`, `recall`, `f1` and `score_threshold` of each IoU type, named as `CocoEvaluator.compute` names."""
    return {
        PREFIXES[iou_type] + name: value
        for iou_type, analysis in analyses.items()
        for name, value in analysis.summary().items()
    }


def value_cells(scores: Mapping[str, float]) -> list[list[str]]:
    """Names and values as cells, with a heading; "-" where there was nothing to score."""
    return [["score", "value"], *([name, _cell(value)] for name, value in scores.items())]


def class_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of `DetectionAnalysis.per_class` as cells, with a heading."""
    return [["class", *_CLASS_COLUMNS], *([row["name"], *(_cell(row[c]) for c in _CLASS_COLUMNS)] for row in rows)]


def error_cells(analysis: DetectionAnalysis) -> list[list[str]]:
    """Each type of error: what it costs in AP50, how often it happens at the best threshold and at all."""
    errors = analysis.errors
    rows = [[kind, f"{errors.cost[kind]:.4f}", str(errors.confident[kind]), str(errors.count[kind])] for kind in KINDS]
    return [["error", "AP50 cost", f"at {analysis.threshold:.2f}", "at any score"], *rows]


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Cells as text: the first column to the left, the others to the right."""
    cells = [[printable(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        numbers = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *numbers]))
    return "\n".join(lines)


def write_class_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """The rows of `DetectionAnalysis.per_class` as a CSV file.

    A name that a spreadsheet would run as a formula gets an apostrophe in front, which makes it a text there.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", *_CLASS_COLUMNS])
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "name": ("'" if row["name"].startswith(_FORMULA) else "") + row["name"]})


def _cell(value: float | None) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value is None or value == -1 else f"{value:.4f}"
