"""What the verbs share that work on a trained model: how it is named, and how it and its data are loaded."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import (
    DataArguments,
    LaunchArguments,
    ModelArguments,
    RFDETRTrainingArguments,
    UsageError,
    parse_arguments,
    read_options,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from .. import RFDETRForObjectDetection, RFDETRImageProcessor

FIT_TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments, LaunchArguments)
PLACES = {"model_name_or_path": "MODEL", "dataset_name": "DATA"}
# In a training's file these are where it starts, where it writes, what it repeats, and its GPUs.
_OF_THE_RUN = ("model_name_or_path", "output_dir", "data_hash", "device")
_NAMED = 8  # args.yaml of a run has all options


class Subject(NamedTuple):
    """A model, its image processor, and the images to score it on."""

    model: "RFDETRForObjectDetection"
    processor: "RFDETRImageProcessor"
    dataset: "Dataset"


def load_split(model: "RFDETRForObjectDetection", data_args: DataArguments, split: str) -> "Dataset":
    """A split with the labels of the model and what its task needs.

    Raises:
        ValueError: there is no such split, or the data does not fit the model.
    """
    from .. import load_detection_dataset

    config: Any = model.config
    names = [config.id2label[i] for i in range(config.num_labels)]
    dataset = load_detection_dataset(**data_args.load_options(model.task), class_names=names)
    if split not in dataset:
        raise ValueError(f"{data_args.dataset_name} has no split {split!r}; it has {', '.join(map(str, dataset))}")
    return dataset[split]


def load_subject(source: str, data_args: DataArguments, split: str) -> Subject:
    """The model of a folder, Hub id or official file, and a split of its data."""
    from .. import load_model, load_processor

    data_args.require_source()
    # No data set has the classes of the rows that are called "N/A".
    model = load_model(source, drop_unused_rows=True)
    processor = load_processor(source, model.config.resolution)
    return Subject(model, processor, load_split(model, data_args, split))


def parse_verb(types: Sequence[type], argv: Sequence[str], prog: str, description: str) -> tuple[Any, ...]:
    """The options of a verb that works on a trained model: MODEL, DATA, then options.

    A file that was written for `fit` gives its data; the model is then the best one of its run, unless MODEL is given,
    and what only a training needs is named on stderr.

    Args:
        types: the dataclasses of the verb's options.
        argv: words of the command line after the verb.
        prog: name of the command in its help.
        description: first paragraphs of its help.

    Raises:
        UsageError: as `parse_arguments` does, and for a file of a training that has left no model.
    """
    path = _value_of("--config", argv)
    verb = {each.name for cls in types for each in dataclasses.fields(cls)}
    values: dict[str, Any] = read_options(path, [*types, *FIT_TYPES]) if path else {}
    foreign = [key for key in values if key not in verb]
    if not foreign:
        return parse_arguments(types, argv, prog, description, PLACES)
    more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
    print(f"{path} is for training; ignored here: {', '.join(foreign[:_NAMED])}{more}", file=sys.stderr)
    kept = {key: value for key, value in values.items() if key in verb and key not in _OF_THE_RUN}
    best = Path(values.get("output_dir") or RFDETRTrainingArguments.output_dir) / "best"
    if best.is_dir():
        kept["model_name_or_path"] = str(best)
    try:
        parsed = parse_arguments(types, argv, prog, description, PLACES, (str(path), kept))
    except UsageError as error:
        if best.is_dir() or "MODEL" not in str(error):
            raise
        raise UsageError(f"{path} is for training, and its run has left no {best}: give MODEL") from error
    if parsed[0].model_name_or_path == str(best):
        print(f"model: {best}", file=sys.stderr)
    return parsed


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
