"""Everything about a detector on a data set, from one call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from ..data.schema import category_ids, decode_image, undecoded
from .coco import CocoEvaluator
from .detection import DetectionAnalysis
from .inference import Detector
from .report import write_report, write_results
from .tables import aligned, class_cells, error_cells, scores_table


class DetectorEvaluation(NamedTuple):
    """What `evaluate_detector` found.

    Attributes:
        metrics: COCO's numbers, and `precision`, `recall`, `f1` at `score_threshold`.
        analysis: curves, confusion, errors and the table of the classes.
        evaluator: with all detections.
    """

    metrics: dict[str, float]
    analysis: DetectionAnalysis
    evaluator: CocoEvaluator

    def tables(self) -> str:
        """Scores, classes and errors for the console."""
        parts = [scores_table(self.metrics), aligned(class_cells(self.analysis.per_class()))]
        return "\n\n".join([*parts, aligned(error_cells(self.analysis))])


def evaluate_detector(
    detect: Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    iou_types: Sequence[str] = ("bbox",),
    sigmas: Sequence[float] | None = None,
    max_dets: int = 100,
    backend: str = "auto",
    output_dir: str | Path | None = None,
    report: bool = False,
    title: str = "Evaluation",
    progress: Callable[[int, int], Any] | None = None,
) -> DetectorEvaluation:
    """Runs a detector over a data set and scores it.

    Args:
        detect: PIL images -> detections in pixels of each image, with the labels of the data set; see `inference`.
        dataset: one split in the schema of `rfdetr_hf.data.schema`.
        batch_size: images given to `detect` at once.
        iou_types: "bbox", "segm", "keypoints".
        sigmas: of the keypoints.
        max_dets: another limit of detections beside COCO's.
        backend: who computes the scores; see `CocoEvaluator`.
        output_dir: for metrics.json, per_class.csv, errors.txt and predictions.json with the original category ids.
        report: also curves, worst images and report.html in `output_dir` (extra `plots`).
        title: of the report.
        progress: called with the images done and their total after each batch.

    Raises:
        ValueError: a report without `output_dir`.
        FileExistsError: `output_dir` has files.
    """
    if report and output_dir is None:
        raise ValueError("report=True needs an output_dir to write to.")
    if output_dir is not None and Path(output_dir).is_dir() and any(Path(output_dir).iterdir()):
        raise FileExistsError(f"output_dir {output_dir} has files; choose another, or empty it")
    options = {"iou_types": iou_types, "sigmas": sigmas, "max_dets": max_dets, "backend": backend}
    evaluator, rows = CocoEvaluator(dataset, **options), undecoded(dataset.with_format(None))
    for start in range(0, len(rows), batch_size):
        batch = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        evaluator.update([row["image_id"] for row in batch], detect([decode_image(row) for row in batch]))
        if progress is not None:
            progress(start + len(batch), len(rows))
    analysis = evaluator.analyze()
    metrics = evaluator.compute() | analysis.summary()
    if output_dir is not None:
        write_results(evaluator, output_dir, category_ids(dataset))
    if report:
        write_report(evaluator, output_dir, dataset, title)
    return DetectorEvaluation(metrics, analysis, evaluator)
