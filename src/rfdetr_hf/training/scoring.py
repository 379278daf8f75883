"""What the model of a run finds on a data set, and how that scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ..data.pipeline.collate import PER_IMAGE
from ..evaluation.evaluator import CocoEvaluator
from ..evaluation.run import score_evaluation
from .meters import EvalLossMeter

if TYPE_CHECKING:
    from .trainer import RFDETRTrainer

Detections = list[dict[str, Any]]


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
    scores: list[Any] = [None]
    if trainer.accelerator.is_main_process:
        scores[0] = score_evaluation(
            evaluator,
            dataset,
            folder,
            per_class=trainer.args.eval_per_class,
            predictions=trainer.args.eval_predictions,
            plots=True,
            compute_metrics=trainer.compute_metrics,
        )
    return broadcast_object_list(scores)[0]


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
