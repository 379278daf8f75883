"""How good the weights of a run are, on which data, and which were the best."""

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import EvalPrediction

from ..arguments.training import RFDETRTrainingArguments
from ..data.pipeline.collate import PER_IMAGE
from ..evaluation.evaluator import CocoEvaluator
from ..evaluation.run import joined_scores, score_evaluation
from ..evaluation.tables import TITLES, summaries
from ..hub.model_card import CardFacts
from ..tasks import TASKS
from .agreement import on_main
from .best import candidate_scores
from .checkpoint.run_directory import RunDirectory
from .checkpoint.weights import Weights, checksum_of_model
from .meters import EvalLossMeter, is_timing
from .parallel import Parallel
from .pictures import Scored
from .state import RunState
from .waiting import Batches, run_in_step
from .watchdog import Watchdog

logger = logging.getLogger(__name__)

Found = list[dict[str, Any]]


class PredictionOutput(NamedTuple):
    """What [`RFDETRTrainer.predict`] returns."""

    predictions: list[dict[str, Any]]
    metrics: dict[str, float]


class Validation:
    """Scores the weights of a run and keeps the best of them.

    Args:
        args: of the run.
        directory: of the run; `best/` is kept there.
        accelerator: of the run.
        parallel: has the model that is called.
        weights: of the run.
        watchdog: of the run.
        compute_metrics: further metrics, called on the main process.
        evaluator: makes what scores one pass over a data set; default: COCO's metrics of the model's task.

    Attributes:
        scored: the passes whose results went to a folder; whoever has drawn them clears it.
    """

    def __init__(
        self,
        args: RFDETRTrainingArguments,
        directory: RunDirectory,
        accelerator: Accelerator,
        parallel: Parallel,
        weights: Weights,
        watchdog: Watchdog,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        evaluator: Callable[[Dataset], CocoEvaluator] | None = None,
    ) -> None:
        self.args = args
        self.directory = directory
        self.accelerator = accelerator
        self.parallel = parallel
        self.weights = weights
        self.watchdog = watchdog
        self.compute_metrics = compute_metrics
        self.create_evaluator = evaluator or self._coco_evaluator
        self.scored: list[Scored] = []

    def _coco_evaluator(self, dataset: Dataset) -> CocoEvaluator:
        iou_types = TASKS[self.parallel.model.task].iou_types
        return CocoEvaluator(dataset, self.args.eval_max_dets, iou_types=iou_types, backend="auto")

    def score_names(self, dataset: Dataset) -> list[str] | None:
        """Names of the scores that an evaluation of a data set gives, without prefix; None where a user's own are."""
        if self.compute_metrics is not None:
            return None
        evaluator = self.create_evaluator(dataset.select(range(0)))
        return [*evaluator.compute(per_class=self.args.eval_per_class), *summaries(evaluator.analyses)]

    @torch.no_grad()
    def score(
        self,
        dataset: Dataset,
        batches: Batches,
        to_device: Callable[[Mapping[str, Any]], dict[str, Any]],
        on_batch: Callable[[list[int], Found], None],
        folder: Path | None = None,
        losses: EvalLossMeter | None = None,
    ) -> dict[str, float]:
        """The scores of the weights in place, computed on the main process and known to all.

        Args:
            dataset: its truth.
            batches: this process's share of it.
            to_device: makes a batch the arguments of forward.
            on_batch: called with the image ids of a batch and what was found on each.
            folder: where results and tables are written; None for nowhere.
            losses: is given the loss of each batch; its terms are among the scores.
        """
        model, parallel, accelerator = self.parallel.model, self.parallel, self.accelerator
        if parallel.optimizer is None:
            model.to(accelerator.device)
        parallel.wrapped.eval()  # a statement: DeepSpeed's returns nothing

        def prepare(batch: dict[str, Any]) -> Any:
            inputs = to_device(batch)
            labels = inputs.pop("labels")
            if losses is not None:
                inputs |= {"labels": [_targets(label) for label in labels], "num_boxes": 1.0}
            return labels, inputs

        def forward(prepared: Any) -> Any:
            if prepared is None:
                side = model.config.resolution
                return parallel.wrapped(torch.zeros(1, 3, side, side, device=accelerator.device))
            labels, inputs = prepared
            with parallel.autocast():
                return labels, inputs, parallel.wrapped(**inputs)

        def keep(batch: dict[str, Any], given: Any) -> None:
            labels, inputs, outputs = given
            image_ids = batch["labels"].fields["image_id"].tolist()
            sizes = torch.stack([label["orig_size"] for label in labels])
            if losses is not None:
                losses.add(outputs.loss, outputs.loss_dict, sum(len(label["boxes"]) for label in inputs["labels"]))
            options = {"pixel_mask": inputs["pixel_mask"], "as_rle": True}
            found = model.detect(outputs, self.weights.image_processor, -1.0, sizes, **options)
            on_batch(image_ids, found)
            evaluator.update(image_ids, found)

        with parallel.together():
            evaluator = self.create_evaluator(dataset)
        with self.watchdog.during("evaluation"):
            run_in_step(prepare, forward, keep, batches, parallel, self.watchdog.at)
        evaluator.gather(accelerator)
        scores = on_main(lambda: self._scores(evaluator, dataset, folder), accelerator)
        if folder is not None and accelerator.is_main_process:
            self.scored.append(Scored(folder, evaluator, dataset))
        return scores if losses is None else joined_scores(scores, losses.read(accelerator))

    def _scores(self, evaluator: CocoEvaluator, dataset: Dataset, folder: Path | None) -> dict[str, float]:
        args = self.args
        for iou_type, analysis in evaluator.analyses.items():
            for note in analysis.notes():
                logger.warning("%s: %s", TITLES[iou_type], note)
        return score_evaluation(
            evaluator, dataset, folder, per_class=args.eval_per_class, predictions=args.eval_predictions,
            compute_metrics=self.compute_metrics,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ the best model

    def require_score(self, metrics: Mapping[str, float], state: RunState) -> None:
        """Make sure that an evaluation gives the metric that chooses the best model, the first one as a number.

        Raises:
            ValueError: it does not.
        """
        scores = candidate_scores(metrics, state.best.metric, state.best.use_ema)
        if any(map(math.isfinite, scores.values())) or (scores and state.best.smoothed):
            return  # later ones may lack it: they choose nothing
        finite = [name for name, value in metrics.items() if math.isfinite(value) and not is_timing(name, metrics)]
        given = [name.removeprefix("eval_") for name in finite]
        near = [] if scores else difflib.get_close_matches(state.best.metric, given, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(given)}"
        found = ", ".join(f"{name} {value}" for name, value in scores.items()) or "missing"
        asked = f"metric_for_best_model={state.best.metric!r}"
        raise ValueError(f"{asked} is no number in the evaluation ({found}); {hint}")

    def keep_best(self, metrics: dict[str, float], state: RunState, card: CardFacts) -> bool:
        """Take an evaluation's metrics; returns whether one is the best so far, whose weights `best/` then holds."""
        improved = state.best.update(metrics, state.epoch, state.global_step)
        if improved:
            state.best_metric, state.best_global_step = state.best.score, state.best.step
            state.best_model_checkpoint = str(self.directory.best)
            with self.weights.averaged(state.best.source == "ema"):
                best = self.directory.replacing(self.directory.best, state.best.step)
                self.weights.save_pretrained(best, card, self.accelerator)
            state.best_weights = checksum_of_model(self.directory.best)
        return improved

    def forget_lost_best(self, state: RunState) -> None:
        """A checkpoint from elsewhere knows of a best model that is not here, and could not be loaded in the end."""
        best = state.best
        if best.source is None or self.directory.best.is_dir():
            return
        logger.warning(
            "the best model so far (step %d, %s %.4f) is not in %s; the best of what follows will be kept",
            best.step, best.metric, best.score, self.directory.root,
        )  # fmt: skip
        best.score = best.source = best.step = None
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def holds_best(self, state: RunState) -> bool:
        """Whether there is a best model and `best/` still is that one."""
        if state.best.source is None:
            return False
        found = checksum_of_model(self.directory.best)
        if found is None:
            logger.warning("%s is not there any more: the best of this run (step %d) is lost", self.directory.best,
                           state.best.step)  # fmt: skip
        elif found != state.best_weights:
            logger.warning(
                "%s holds other weights than the best of this run (step %d): a run that went on from a later "
                "checkpoint wrote them; they are left as they are",
                self.directory.best, state.best.step,
            )  # fmt: skip
        return found == state.best_weights


def _targets(label: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of an image's truth is a target of the loss: the objects that are no crowds."""
    single = ~label["iscrowd"]
    return {name: value if name in PER_IMAGE else value[single] for name, value in label.items()}
