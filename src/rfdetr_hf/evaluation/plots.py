"""Pictures of an evaluation: curves, confusion matrix and cost of errors (extra `plots`), images with their errors."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..drawing import Shape, draw_shapes
from .analysis import DetectionAnalysis
from .backends import Evaluation, run_lengths
from .error_types import KINDS
from .metrics import least_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#2456a6", "#b8c0cc", "#c8382c"
_LINES_WITH_NAMES = 10
_CELLS_WITH_NUMBERS = 20
_LARGEST_MATRIX = 60

# Colours of the boxes on an image.
FOUND, RIGHT, MISSED, WRONG = "#2e9e4f", "#2456a6", "#d4221f", "#e8890c"
LEGEND = {
    "green: object that was found": FOUND,
    "blue: right detection": RIGHT,
    "red: missed object": MISSED,
    "orange: wrong detection and its kind of error": WRONG,
}


def plots_installed() -> bool:
    """Whether the extra `plots` is there."""
    return importlib.util.find_spec("matplotlib") is not None


def overlap_name(analysis: DetectionAnalysis) -> str:
    """What detections and objects are compared by: "IoU", or "OKS" (object keypoint similarity)."""
    return "OKS" if analysis.evaluation.iou_type == "keypoints" else "IoU"


def save_plots(analysis: DetectionAnalysis, folder: str | Path) -> list[Path]:
    """Writes pr_curves.png, f1_curves.png, confusion_matrix.png and error_costs.png.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (
        ("pr_curves", pr_curves),
        ("f1_curves", f1_curves),
        ("confusion_matrix", confusion_figure),
        ("error_costs", error_costs),
    ):
        paths.append(folder / f"{name}.png")
        draw(analysis).savefig(paths[-1], dpi=130)
    return paths


def pr_curves(analysis: DetectionAnalysis) -> "Figure":
    """Precision over recall at IoU (OKS) .5 as COCO interpolates it: each class, and their mean."""
    evaluation = analysis.evaluation
    precision = evaluation.precision[0, :, :, 0, -1]
    classes = np.flatnonzero(precision[0] > -1)
    names = [f"{evaluation.class_names[k]} {precision[:, k].mean():.3f}" for k in classes]
    figure, axes = _figure(f"Precision and recall at {overlap_name(analysis)} .50", "recall", "precision")
    recalls = np.linspace(0, 1, len(precision))
    mean = f"mean {precision[:, classes].mean():.3f}" if len(classes) else ""
    _lines(axes, recalls, precision[:, classes].T, names, mean)
    return figure


def f1_curves(analysis: DetectionAnalysis) -> "Figure":
    """F1 over the score threshold: each class, their mean, and the best threshold."""
    curves = analysis.curves
    classes = np.flatnonzero(curves.num_truths)
    names = [f"{analysis.evaluation.class_names[k]} {curves.f1[k].max():.3f}" for k in classes]
    figure, axes = _figure(f"F1 by score threshold at {overlap_name(analysis)} .50", "score threshold", "F1")
    _lines(axes, curves.thresholds, curves.f1[classes], names, f"mean {curves.macro('f1').max():.3f}")
    axes.axvline(analysis.threshold, color=_RED, linewidth=1, linestyle="--")
    axes.text(analysis.threshold, 1.02, f"{analysis.threshold:.2f}", color=_RED, ha="center", va="bottom")
    return figure


def confusion_figure(analysis: DetectionAnalysis) -> "Figure":
    """Rows of the confusion matrix as shares of the row; the largest classes where there are very many."""
    matrix, names = _largest_classes(analysis.confusion, [*analysis.evaluation.class_names, "background"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.42 * len(names), 5, 16))
    title = f"Confusion at score {analysis.threshold:.2f}, {overlap_name(analysis)} .50 (shares of the row)"
    figure, axes = _figure(title, "detected as", "object", (side + 1, side))
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xticks=range(len(names)), yticks=range(len(names)))
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticklabels(names, rotation=45 if len(names) < 12 else 90, ha="right" if len(names) < 12 else "center")
    axes.set_yticklabels(names)
    axes.tick_params(labelsize=9 if len(names) <= _CELLS_WITH_NUMBERS else 6)
    axes.grid(False)
    if len(names) <= _CELLS_WITH_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count) if count else "", ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(shown, ax=axes, fraction=0.046)
    return figure


