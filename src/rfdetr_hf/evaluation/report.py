"""An evaluation as files: metrics, tables and detections always; curves and one HTML page where they are asked for."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from datasets import Dataset

from ..data.schema import decode_image, undecoded
from .analysis import DetectionAnalysis
from .evaluator import CocoEvaluator
from .plots import LEGEND, draw_errors, overlap_name, save_plots
from .tables import TITLES, aligned, class_cells, error_cells, scores_table, summaries, write_class_csv

Analyses = Mapping[str, DetectionAnalysis]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid #dde2ea; padding-bottom: .2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th { background: #f2f4f8; }
td, th { padding: .25em .8em; text-align: right; } td:first-child, th:first-child { text-align: left; }
tr:nth-child(even) td { background: #fafbfc; }
.row { display: flex; flex-wrap: wrap; gap: 1em; } .row img { flex: 1 1 480px; max-width: 100%; }
figure { margin: 1.5em 0; } figure img { max-width: 100%; } figcaption, .note { color: #5a6474; }
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -1px; }
"""


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

    Raises:
        ImportError: matplotlib is not installed (extra `plots`).
    """
    analyses = evaluator.analyses
    lines = _head(title, evaluator, analyses)
    for iou_type, analysis in analyses.items():
        place = folder_of(folder, iou_type, analyses)
        plots = save_plots(analysis, place)
        pictures = _draw_worst(analysis, place, dataset, num_images) if dataset is not None else []
        lines += [f"<h1>{TITLES[iou_type]}</h1>"] if len(analyses) > 1 else []
        lines += _part(analysis, plots, pictures)
    page = Path(folder) / "report.html"
    page.write_text("\n".join(lines) + "</html>\n", encoding="utf-8")
    return page


def _draw_worst(analysis: DetectionAnalysis, folder: Path, dataset: Dataset, limit: int) -> list[tuple[Path, str]]:
    """Paths of the pictures and captions."""
    rows, pictures = undecoded(dataset.with_format(None)), []
    row_of = {image_id: row for row, image_id in enumerate(rows["image_id"])}
    (folder / "worst_images").mkdir(exist_ok=True)
    for rank, errors in enumerate(analysis.worst_images(limit), start=1):
        name = re.sub(r"[^\w.-]", "_", str(errors.image_id))[:100]
        path = folder / "worst_images" / f"{rank:02d}_image_{name}.jpg"
        draw_errors(analysis, decode_image(rows[row_of[errors.image_id]]), errors.image_id).save(path, quality=88)
        right, wrong, missed = errors[1:]
        pictures.append((path, f"Image {errors.image_id}: {right} right, {wrong} wrong, {missed} missed"))
    return pictures


def _head(title: str, evaluator: CocoEvaluator, analyses: Analyses) -> list[str]:
    evaluation = next(iter(analyses.values())).evaluation
    return [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1><p>{len(evaluator.image_ids)} images, {int((~evaluation.truths.ignored).sum())} "
        f"objects, {len(evaluation.category_ids)} classes.</p>",
        "<h2>Scores</h2><pre>" + escape(scores_table(evaluator.compute())) + "</pre>",
    ]


def _part(analysis: DetectionAnalysis, plots: Sequence[Path], pictures: Sequence[tuple[Path, str]]) -> list[str]:
    """What the page says of one IoU type."""
    best = analysis.summary()
    lines = [
        f"<p>{_advice(analysis)}</p>",
        f"<p>At the score threshold {best['score_threshold']:.2f}, which has the best mean F1: precision "
        f"{best['precision']:.3f}, recall {best['recall']:.3f}, F1 {best['f1']:.3f} (mean over classes, "
        f"{overlap_name(analysis)} .50).</p>"
        if best["f1"]
        else "<p>No detection is right, so there is no best score threshold.</p>",
        *(f"<p><b>Note:</b> {escape(note)}.</p>" for note in analysis.notes()),
        "<h2>Classes</h2>" + _html_table(class_cells(analysis.per_class())),
        "<h2>Errors</h2><p class='note'>What AP50 would gain if one type of error were mended alone, and how often "
        "each happens at the threshold and among all detections.</p>" + _html_table(error_cells(analysis)),
        "<h2>Curves and confusion</h2><div class='row'>" + "".join(_embedded(path) for path in plots) + "</div>",
    ]
    if pictures:
        swatches = (f"<span class='swatch' style='background:{c}'></span>{escape(t)}" for t, c in LEGEND.items())
        lines.append(f"<h2>Worst images</h2><p class='note'>Most errors first. {''.join(swatches)}</p>")
        lines += [f"<figure>{_embedded(p)}<figcaption>{escape(text)}</figcaption></figure>" for p, text in pictures]
    return lines


def _advice(analysis: DetectionAnalysis) -> str:
    """The dearest error in a sentence."""
    errors = analysis.errors
    kind = max(errors.cost, key=errors.cost.__getitem__)
    if errors.cost[kind] <= 0:
        return "No type of error costs any AP50."
    return (
        f"AP50 is {errors.map_50:.3f}; the dearest errors are of the type <b>{kind}</b>: without them AP50 would be "
        f"{errors.map_50 + errors.cost[kind]:.3f}."
    )


def _html_table(cells: Sequence[Sequence[str]]) -> str:
    head, *body = (
        "".join(f"<{'td' if n else 'th'}>{escape(c)}</{'td' if n else 'th'}>" for c in row)
        for n, row in enumerate(cells)
    )
    return f"<table><tr>{'</tr><tr>'.join([head, *body])}</tr></table>"


def _embedded(path: Path) -> str:
    kind = "png" if path.suffix == ".png" else "jpeg"
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='{escape(path.stem)}' src='data:image/{kind};base64,{data}'>"
