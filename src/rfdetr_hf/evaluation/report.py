"""An evaluation as files: metrics, tables and detections always; curves and one HTML page where they are asked for."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from ..choices import counted
from ..data.schema import decode_image, undecoded
from .advice import class_advice
from .analysis import DetectionAnalysis
from .evaluator import CocoEvaluator
from .page import page, picture, table, text
from .plots import LEGEND, draw_errors, overlap_name, save_plots
from .tables import TITLES, aligned, class_cells, error_cells, summaries, value_cells, write_class_csv

_HEADS = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "mar": "AR", "f1": "F1", "best_f1": "best F1"}

Analyses = Mapping[str, DetectionAnalysis]

AP_IS = (
    "AP is the mean average precision over IoU .50 to .95 at up to 100 detections an image, AP50 that at IoU .50, as "
    "COCO defines them; 1 is perfect."
)


def folder_of(folder: str | Path, iou_type: str, analyses: Analyses) -> Path:
    """Where the tables and curves of an IoU type go: the first one's into `folder` itself, others' into its own."""
    return Path(folder) if iou_type == next(iter(analyses)) else Path(folder) / iou_type


def write_results(
    evaluator: CocoEvaluator,
    folder: str | Path,
    category_ids: Sequence[int] | None = None,
    predictions: bool = True,
) -> dict[str, float]:
    """Writes metrics.json, per_class.csv, thresholds.json, errors.txt and predictions.json; returns the metrics.

    Of IoU types after the first the tables go to a folder with the type's name. thresholds.json has the best score
    threshold of each class that has one, as `rfdetr-hf predict --thresholds` takes them.

    Args:
        evaluator: after its updates (and `gather`).
        folder: made where it is not there.
        category_ids: original category id by label, for predictions.json.
        predictions: whether to write predictions.json, about 150 bytes for each detection.
    """
    folder, analyses = Path(folder), evaluator.analyses
    folder.mkdir(parents=True, exist_ok=True)
    metrics = evaluator.compute() | summaries(analyses)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for iou_type, analysis in analyses.items():
        place = folder_of(folder, iou_type, analyses)
        place.mkdir(exist_ok=True)
        rows = analysis.per_class()
        write_class_csv(rows, place / "per_class.csv")
        thresholds = {row["name"]: row["best_threshold"] for row in rows if row["best_threshold"] is not None}
        (place / "thresholds.json").write_text(json.dumps(thresholds, indent=1) + "\n", encoding="utf-8")
        (place / "errors.txt").write_text(aligned(error_cells(analysis)) + "\n", encoding="utf-8")
    if predictions:
        text = json.dumps(evaluator.predictions_json(category_ids))
        (folder / "predictions.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def write_report(
    evaluator: CocoEvaluator,
    folder: str | Path,
    dataset: Dataset | None = None,
    title: str = "Evaluation",
    num_images: int = 12,
) -> Path:
    """Writes the curves as PNG files, the worst images as JPEG files, and report.html with all of it inside.

    Each IoU type has its part of the page; curves and images of those after the first are in a folder with its name.

    Args:
        evaluator: after its updates (and `gather`).
        folder: made where it is not there.
        dataset: with the images; without it no images are drawn.
        title: of the page.
        num_images: of the worst images that are drawn for each IoU type.

    Returns:
        Path of report.html.
    """
    evaluation = next(iter(evaluator.analyses.values())).evaluation
    objects = int((~evaluation.truths.ignored).sum())
    body = [
        f"<p class='lead'>{counted(len(evaluator.image_ids), 'image')}, {counted(objects, 'object')}, "
        f"{counted(len(evaluation.category_ids), 'class')}. {AP_IS}</p>",
        "<h2>Scores</h2>" + table(value_cells(evaluator.compute()), "slim"),
        *evaluation_part(evaluator, folder, dataset, num_images),
    ]
    path = Path(folder) / "report.html"
    path.write_text(page(title, body), encoding="utf-8")
    return path


def evaluation_part(
    evaluator: CocoEvaluator,
    folder: str | Path,
    dataset: Dataset | None = None,
    num_images: int = 12,
    plots: bool = True,
) -> list[str]:
    """What a page says of an evaluation, as HTML: classes, errors, curves, worst images; the pictures as files too.

    Args:
        evaluator, folder, dataset, num_images: see `write_report`.
        plots: whether curves are drawn.
    """
    analyses, lines = evaluator.analyses, []
    for iou_type, analysis in analyses.items():
        place = folder_of(folder, iou_type, analyses)
        files = save_plots(analysis, place) if plots else []
        pictures = _draw_worst(analysis, place, dataset, num_images) if dataset is not None else []
        lines += [f"<h2>{TITLES[iou_type]}</h2>"] if len(analyses) > 1 else []
        lines += _part(analysis, files, pictures)
    return lines


def _draw_worst(analysis: DetectionAnalysis, folder: Path, dataset: Dataset, limit: int) -> list[tuple[Path, str]]:
    """Paths of the pictures and captions."""
    rows, pictures = undecoded(dataset.with_format(None)), []
    row_of = {image_id: row for row, image_id in enumerate(rows["image_id"])}
    (folder / "worst_images").mkdir(parents=True, exist_ok=True)
    for rank, errors in enumerate(analysis.worst_images(limit), start=1):
        name = re.sub(r"[^\w.-]", "_", str(errors.image_id))[:60]  # of at most 4 bytes
        path, row = folder / "worst_images" / f"{rank:02d}_image_{name}.jpg", rows[row_of[errors.image_id]]
        draw_errors(analysis, decode_image(row), errors.image_id).save(path, quality=85)
        right, wrong, missed = errors[1:]
        file = f" ({row['file_name']})" if row.get("file_name") else ""
        pictures.append((path, f"Image {errors.image_id}{file}: {right} right, {wrong} wrong, {missed} missed"))
    return pictures


def _part(analysis: DetectionAnalysis, plots: Sequence[Path], pictures: Sequence[tuple[Path, str]]) -> list[str]:
    """What the page says of one IoU type."""
    best, (names, *rows) = analysis.summary(), class_cells(analysis.per_class())
    heads = [_HEADS.get(name, name.replace("_", " ")) for name in names]
    lines = [
        f"<p>{text(dearest_error(analysis))}</p>",
        f"<p>At the confidence threshold {best['score_threshold']:.2f}, which has the best mean F1: precision "
        f"{best['precision']:.3f}, recall {best['recall']:.3f}, F1 {best['f1']:.3f} (mean over classes, "
        f"{overlap_name(analysis)} .50).</p>"
        if best["f1"]
        else "<p>No detection is right, so there is no best confidence threshold.</p>",
        *(f"<p><b>Note:</b> {text(note)}.</p>" for note in analysis.notes()),
        "<h2>Classes</h2>" + table([heads, *rows], "wide", class_advice(analysis)),
        "<h2>Errors</h2><p class='note'>What AP50 gains if one type of error alone is corrected, and how often "
        "each happens at the threshold and among all detections.</p>" + table(error_cells(analysis), "slim"),
    ]
    if plots:
        wide = [path for path in plots if path.stem == "threshold_curves"]
        lines += ["<h2>Curves and confusion</h2>", *(picture(path, kind="wide chart") for path in wide)]
        others = "".join(picture(path, kind="chart") for path in plots if path not in wide)
        lines.append(f"<div class='row'>{others}</div>")
    if pictures:
        swatches = (f"<span class='swatch' style='background:{c}'></span>{text(t)}" for t, c in LEGEND.items())
        lines.append(f"<h2>Worst images</h2><p class='note'>Most errors first. {''.join(swatches)}</p>")
        lines.append(f"<div class='row'>{''.join(picture(path, caption) for path, caption in pictures)}</div>")
    return lines


def dearest_error(analysis: DetectionAnalysis) -> str:
    """The type of error that costs most, in a sentence."""
    errors = analysis.errors
    kind = max(errors.cost, key=errors.cost.__getitem__)
    if errors.cost[kind] <= 0:
        return "No type of error costs any AP50."
    return (
        f"AP50 is {errors.map_50:.3f}. Errors of the type {kind!r} cost most: without them AP50 would be "
        f"{errors.map_50 + errors.cost[kind]:.3f}."
    )
