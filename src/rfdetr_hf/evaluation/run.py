"""One evaluation from end to end: a detector over batches, then scores, tables, files and a report."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction

from ..data.keypoints import KeypointSchema
from ..data.schema import category_ids, class_names, decode_image, has_keypoints, keypoint_schema, undecoded
from ..decoding import PILLOW, require_decoder
from ..values import shown
from .analysis import DetectionAnalysis
from .by_image import predictions_by_image, truth_by_image
from .evaluator import CocoEvaluator
from .plots import save_plots
from .report import folder_of, write_report, write_results
from .tables import TITLES, aligned, class_cells, error_cells, scores_table, summaries

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Found = dict[str, Any]  # what a detector finds on one image
Detector = Callable[..., Sequence[Found]]


def run_evaluation(
    detect: Callable[[Batch], tuple[Sequence[Any], Sequence[Mapping[str, Any]]] | None],
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
) -> None:
    """Gives an evaluator what a detector finds on all batches.

    Args:
        detect: a batch -> its image ids and the detections of each image, as `CocoEvaluator.update` takes them; None
            for a batch that only keeps this process in step with the others.
        batches: of any kind that `detect` takes.
        evaluator: of the data set that the batches come from.
    """
    for batch in batches:
        if (found := detect(batch)) is not None:
            evaluator.update(*found)


def score_evaluation(
    evaluator: CocoEvaluator,
    dataset: Dataset,
    folder: str | Path | None = None,
    *,
    per_class: bool = False,
    predictions: bool = True,
    plots: bool = False,
    report: bool = False,
    title: str = "Evaluation",
    compute_metrics: Callable[[EvalPrediction], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """The scores of an evaluator that has seen all images (after `gather`), and its tables, curves and files.

    Args:
        evaluator: of `dataset`.
        dataset: that was evaluated.
        folder: for metrics.json, per_class.csv, thresholds.json, errors.txt and predictions.json with the original
            category ids; tables of IoU types other than the first in a folder with their name. None writes nothing.
        per_class: the scores of each class too, and a line of the log for each.
        predictions: whether predictions.json is written.
        plots: curves and confusion matrix in `folder`.
        report: curves, worst images and report.html in `folder`.
        title: of the report.
        compute_metrics: takes all images, `predictions_by_image` and `truth_by_image`, and returns further scores.
    """
    analyses = evaluator.analyses
    if per_class:
        for iou_type, analysis in analyses.items():
            logger.info("%s\n%s", TITLES[iou_type], aligned(class_cells(analysis.per_class())))
    if folder is not None:
        if report:
            write_report(evaluator, folder, dataset, title)
        elif plots:
            for iou_type, analysis in analyses.items():
                save_plots(analysis, folder_of(folder, iou_type, analyses))
        write_results(evaluator, folder, category_ids(dataset), predictions)
    scores = evaluator.compute(per_class=per_class) | summaries(analyses)
    if compute_metrics is not None:
        found: Any = predictions_by_image(evaluator)
        truth: Any = truth_by_image(evaluator)
        scores = joined_scores(scores, _users_scores(compute_metrics(EvalPrediction(found, truth)), scores))
    return scores


def joined_scores(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The scores of two parts of an evaluation, none of which may replace another.

    Raises:
        ValueError: both have a name.
    """
    if both := [name for name in second if name in first]:
        raise ValueError(
            f"an evaluation has two values for {', '.join(map(repr, both[:3]))}: {first[both[0]]} and "
            f"{second[both[0]]}; let compute_metrics name its scores otherwise, or rename the evaluation sets"
        )
    return {**first, **second}


