"""What can be known to be wrong with a run before it starts."""

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers.trainer_callback import EarlyStoppingCallback

from ..data.audit import audit_dataset
from ..data.schema import class_names, has_object_field, keypoint_schema, max_objects
from ..tasks import TASKS
from .arguments import RFDETRTrainingArguments

logger = logging.getLogger(__name__)


def default_metric(args: RFDETRTrainingArguments, task: str) -> str:
    """The metric of the best model where none is named: the mAP of the task, of the average alone or of both."""
    return ("ema_" if args.evaluated_prefixes == ("ema_",) else "") + TASKS[task].best_metric


def check_run(
    model: Any,
    args: Any,
    splits: Mapping[str, Dataset],
    callbacks: Sequence[Any],
    score_names: Callable[[Dataset], list[str] | None],
) -> None:
    """Compare model, data, arguments and callbacks.

    Args:
        model: to be trained.
        args: with the metric of the best model.
        splits: by name, "train_dataset" and so on.
        callbacks: the user's.
        score_names: what an evaluation of a split gives, without prefix; None where nobody knows.

    Raises:
        ValueError: two of them contradict each other; the message names both and the remedy.
    """
    for split, dataset in splits.items():
        check_split(model, split, dataset)
        _check_objects(model, split, dataset)
    if "eval_dataset" not in splits:
        if args.eval_strategy != "no":
            raise ValueError(
                f"eval_strategy={args.eval_strategy.value!r} needs an eval_dataset: hold out a share of the training "
                "split (validation_split=0.1 of load_detection_dataset and of the command line), or set eval_strategy "
                "to 'no'"
            )
        return
    scores = score_names(splits["eval_dataset"])
    if scores is not None:
        _check_metric(args, scores)
    _check_early_stopping(args, callbacks)


def check_split(model: Any, split: str, dataset: Dataset) -> None:
    """Whether the model is made for the classes and the task of a data set.

    Raises:
        ValueError: it is not.
    """
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if class_names(dataset) != names:
        raise ValueError(
            f"the classes of {split} are {class_names(dataset)}, but the model's id2label has {names}; "
            "build the model with id2label={i: name} of the data set's class names"
        )
    field = TASKS[model.task].object_field
    if field is not None and not has_object_field(dataset, field):
        raise ValueError(
            f"the model is made for {model.task}, but the objects of {split} have none; "
            f"load the data with load_detection_dataset(…, task={model.task!r})"
        )
    if model.task == "keypoints":
        counts, made_for = keypoint_schema(dataset).num_keypoints_per_class, model.config.num_keypoints_per_class
        if list(counts) != list(made_for):
            raise ValueError(
                f"the classes of {split} have {counts} keypoints, but the model's num_keypoints_per_class is "
                f"{made_for}; build the model with the data set's"
            )


def _check_objects(model: Any, split: str, dataset: Dataset) -> None:
    """Whether there is something to learn and to score, and no more than the model can find."""
    most, queries = max_objects(dataset), model.config.num_queries
    if not most and split == "train_dataset":
        raise ValueError(
            f"{split} has no object, or crowds alone, in {len(dataset)} images: there is nothing to learn; check that "
            "annotations and images belong together"
        )
    if not most:
        logger.warning("%s has no object, or crowds alone: every score of it is -1, and no model is the best", split)
    if most > queries:
        logger.warning(
            "%s: an image has %d objects, but the model has %d queries and finds at most so many in an image; use a "
            "model with more (num_queries), or cut the images into tiles",
            split, most, queries,
        )  # fmt: skip


def _check_metric(args: Any, scores: Iterable[str]) -> None:
    """A metric that no evaluation gives would leave the run without a best model."""
    known = [f"{prefix}{name}" for name in scores for prefix in ("", *args.evaluated_prefixes)]
    asked = args.metric_for_best_model.removeprefix("eval_")
    is_loss = args.eval_loss and asked.removeprefix("ema_").startswith("loss")
    if asked not in known and not is_loss:
        near = difflib.get_close_matches(asked, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(dict.fromkeys(known))}"
        raise ValueError(f"metric_for_best_model={asked!r} is in no evaluation of this run; {hint}")


def _check_early_stopping(args: Any, callbacks: Sequence[Any]) -> None:
    metric = "eval_" + args.metric_for_best_model.removeprefix("eval_")
    evaluated = [f"eval_{prefix}" for prefix in args.evaluated_prefixes]
    stops = any(isinstance(c, EarlyStoppingCallback) or c is EarlyStoppingCallback for c in callbacks)
    if stops and not any(metric.startswith(e) and (e != "eval_" or "ema_" not in metric) for e in evaluated):
        raise ValueError(
            f"EarlyStoppingCallback looks at {metric}, which is not evaluated; set metric_for_best_model to "
            f"{evaluated[-1].removeprefix('eval_')}map, or eval_raw_weights=True"
        )


def audit_splits(splits: Mapping[str, Dataset], audit: str, accelerator: Accelerator) -> None:
    """Look at the data as the argument `audit` says, on the main process, and log what was seen.

    Raises:
        DetectionDataError: an image cannot be read.
    """
    if audit != "off" and accelerator.is_main_process:
        for split, dataset in splits.items():
            name = split.removesuffix("_dataset")
            logger.info("%s", audit_dataset(dataset, split=name, decode=audit == "full"))
    accelerator.wait_for_everyone()