def error_costs(analysis: DetectionAnalysis) -> "Figure":
    """What each type of error costs in AP at IoU .5, and how often it happens at the best threshold."""
    errors = analysis.errors
    costs = [100 * errors.cost[kind] for kind in KINDS]
    figure, axes = _figure("Cost of errors: AP50 gained if mended alone", "points of AP50", "", (7, 3.6))
    bars = axes.barh(range(len(KINDS)), costs, color=_BLUE)
    axes.bar_label(bars, [f"{c:.1f}  ({errors.confident[k]}x)" for c, k in zip(costs, KINDS, strict=True)], padding=4)
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.set_xlim(0, max([*costs, 1.0]) * 1.25)
    axes.set_ylim(len(KINDS) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    return figure


def draw_errors(
    analysis: DetectionAnalysis, image: Image.Image, image_id: int | str, long_side: int = 900
) -> Image.Image:
    """An image with its objects, and the detections at or above the best threshold: boxes, and masks or keypoints.

    Args:
        analysis: of the evaluation that has the image.
        image: upright, in the frame of the annotations.
        image_id: its id.
        long_side: of the picture returned.
    """
    evaluation = analysis.evaluation
    position = evaluation.image_ids.tolist().index(image_id)
    matches, truths = evaluation.matches, evaluation.truths
    shown = (matches.image == position) & (matches.score >= least_scores(analysis.threshold)) & ~matches.ignored
    found = set(matches.truth[shown & matches.correct].tolist())
    there = np.flatnonzero((truths.image == position) & ~truths.ignored).tolist()
    # Objects first, so that detections are drawn over them.
    shapes = [_object_shape(evaluation, t, t in found) for t in there]
    shapes += [_detection_shape(analysis, m) for m in np.flatnonzero(shown).tolist()]
    scale = long_side / max(image.size)
    canvas = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    return draw_shapes(canvas, shapes, scale)


def _object_shape(evaluation: Evaluation, truth: int, found: bool) -> Shape:
    x, y, w, h = evaluation.truths.box[truth].tolist()
    missed = f"missed {evaluation.class_names[evaluation.truths.category[truth]]}"
    shape = Shape([x, y, x + w, y + h], FOUND if found else MISSED, "" if found else missed)
    annotation: Any = evaluation.ground_truth.anns[int(evaluation.truths.id[truth])]
    if evaluation.iou_type == "segm":
        shape.mask = evaluation.ground_truth.annToMask(annotation)
    elif evaluation.iou_type == "keypoints":
        points = np.reshape(annotation["keypoints"], (-1, 3))
        shape.points = points[points[:, 2] > 0, :2]
    return shape


def _detection_shape(analysis: DetectionAnalysis, match: int) -> Shape:
    evaluation, matches = analysis.evaluation, analysis.evaluation.matches
    table = evaluation.detections.take(matches.row[[match]])
    kind = int(analysis.errors.kind[match])
    text = f"{evaluation.class_names[matches.category[match]]} {matches.score[match]:.2f}"
    text, colour = (text, RIGHT) if kind < 0 else (f"{text} {KINDS[kind]}", WRONG)
    shape = Shape(table.rows["box"][0].tolist(), colour, text)
    if evaluation.iou_type == "segm":
        shape.mask = run_lengths(table, evaluation.ground_truth, evaluation.image_ids)[0]
    elif table.keypoints is not None and evaluation.iou_type == "keypoints":
        shape.points = table.keypoints[0][table.keypoints[0, :, 2] > 0, :2]
    return shape


def _figure(title: str, x: str, y: str, size: tuple[float, float] = (7, 5)) -> "tuple[Figure, Axes]":
    """An empty figure; without pyplot, so that nothing global is touched."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'rfdetr-hf[plots]'") from error
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, pad=16)
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _lines(axes: "Axes", x: np.ndarray, rows: np.ndarray, names: list[str], mean: str) -> None:
    """A line for each class, with names while they can be told apart, and a thick one for the mean."""
    few = len(rows) <= _LINES_WITH_NAMES
    for row, name in zip(rows, names, strict=True):
        style: dict[str, Any] = {"linewidth": 1.4, "label": name} if few else {"linewidth": 0.7, "color": _GREY}
        axes.plot(x, row, **style)
    if len(rows):
        axes.plot(x, rows.mean(axis=0), color="black", linewidth=2.6, label=mean)
        axes.legend(loc="best", fontsize=9, framealpha=0.9)


def _largest_classes(matrix: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    if len(names) <= _LARGEST_MATRIX:
        return matrix, names
    order = np.argsort(-matrix[:-1].sum(axis=1), kind="stable")[: _LARGEST_MATRIX - 1]
    kept = [*np.sort(order).tolist(), len(names) - 1]
    return matrix[np.ix_(kept, kept)], [names[k] for k in kept]
