"""What can be known to be wrong with a run before it starts."""

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback

from ..arguments.metric_names import competing_names, without_raw
from ..arguments.training import RFDETRTrainingArguments
from ..choices import counted
from ..data.audit import raise_faults
from ..data.findings import audit_data
from ..data.rows import check_rows
from ..data.schema import class_names, has_object_field, keypoint_schema, label_table, max_objects
from ..data.shards.dataset import ShardedDataset
from ..evaluation.run import compare_keypoints
from ..hub.push import check_repo_id
from ..models.adapters import adapted_layers
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRForObjectDetection
from ..tasks import TASKS
from ..values import shown
from .record import SPLITS

logger = logging.getLogger(__name__)


def check_kinds(
    model: Any,
    args: Any,
    splits: Mapping[str, Any],
    processor: Any,
    model_init: Callable[[], Any] | None = None,
    others: Mapping[str, Any] = MappingProxyType({}),
    processing_class: Any = None,
) -> tuple[RFDETRForObjectDetection, RFDETRTrainingArguments]:
    """Whether the trainer was given what it needs, and not what a script for another trainer has.

    `others` has what else it was given, by the names of its arguments.

    Returns:
        The model, or the one that `model_init` makes by the seed of the arguments; and these.

    Raises:
        TypeError: it was not; the message says how to get it.
        ValueError: the model has adapters that could not be saved, or a schedule changes another optimizer.
    """
    kind, ours = type(model).__name__, "RFDETRForObjectDetection.from_pretrained"
    if not isinstance(args, RFDETRTrainingArguments):
        given = "transformers' TrainingArguments" if isinstance(args, TrainingArguments) else f"{type(args).__name__}"
        raise TypeError(f"args is {given}: give RFDETRTrainingArguments, which has the same names")
    if model_init is not None and model is not None:
        raise TypeError("model and model_init exclude each other; give one of them")
    if model_init is not None:
        model, kind = (made := init_model(model_init, args.seed)), type(made).__name__
    if not isinstance(model, RFDETRForObjectDetection):
        remedies = {
            "str": f"load it, {ours}({model!r})",
            "NoneType": "give a model, or model_init, a function that makes it",
            "RFDETRConfig": "make a model of it, RFDETRForObjectDetection(config) or the class of another task",
            "type": "give a model of this class, not the class",
            **dict.fromkeys(
                ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"),
                "give the model itself, model.module; the trainer uses the GPUs that the launch gives it",
            ),
            "OptimizedModule": "give the model itself and set torch_compile=True in the arguments",
        }
        other = f"save it and load the folder, {ours}(folder)"
        if kind.startswith("Peft"):
            other = "give the model itself and set lora_r in the arguments"
        raise TypeError(f"model is a {kind}: {remedies.get(kind, other)}")
    adapted_layers(model)  # refuses what could not be saved
    for name, dataset in splits.items():
        if isinstance(dataset, Mapping):
            raise TypeError(f"{name} is a {type(dataset).__name__} of {', '.join(map(str, dataset))}: give one of them")
        if not isinstance(dataset, (Dataset, ShardedDataset)):
            remedy = "give a datasets.Dataset, as load_detection_dataset makes it"
            if isinstance(dataset, IterableDataset):
                remedy = "load_detection_dataset(stream) reads its rows into the cache of datasets"
            raise TypeError(f"{name} is a {type(dataset).__name__}: {remedy}")
    if processor is not None and not isinstance(processor, RFDETRImageProcessor):
        raise TypeError(f"the image processor is a {type(processor).__name__}: give an RFDETRImageProcessor")
    if processing_class is not None and processing_class is not processor:
        raise TypeError("image_processor and processing_class are two names of one thing, and differ; give one of them")
    callbacks, metrics = others.get("callbacks"), others.get("compute_metrics")
    if callbacks is not None and not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"callbacks is a {type(callbacks).__name__}: give a list of callbacks")
    if metrics is not None and not callable(metrics):
        raise TypeError(f"compute_metrics is a {type(metrics).__name__}: give a function of an EvalPrediction")
    if others.get("optimizers", False) is not False:
        _check_optimizers(others["optimizers"])
    return model, args