def _users_scores(given: Any, scores: Mapping[str, float]) -> dict[str, float]:
    """What `compute_metrics` returned, as numbers.

    Raises:
        ValueError: it is no mapping of names to numbers, or has a name twice, or one of `scores`, also after "raw_".
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"compute_metrics must return a dict of names and numbers, and returned {given!r}")
    mine = {}
    for key, value in given.items():
        name = str(key).removeprefix("eval_")
        if name in scores or name.removeprefix("raw_") in scores:
            raise ValueError(f"compute_metrics returned {name!r}, which the evaluation gives itself; name it otherwise")
        if name in mine:
            raise ValueError(f"compute_metrics returned {name!r} twice, once as 'eval_{name}'; name one otherwise")
        try:
            mine[name] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"compute_metrics returned {shown(value)} as {name!r}, which is no number") from error
    return mine


class DetectorEvaluation(NamedTuple):
    """What `evaluate_detector` found.

    Attributes:
        metrics: COCO's numbers, and `precision`, `recall`, `f1` at `score_threshold`; those of masks after `segm_`,
            of keypoints after `keypoint_`.
        evaluator: with all detections.
    """

    metrics: dict[str, float]
    evaluator: CocoEvaluator

    @property
    def analyses(self) -> dict[str, DetectionAnalysis]:
        """For each of the IoU types the curves, confusion, errors and table of the classes."""
        return self.evaluator.analyses

    @property
    def analysis(self) -> DetectionAnalysis:
        """That of the first IoU type."""
        return self.evaluator.analyze()

    def tables(self) -> str:
        """Scores, then classes and errors of each IoU type, for the console."""
        parts = [scores_table(self.metrics)]
        for iou_type, analysis in self.analyses.items():
            parts += [f"{TITLES[iou_type]}:"] if len(self.analyses) > 1 else []
            parts += [aligned(class_cells(analysis.per_class())), aligned(error_cells(analysis))]
            parts += [f"Note: {note}." for note in analysis.notes()]
        return "\n\n".join(parts)


def compare_keypoints(described: Mapping[str, Any] | None, dataset: Any, name: str) -> None:
    """Warn where the keypoints of a data set are not those that a model knows, so that scores mean something else.

    Args:
        described: `keypoint_schema` of the model's configuration.
        dataset: to score the model on, or to train it with.
        name: of the data set.
    """
    if not described or not has_keypoints(dataset):
        return
    pairs = zip(KeypointSchema.from_dict(described).classes, keypoint_schema(dataset).classes, strict=False)
    for label, (theirs, ours) in zip(class_names(dataset), pairs, strict=False):
        wrong = []
        if len(ours.sigmas) == len(theirs.sigmas) and not np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=0):
            wrong.append("sigmas")
        if ours.names != theirs.names and sorted(ours.names) == sorted(theirs.names):
            wrong.append("names")
        for what in wrong:
            here, there = (shown(list(getattr(each, what))) for each in (ours, theirs))
            logger.warning(
                "%s: the keypoints of %s have the %s %s, and keypoint_schema in the model's configuration has %s: "
                "keypoint scores go by the data; load it with keypoint_schema of the model to score by those",
                name, label, what, here, there,
            )  # fmt: skip


def check_output(output_dir: str | Path | None, report: bool) -> None:
    """Whether results can be written, which is better known before the images are looked at.

    Raises:
        ValueError, FileExistsError: see `evaluate_detector`.
    """
    if report and output_dir is None:
        raise ValueError("report=True needs an output_dir to write to.")
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
        detect: PIL images -> detections in pixels of each image, with the labels of the data set; see `inference`. Its
            `value_range`, where it has one, is that of pictures with more than 8 bits, its `image_decoder` reads JPEG
            files, and its `model_labels`, a list of names, must be the classes of the data set; of other sigmas than
            those of its `model_keypoints`, a `keypoint_schema`, a warning tells.
        dataset: one split as `load_detection_dataset` gives it.
        batch_size: images given to `detect` at once.
        iou_types: "bbox", "segm", "keypoints".
        sigmas: of the keypoints, by label where classes differ; see `CocoEvaluator`.
        max_dets: another limit of detections beside COCO's.
        backend: who computes the scores; see `CocoEvaluator`.
        output_dir: for the files of `score_evaluation`.
        report: also curves, worst images and report.html in `output_dir`.
        title: of the report.
        progress: called with the images done and their total after each batch.

    Raises:
        ValueError: a report without `output_dir`, or the detector says that its model has other classes than the
            data set.
        FileExistsError: `output_dir` has files.
    """
    check_output(output_dir, report)
    theirs: Any = getattr(detect, "model_labels", None) or []
    is_unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in theirs)
    if not is_unnamed and theirs != class_names(dataset):
        raise ValueError(
            f"the classes of the data set are {class_names(dataset)}, but the detector's model has {theirs}; load the "
            "data with load_detection_dataset(…, class_names=…) of the model's names"
        )
    if "keypoints" in iou_types and sigmas is None:
        compare_keypoints(getattr(detect, "model_keypoints", None), dataset, "the data set")
    rows = undecoded(dataset.with_format(None))
    # Pictures of more than 8 bits are shown as the model learnt them, not as this data set alone would have them.
    learnt = getattr(detect, "value_range", None)
    shown: dict[str, Any] = {"value_range": learnt} if learnt else {}
    decoder: Any = getattr(detect, "image_decoder", PILLOW)
    require_decoder(decoder)
    evaluator = CocoEvaluator(dataset, max_dets, iou_types=iou_types, sigmas=sigmas, backend=backend)

    def detect_rows(start: int) -> tuple[list[Any], Sequence[Found]]:
        batch = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        found = detect([decode_image(row | shown, decoder) for row in batch])
        if progress is not None:
            progress(start + len(batch), len(rows))
        return [row["image_id"] for row in batch], found

    run_evaluation(detect_rows, range(0, len(rows), batch_size), evaluator)
    return DetectorEvaluation(score_evaluation(evaluator, dataset, output_dir, report=report, title=title), evaluator)
