"""Pictures of data and of evaluations: label statistics, curves, confusion matrix, cost of errors, images."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..data.audit import ObjectCounts
from ..data.schema import decode_image, undecoded
from ..drawing import COLOURS, Shape, draw_shapes, mosaic
from .analysis import DetectionAnalysis
from .backends import Evaluation, run_lengths
from .error_types import KINDS
from .metrics import highest_rejected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#2456a6", "#b8c0cc", "#c8382c"
_LINES_WITH_NAMES = 10
_CELLS_WITH_NUMBERS = 20
_LARGEST_MATRIX = 60
_BARS = 30
_COLUMNS = 4
_UNSURE = 0.5
_OTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Microsoft YaHei", "MS Gothic", "Malgun Gothic", "SimSun", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS",
)  # fmt: skip
_LABELS = 30  # that can be distinguished on an image

# Colours of the boxes on an image.
FOUND, RIGHT, MISSED, WRONG = "#2e9e4f", "#2456a6", "#d4221f", "#e8890c"
LEGEND = {
    "green: object that was found": FOUND,
    "blue: right detection": RIGHT,
    "red: missed object": MISSED,
    "orange: wrong detection and its kind of error": WRONG,
}


def overlap_name(analysis: DetectionAnalysis) -> str:
    """What detections and objects are compared by: "IoU", or "OKS" (object keypoint similarity)."""
    return "OKS" if analysis.evaluation.iou_type == "keypoints" else "IoU"


def save_plots(analysis: DetectionAnalysis, folder: str | Path) -> list[Path]:
    """Writes pr_curves.png, threshold_curves.png, confusion_matrix.png and error_costs.png."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[DetectionAnalysis], Figure]] = {
        "pr_curves": pr_curves, "threshold_curves": threshold_curves, "confusion_matrix": confusion_figure,
        "error_costs": error_costs,
    }  # fmt: skip
    paths = [folder / f"{name}.png" for name in figures]
    with _fonts():
        for path, draw in zip(paths, figures.values(), strict=True):
            draw(analysis).savefig(path, dpi=110)
    return paths


def save_labels(counts: ObjectCounts, path: Path) -> None:
    """Writes the figure of `label_figure`."""
    with _fonts():
        label_figure(counts).savefig(path, dpi=110)


