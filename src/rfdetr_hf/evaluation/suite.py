"""Everything about a detector on a data set, from one call."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from ..data.schema import category_ids, decode_image, has_keypoints, keypoint_schema, undecoded
from .coco import CocoEvaluator
from .detection import DetectionAnalysis
from ..inference.views import Detector
from .plots import plots_installed
from .report import Analyses, analyses_of, write_report, write_results
from .tables import TITLES, aligned, class_cells, error_cells, scores_table, summaries

IOU_TYPES = {"detection": ("bbox",), "segmentation": ("bbox", "segm"), "keypoints": ("bbox", "keypoints")}


def scored_sigmas(dataset: Dataset, task: str) -> dict[int, Sequence[float]] | None:
    """The sigmas of a data set's keypoints by label, for `CocoEvaluator`; None for other tasks.

    Args:
        dataset: loaded with `task`.
        task: "detection", "segmentation" or "keypoints".
    """
    if task != "keypoints" or not has_keypoints(dataset):
        return None
    return {label: each.sigmas for label, each in enumerate(keypoint_schema(dataset).classes)}


class DetectorEvaluation(NamedTuple):
    """What `evaluate_detector` found.

    Attributes:
        metrics: COCO's numbers, and `precision`, `recall`, `f1` at `score_threshold`; those of masks after `segm_`,
            of keypoints after `keypoint_`.
        analyses: for each of the IoU types the curves, confusion, errors and table of the classes.
        evaluator: with all detections.
    """

    metrics: dict[str, float]
    analyses: Analyses
    evaluator: CocoEvaluator

    @property
    def analysis(self) -> DetectionAnalysis:
        """That of the first IoU type."""
        return next(iter(self.analyses.values()))

    def tables(self) -> str:
        """Scores, then classes and errors of each IoU type, for the console."""
        parts = [scores_table(self.metrics)]
        for iou_type, analysis in self.analyses.items():
            parts += [f"{TITLES[iou_type]}:"] if len(self.analyses) > 1 else []
            parts += [aligned(class_cells(analysis.per_class())), aligned(error_cells(analysis))]
        return "\n\n".join(parts)


def check_output(output_dir: str | Path | None, report: bool) -> None:
    """Whether results can be written, which is better known before the images are looked at.

    Raises:
        ValueError, FileExistsError, ImportError: see `evaluate_detector`.
    """
    if report and output_dir is None:
        raise ValueError("report=True needs an output_dir to write to.")
    if report and not plots_installed():
        raise ImportError("the report needs matplotlib: pip install 'rfdetr-hf[plots]'")
    if output_dir is not None and Path(output_dir).is_dir() and any(Path(output_dir).iterdir()):
        raise FileExistsError(f"output_dir {output_dir} has files; choose another, or empty it")


def evaluate_detector(
    detect: Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    iou_types: Sequence[str] = ("bbox",),
    sigmas: Sequence[float] | Mapping[int, Sequence[float]] | None = None,
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
        sigmas: of the keypoints, by label where classes differ; see `CocoEvaluator`.
        max_dets: another limit of detections beside COCO's.
        backend: who computes the scores; see `CocoEvaluator`.
        output_dir: for metrics.json, per_class.csv, errors.txt and predictions.json with the original category ids;
            tables of IoU types other than the first in a folder with their name.
        report: also curves, worst images and report.html in `output_dir` (extra `plots`).
        title: of the report.
        progress: called with the images done and their total after each batch.

    Raises:
        ValueError: a report without `output_dir`.
        FileExistsError: `output_dir` has files.
        ImportError: a report without matplotlib.
    """
    check_output(output_dir, report)
    options = {"iou_types": iou_types, "sigmas": sigmas, "max_dets": max_dets, "backend": backend}
    evaluator, rows = CocoEvaluator(dataset, **options), undecoded(dataset.with_format(None))
    for start in range(0, len(rows), batch_size):
        batch = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        evaluator.update([row["image_id"] for row in batch], detect([decode_image(row) for row in batch]))
        if progress is not None:
            progress(start + len(batch), len(rows))
    analyses = analyses_of(evaluator)
    if output_dir is not None:
        write_results(evaluator, output_dir, category_ids(dataset), analyses=analyses)
    if report:
        write_report(evaluator, output_dir, dataset, title, analyses=analyses)
    return DetectorEvaluation(evaluator.compute() | summaries(analyses), analyses, evaluator)
