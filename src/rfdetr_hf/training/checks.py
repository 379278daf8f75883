"""What can be known to be wrong with a run before it starts."""

import difflib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers.trainer_callback import EarlyStoppingCallback

from ..data.audit import audit_dataset
from ..data.schema import class_names, has_keypoints, has_masks, keypoint_schema
from ..evaluation.tables import summaries
from .arguments import RFDETRTrainingArguments
from .console import LOGGER

if TYPE_CHECKING:
    from .trainer import RFDETRTrainer

METRIC_OF_TASK = {"detection": "map", "segmentation": "segm_map", "keypoints": "keypoint_map"}
logger = logging.getLogger(LOGGER)

_SPLITS = ("train_dataset", "eval_dataset", "test_dataset")


def default_metric(args: RFDETRTrainingArguments, task: str) -> str:
    """The metric of the best model where none is named: the mAP of the task, of the average alone or of both."""
    return ("ema_" if args.evaluated_prefixes == ("ema_",) else "") + METRIC_OF_TASK[task]


def check_run(trainer: "RFDETRTrainer", callbacks: Sequence[Any]) -> None:
    """Compare model, data, arguments and callbacks.

    Raises:
        ValueError: two of them contradict each other; the message names both and the remedy.
    """
    splits = {split: dataset for split in _SPLITS if (dataset := getattr(trainer, split)) is not None}
    for split, dataset in splits.items():
        check_split(trainer.model, split, dataset)
    if trainer.eval_dataset is not None:
        _check_metric(trainer)
        _check_early_stopping(trainer.args, callbacks)
    elif trainer.args.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy={trainer.args.eval_strategy.value!r} needs an eval_dataset: hold out a share of the "
            "training split (validation_split=0.1 of load_detection_dataset and of the command line), or set "
            "eval_strategy to 'no'"
        )


def check_split(model: Any, split: str, dataset: Dataset) -> None:
    """Whether the model is made for the classes and the task of a data set.

    Raises:
        ValueError: it is not.
    """
    _check_classes(model.config, split, dataset)
    _check_task(model.task, split, dataset)
    if model.task == "keypoints":
        counts, made_for = keypoint_schema(dataset).num_keypoints_per_class, model.config.num_keypoints_per_class
        if list(counts) != list(made_for):
            raise ValueError(
                f"the classes of {split} have {counts} keypoints, but the model's num_keypoints_per_class is "
                f"{made_for}; build the model with the data set's"
            )


def _check_classes(config: Any, split: str, dataset: Dataset) -> None:
    names = [config.id2label[i] for i in range(config.num_labels)]
    if class_names(dataset) != names:
        raise ValueError(
            f"the classes of {split} are {class_names(dataset)}, but the model's id2label has {names}; "
            "build the model with id2label={i: name} of the data set's class names"
        )


def _check_task(task: str, split: str, dataset: Dataset) -> None:
    present = {"segmentation": has_masks, "keypoints": has_keypoints}.get(task)
    if present is not None and not present(dataset):
        raise ValueError(
            f"the model is made for {task}, but the objects of {split} have none; "
            f"load the data with load_detection_dataset(…, task={task!r})"
        )


def _check_metric(trainer: "RFDETRTrainer") -> None:
    """A metric that no evaluation gives would leave the run without a best model. A user's own are not known yet."""
    if trainer.compute_metrics is not None:
        return
    evaluator = trainer.create_evaluator(trainer.eval_dataset.select(range(0)))
    known = [*evaluator.compute(per_class=trainer.args.eval_per_class), *summaries(evaluator.analyses)]
    known = [f"{prefix}{name}" for name in known for prefix in ("", *trainer.args.evaluated_prefixes)]
    asked = trainer.args.metric_for_best_model.removeprefix("eval_")
    is_loss = trainer.args.eval_loss and asked.removeprefix("ema_").startswith("loss")
    if asked not in known and not is_loss:
        near = difflib.get_close_matches(asked, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(dict.fromkeys(known))}"
        raise ValueError(f"metric_for_best_model={asked!r} is in no evaluation of this run; {hint}")


def _check_early_stopping(args: RFDETRTrainingArguments, callbacks: Sequence[Any]) -> None:
    metric = "eval_" + args.metric_for_best_model.removeprefix("eval_")
    evaluated = [f"eval_{prefix}" for prefix in args.evaluated_prefixes]
    stops = any(isinstance(c, EarlyStoppingCallback) or c is EarlyStoppingCallback for c in callbacks)
    if stops and not any(metric.startswith(e) and (e != "eval_" or "ema_" not in metric) for e in evaluated):
        raise ValueError(
            f"EarlyStoppingCallback looks at {metric}, which is not evaluated; set metric_for_best_model to "
            f"{evaluated[-1].removeprefix('eval_')}map, or eval_raw_weights=True"
        )


def audit_splits(trainer: "RFDETRTrainer") -> None:
    """Look at the data as `args.audit` says, on the main process, and log what was seen.

    Raises:
        DetectionDataError: an image cannot be read.
    """
    if trainer.args.audit != "off" and trainer.accelerator.is_main_process:
        for split in _SPLITS:
            if (dataset := getattr(trainer, split)) is not None:
                name = split.removesuffix("_dataset")
                logger.info("%s", audit_dataset(dataset, split=name, decode=trainer.args.audit == "full"))
    trainer.accelerator.wait_for_everyone()