@contextmanager
def _fonts() -> Iterator[None]:
    """Within the block figures take letters that their usual font lacks from others of this system, if any has them."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    here = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in _OTHER_FONTS if name in here)]
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def pr_curves(analysis: DetectionAnalysis) -> "Figure":
    """Precision over recall at IoU (OKS) .5 as COCO interpolates it: each class, and their mean."""
    evaluation = analysis.evaluation
    precision = evaluation.precision[0, :, :, 0, -1]
    classes = np.flatnonzero(precision[0] > -1)
    names = [f"{short_name(evaluation.class_names[k])} {precision[:, k].mean():.3f}" for k in classes]
    figure = _figure()
    axes = _dress(figure.subplots(), f"Precision and recall at {overlap_name(analysis)} .50", "recall", "precision")
    recalls = np.linspace(0, 1, len(precision))
    mean = f"mean {precision[:, classes].mean():.3f}" if len(classes) else ""
    _lines(axes, recalls, precision[:, classes].T, names, mean)
    return figure


def threshold_curves(analysis: DetectionAnalysis) -> "Figure":
    """Precision, recall and F1 over the score threshold: each class, their mean, and the threshold of the best F1."""
    curves, names = analysis.curves, analysis.evaluation.class_names
    classes = np.flatnonzero(curves.num_truths)
    figure = _figure((13, 4.4))
    for axes, name in zip(figure.subplots(1, 3), ("precision", "recall", "f1"), strict=True):
        title = f"{name.replace('f1', 'F1')} by confidence threshold"
        _dress(axes, f"{title}, {overlap_name(analysis)} .50", "confidence threshold", "")
        rows, at = getattr(curves, name)[classes], curves.best
        labels = [f"{short_name(names[k])} {row[at]:.2f}" for k, row in zip(classes, rows, strict=True)]
        _lines(axes, curves.thresholds, rows, labels, f"mean {curves.macro(name)[at]:.2f}")
        axes.axvline(analysis.threshold, color=_RED, linewidth=1, linestyle="--")
        axes.text(analysis.threshold, 1.02, f"{analysis.threshold:.2f}", color=_RED, ha="center", va="bottom")
    return figure


def confusion_figure(analysis: DetectionAnalysis) -> "Figure":
    """Rows of the confusion matrix as shares of the row; the largest classes where there are very many."""
    matrix, names = _largest_classes(analysis.confusion, [*analysis.evaluation.class_names, "background"])
    names = [short_name(name) for name in names]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.42 * len(names), 5, 16))
    title = f"Confusion at confidence {analysis.threshold:.2f}, {overlap_name(analysis)} .50 (shares of the row)"
    figure = _figure((side + 1, side))
    axes = _dress(figure.subplots(), title, "detected as", "object")
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
    figure = _figure((7, 3.6))
    axes = _dress(figure.subplots(), "Cost of errors: AP50 gained if corrected alone", "points of AP50", "")
    bars = axes.barh(range(len(KINDS)), costs, color=_BLUE)
    axes.bar_label(bars, [f"{c:.1f}  ({errors.confident[k]}x)" for c, k in zip(costs, KINDS, strict=True)], padding=4)
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.set_xlim(0, max([*costs, 1.0]) * 1.25)
    axes.set_ylim(len(KINDS) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    return figure


def label_figure(counts: ObjectCounts) -> "Figure":
    """How often each class occurs, where the objects are in their images, and how large they are."""
    figure = _figure((14, 4.6))
    classes, centres, sizes = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
    order = np.argsort(-counts.per_class, kind="stable")[:_BARS]
    names = [short_name(counts.names[k]) for k in order]
    more = f" (the {_BARS} most frequent of {len(counts.names)})" if len(counts.names) > _BARS else ""
    _dress(classes, f"Objects by class{more}", "objects", "")
    bars = classes.barh(range(len(order)), counts.per_class[order], color=_BLUE)
    classes.bar_label(bars, [f"{n:,}" for n in counts.per_class[order]], padding=4, fontsize=9)
    classes.set_yticks(range(len(order)), names, fontsize=9 if len(order) < 20 else 7)
    classes.set(xlim=(0, max(counts.per_class.max(initial=1), 1) * 1.18), ylim=(max(len(order), 3) - 0.4, -0.6))
    classes.grid(axis="y", visible=False)
    x, y = counts.centres.T
    _dress(centres, "Centres of the objects in their images", "x / width", "y / height")
    shown = centres.hist2d(x, y, bins=40, range=((0, 1), (0, 1)), cmap="Blues", cmin=1)
    figure.colorbar(shown[3], ax=centres, fraction=0.046)
    centres.set(ylim=(1, 0), aspect="equal")
    width, height = np.clip(counts.sizes, 1e-3, 1).T
    _dress(sizes, "Sizes of the boxes", "width / width of the image", "height / height of the image")
    edges = np.geomspace(1e-3, 1, 41)
    shown = sizes.hist2d(width, height, bins=(edges, edges), cmap="Blues", cmin=1, norm="log")
    figure.colorbar(shown[3], ax=sizes, fraction=0.046)
    sizes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1), aspect="equal")
    return figure


def draw_labels_and_detections(
    analysis: DetectionAnalysis, dataset: Dataset, limit: int = 12, side: int = 480
) -> tuple[Image.Image, Image.Image]:
    """The same images twice: with their objects, and with the detections at or above the best threshold.

    Args:
        analysis: of the evaluation of `dataset`.
        dataset: with the images; those with objects are preferred, evenly spread over the data set.
        limit: most images.
        side: longer side of each in pixels.
    """
    evaluation, rows = analysis.evaluation, undecoded(dataset.with_format(None))
    truths, matches, names = evaluation.truths, evaluation.matches, evaluation.class_names
    position = {image_id: n for n, image_id in enumerate(evaluation.image_ids.tolist())}
    positions = np.array([position[image_id] for image_id in rows["image_id"]], dtype=np.int64)
    filled = np.flatnonzero(np.isin(positions, truths.image[~truths.ignored]))
    candidates = filled if len(filled) else np.arange(len(rows))
    chosen = candidates[np.unique(np.linspace(0, len(candidates) - 1, min(limit, len(candidates))).round().astype(int))]
    # Where no detection is right, every threshold is as good as the lowest one, which shows all that a model gives.
    least = analysis.threshold if analysis.summary()["f1"] else _UNSURE
    above = (matches.score > highest_rejected(least)) & ~matches.ignored
    labelled, detected = [], []
    for row in chosen.tolist():
        image, place = decode_image(rows[row]), positions[row]
        there = np.flatnonzero((truths.image == place) & ~truths.ignored).tolist()
        found = np.flatnonzero((matches.image == place) & above)
        found = found[np.argsort(-matches.score[found], kind="stable")].tolist()  # the first labels choose their place
        objects = [(_object_shape(evaluation, t, True), truths.category[t], "") for t in there]
        detections = [(_detection_shape(analysis, m), matches.category[m], f" {matches.score[m]:.2f}") for m in found]
        for pictures, described in ((labelled, objects), (detected, detections)):
            for shape, label, score in described:
                shape.colour = COLOURS[label % len(COLOURS)]
                shape.text, shape.plain_text = f"{names[label]}{score}", f"{label}{score}"
            pictures.append(_drawn(image, [shape for shape, *_ in described], side))
    return mosaic(labelled, _COLUMNS), mosaic(detected, _COLUMNS)


def _drawn(image: Image.Image, shapes: list[Shape], side: int) -> Image.Image:
    """The image with a longer side of so many pixels, and shapes in pixels of the original; the first have labels."""
    for shape in [shape for shape in shapes if shape.text][_LABELS:]:
        shape.text = ""
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return draw_shapes(image.convert("RGB").resize(size), shapes, scale)


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
    shown = (matches.image == position) & (matches.score > highest_rejected(analysis.threshold)) & ~matches.ignored
    found = set(matches.truth[shown & matches.correct].tolist())
    there = np.flatnonzero((truths.image == position) & ~truths.ignored).tolist()
    # Objects first, so that detections are drawn over them.
    shapes = [_object_shape(evaluation, t, t in found) for t in there]
    found_first = np.flatnonzero(shown)[np.argsort(-matches.score[shown], kind="stable")]
    shapes += [_detection_shape(analysis, m) for m in found_first.tolist()]
    return _drawn(image, shapes, long_side)


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


def short_name(name: str, length: int = 24) -> str:
    """A name for a figure: printable, on one line, and without what matplotlib takes for a formula."""
    text = " ".join("".join(c if c.isprintable() else " " for c in name).split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1].rstrip("\\") + "…"


def _figure(size: tuple[float, float] = (7, 5)) -> "Figure":
    """An empty figure; without pyplot, so that nothing global is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _dress(axes: "Axes", title: str, x: str, y: str) -> "Axes":
    """Title, names of the axes from 0 to 1, and a grid."""
    axes.set_title(title, loc="left", fontsize=11, pad=16)
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(color="#e6e9ee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _lines(axes: "Axes", x: np.ndarray, rows: np.ndarray, names: list[str], mean: str) -> None:
    """A line for each class, with names while they can be distinguished, and a thick one for the mean."""
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
