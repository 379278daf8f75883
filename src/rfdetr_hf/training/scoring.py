"""What the model of a run finds on a data set, and how that scores."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import EvalPrediction

from ..data.pipeline.collate import PER_IMAGE
from ..data.schema import category_ids
from ..evaluation.by_image import predictions_by_image, truth_by_image
from ..evaluation.coco import CocoEvaluator
from ..evaluation.plots import plots_installed, save_plots
from ..evaluation.report import analyses_of, folder_of, write_results
from ..evaluation.suite import IOU_TYPES, scored_sigmas
from ..evaluation.tables import TITLES, aligned, class_cells, summaries
from .console import LOGGER
from .meters import EvalLossMeter

if TYPE_CHECKING:
    from .trainer import RFDETRTrainer

logger = logging.getLogger(LOGGER)

Detections = list[dict[str, Any]]


def build_evaluator(trainer: "RFDETRTrainer", dataset: Dataset) -> CocoEvaluator:
    """An evaluator for the model's task: boxes, and masks or keypoints."""
    task, limit = trainer.model.task, trainer.args.eval_max_dets
    sigmas = scored_sigmas(dataset, task)
    return CocoEvaluator(dataset, limit, iou_types=IOU_TYPES[task], sigmas=sigmas, backend="auto")


def score(
    trainer: "RFDETRTrainer", dataset: Dataset, evaluator: CocoEvaluator, folder: Path | None = None
) -> dict[str, float]:
    """The scores of all ranks' detections, computed on the main process and known to all.

    Args:
        trainer: of the run.
        dataset: that was evaluated.
        evaluator: that has seen this rank's images.
        folder: where results, tables and curves are written; None for nowhere.
    """
    evaluator.gather(trainer.accelerator)
    scores = [_scores(trainer, dataset, evaluator, folder) if trainer.accelerator.is_main_process else None]
    return broadcast_object_list(scores)[0]


def _scores(
    trainer: "RFDETRTrainer", dataset: Dataset, evaluator: CocoEvaluator, folder: Path | None
) -> dict[str, float]:
    analyses = analyses_of(evaluator)
    for iou_type, analysis in analyses.items():
        if trainer.args.eval_per_class:
            logger.info("%s\n%s", TITLES[iou_type], aligned(class_cells(analysis.per_class())))
        if folder is not None and plots_installed():
            save_plots(analysis, folder_of(folder, iou_type, analyses))
    if folder is not None:
        write_results(evaluator, folder, category_ids(dataset), trainer.args.eval_predictions, analyses)
    scores = evaluator.compute(per_class=trainer.args.eval_per_class) | summaries(analyses)
    if trainer.compute_metrics is not None:
        pair = EvalPrediction(predictions=predictions_by_image(evaluator), label_ids=truth_by_image(evaluator))
        scores |= {name: float(value) for name, value in trainer.compute_metrics(pair).items()}
    return scores


@torch.no_grad()
def detections(
    trainer: "RFDETRTrainer", dataset: Dataset, losses: EvalLossMeter | None = None
) -> Iterator[tuple[list[int], Detections]]:
    """This rank's images of a data set, batch by batch: their ids and what the model finds on them.

    Args:
        trainer: with the model.
        dataset: its images.
        losses: is given the loss of each batch.
    """
    config, device = trainer.model.config, trainer.accelerator.device
    loader = trainer.get_eval_dataloader(dataset)
    trainer.callback_handler.eval_dataloader = loader
    if trainer.optimizer is None:
        trainer.model.to(device)
    model = trainer.wrapped
    model.eval()  # a statement: DeepSpeed's returns nothing
    for batch in trainer.strategy.in_step(loader, len(dataset)):
        if batch is None:
            model(torch.zeros(1, 3, *[config.resolution] * 2, device=device))
            continue
        image_ids = batch["labels"].fields["image_id"].tolist()
        inputs = trainer.to_device(batch)
        labels = inputs.pop("labels")
        sizes = torch.stack([label["orig_size"] for label in labels])
        if losses is not None:
            inputs |= {"labels": [_targets(label) for label in labels], "num_boxes": 1.0}
        with trainer.strategy.autocast():
            outputs = model(**inputs)
        if losses is not None:
            losses.add(outputs.loss, outputs.loss_dict, sum(len(label["boxes"]) for label in inputs["labels"]))
        options = {"pixel_mask": inputs["pixel_mask"], "as_rle": True}
        found = trainer.model.detect(outputs, trainer.image_processor, -1.0, sizes, **options)
        yield image_ids, found
        trainer.fire("on_prediction_step", image_ids=image_ids, detections=found)


def _targets(label: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of an image's truth is a target of the loss: the objects that are no crowds."""
    single = ~label["iscrowd"]
    return {name: value if name in PER_IMAGE else value[single] for name, value in label.items()}