def init_model(model_init: Callable[..., Any], seed: int) -> Any:
    """What `model_init` makes by a seed; one that takes a trial, as in Transformers, gets None for it.

    Raises:
        TypeError: it needs further arguments.
    """
    needed = _needed(model_init)
    if len(needed) > 1 or any(each.kind == each.KEYWORD_ONLY for each in needed):
        names = ", ".join(each.name for each in needed)
        raise TypeError(f"model_init needs {names}: give a function without arguments, or of a trial, which is None")
    set_seed(seed)
    return model_init(*[None] * len(needed))


def _needed(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters that a call must give."""
    found = [each for each in signature(function).parameters.values() if each.default is each.empty]
    return [each for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]


def _check_optimizers(given: Any) -> None:
    """Whether `optimizers` is an optimizer and the schedule of its rates."""
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        raise TypeError(f"optimizers is a {type(given).__name__}: give (optimizer, scheduler), or None for one")
    optimizer, scheduler = given
    for what, each, part in (("an optimizer", optimizer, "param_groups"), ("a schedule", scheduler, "step")):
        if each is not None and (isinstance(each, type) or not hasattr(each, part)):
            raise TypeError(f"optimizers: {shown(each)} is not {what}; give one that is made, not its class")
    # Of the class: a schedule has wrapped that of the object.
    if optimizer is not None and _needed(getattr(type(optimizer), "step", optimizer.step))[1:]:
        raise ValueError(
            f"optimizers: the step of {type(optimizer).__name__} computes the loss anew, several times, and this "
            "trainer computes it once a step; give an optimizer whose step() takes nothing, such as SGD or AdamW"
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("optimizers: ReduceLROnPlateau waits for a score; give a schedule that steps by itself")
    changed = getattr(scheduler, "optimizer", optimizer)
    if changed is not optimizer and (optimizer is None or getattr(changed, "optimizer", None) is not optimizer):
        raise ValueError(
            f"optimizers: the {type(scheduler).__name__} changes the rates of another optimizer, which does not train "
            "the model; give both, (optimizer, scheduler made of it), or set lr_scheduler_type"
        )


def named_splits(train: Any, evaluation: Any, test: Any) -> dict[str, Any]:
    """The data sets of a run that there are, by name; a mapping of evaluation sets gives `eval_<name>_dataset`s.

    Raises:
        ValueError: a name of a mapping makes no folder of results, or its scores have the names of another set's.
    """
    several = evaluation if isinstance(evaluation, Mapping) else {}
    for name in several:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w .-]*", name):
            raise ValueError(f"eval_dataset: {name!r} names scores and a folder: use letters, digits, '_', '-' and '.'")
        if name.endswith("_raw") and name.removesuffix("_raw") in several:
            other = name.removesuffix("_raw")
            raise ValueError(f"eval_dataset: {name!r} names scores as the raw weights do on {other!r}; rename one")
    named = {"train_dataset": train} | {f"eval_{name}_dataset": dataset for name, dataset in several.items()}
    named |= {"eval_dataset": None if isinstance(evaluation, Mapping) else evaluation, "test_dataset": test}
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def check_data(model: Any, splits: Mapping[str, Dataset]) -> None:
    """Compare the data with the model that it trains or scores.

    Args:
        model: to train.
        splits: the data sets that there are, by the names of `named_splits`.

    Raises:
        ValueError: they contradict each other; the message names both and the remedy.
    """
    for split, dataset in splits.items():
        check_split(model, split, dataset)
        compare_keypoints(model.config.keypoint_schema, dataset, split)
        if isinstance(dataset, Dataset):  # shards were checked when they were written
            check_rows(split, dataset)
        _check_objects(model, split, dataset)


def check_arguments(
    model: Any,
    args: Any,
    splits: Mapping[str, Dataset],
    callbacks: Sequence[Any],
    score_names: Callable[[Dataset], list[str] | None],
) -> None:
    """Compare the arguments of a run with its model, data and callbacks.

    Args:
        model, splits: see `check_data`.
        args: of the run, with `metric_for_best_model`.
        callbacks: of the user.
        score_names: what an evaluation of a split gives, without prefix; None where nobody knows.

    Raises:
        ValueError: two of them contradict each other; the message names both and the remedy.
    """
    if args.hub_model_id is not None:
        check_repo_id(args.hub_model_id)
    evaluated = {split: dataset for split, dataset in splits.items() if split.startswith("eval_")}
    if not evaluated:
        if args.eval_strategy != "no":
            raise ValueError(
                f"eval_strategy={args.eval_strategy.value!r} needs an eval_dataset: hold out a share of the training "
                "split (validation_split=0.1 of load_detection_dataset and of the command line), or set eval_strategy "
                "to 'no'"
            )
        return
    metrics = competing_names(args.metric_for_best_model)
    stops = any(isinstance(each, EarlyStoppingCallback) for each in callbacks)
    logged = []
    losses = ["loss", *dict.fromkeys((*model.loss_terms, *model.loss_function.weight_dict))]
    for split, dataset in evaluated.items():
        start, scores = split.removeprefix("eval_").removesuffix("dataset"), score_names(dataset)
        if scores is None:
            # A user's own scores are known after the first evaluation.
            scores = [name.removeprefix(start) for metric in metrics for name in (metric, without_raw(metric))]
        scores = [*scores, *losses] if args.eval_loss else scores
        logged += [f"{start}{prefix}{score}" for prefix in args.evaluated_prefixes for score in scores]
    for metric in metrics:
        if metric not in logged:
            near = difflib.get_close_matches(metric, logged, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(dict.fromkeys(logged))}"
            for name in {*model.config.id2label.values()}:
                if metric.endswith(f"_{name}"):
                    wanted = f"{metric.removesuffix(f'_{name}').removesuffix('_class')}_class_{name}"
                    hint = f"a class has {wanted!r}, with eval_per_class=True"
            ends = [name for name in losses if without_raw(metric) == name or without_raw(metric).endswith(f"_{name}")]
            if ends and not args.eval_loss:
                hint = "set eval_loss=True"
            if args.use_ema and without_raw(metric) in logged:
                hint = "set eval_raw_weights=True"
            raise ValueError(f"metric_for_best_model={metric!r} is in no evaluation of this run; {hint}")
    if stops and len(metrics) > 1:
        raise ValueError(
            f"EarlyStoppingCallback looks at one score, and metric_for_best_model={args.metric_for_best_model!r} names "
            "two; name one, or set early_stopping_patience instead of the callback"
        )


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
    if most is None:
        logger.info("%s: nobody has counted the objects of its shards, so they are not compared with the model", split)
        return
    if not most and split == "train_dataset":
        raise ValueError(
            f"{split} has no object, or crowds alone, in {counted(len(dataset), 'image')}: there is nothing to learn; "
            "check that annotations and images belong together"
        )
    if not most:
        logger.warning("%s has no object, or crowds alone: every score of it is -1, and no model is the best", split)
    if most > queries:
        logger.warning(
            "%s: an image has %d objects, but the model has %d queries and finds at most so many in an image; use a "
            "model with more (num_queries), or cut the images into tiles",
            split, most, queries,
        )  # fmt: skip


def audit_splits(splits: Mapping[str, Dataset], audit: str, config: Any) -> None:
    """Look at the data as the argument `audit` says, and log what was seen.

    Args:
        splits: of the run, by the names of `named_splits`.
        audit: "full", "headers" or "off".
        config: of the model.

    Raises:
        DetectionDataError: an image cannot be read.
    """
    if audit == "off":
        logger.info("%s", label_table(splits["train_dataset"]))
        return
    named = {SPLITS.get(name, name.removesuffix("_dataset")): dataset for name, dataset in splits.items()}
    found = audit_data(named, decode=audit == "full", num_queries=config.num_queries, resolution=config.resolution)
    for name, scan in found.scans.items():
        raise_faults(name, scan)
        logger.info("%s", found.reports[name])
        if scan.is_sample:
            logger.warning("%s: %d of %d pictures were looked at, evenly spaced", name, len(scan.rows), scan.total)
    for each in found.findings:
        such_as = f", such as {os.path.basename(each.examples[0].name)}" if each.examples else ""
        logger.log(logging.WARNING if each.serious else logging.INFO, "%s: %s%s", each.split, each.text, such_as)
