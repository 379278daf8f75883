"""What the verbs share that work on a trained model: how it is named, and how it and its data are loaded."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import (
    DataArguments,
    ModelArguments,
    RFDETRTrainingArguments,
    UsageError,
    read_options,
    to_words,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from .. import RFDETRForObjectDetection, RFDETRImageProcessor

FIT_TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments)
POSITIONAL = ("--model_name_or_path", "--dataset_name")
# In a training's file these are where it starts, where it writes, and what it repeats.
_OF_THE_RUN = ("model_name_or_path", "output_dir", "data_hash")


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

    # No data set has the classes of the rows that are called "N/A".
    model = load_model(source, drop_unused_rows=True)
    processor = load_processor(source, model.config.resolution)
    return Subject(model, processor, load_split(model, data_args, split))


def as_options(argv: Sequence[str], types: Sequence[type]) -> list[str]:
    """The words of a verb as `parse_arguments` takes them.

    The first words, up to the first option, are MODEL and DATA. A file that was written for `fit` gives its data; the
    model is then the best one of its run, unless MODEL is given, and what only a training needs is named on stderr.

    Args:
        argv: words of the command line after the verb.
        types: the dataclasses of the verb's options.

    Raises:
        UsageError: too many words, an option twice, or a file with unknown keys or without a model.
    """
    words = _named(list(argv))
    path = _value_of("--config", words)
    verb, fit = ({f.name: f for cls in each for f in dataclasses.fields(cls)} for each in (types, FIT_TYPES))
    values: dict[str, Any] = read_options(path, [*types, *FIT_TYPES]) if path else {}
    foreign = [key for key in values if key not in verb]
    if not foreign:
        return words
    print(f"{path} is for training; ignored here: {', '.join(foreign)}", file=sys.stderr)
    kept = {key: value for key, value in values.items() if key in verb and key not in _OF_THE_RUN}
    if _value_of(POSITIONAL[0], words) is None:
        best = Path(values.get("output_dir") or RFDETRTrainingArguments.output_dir) / "best"
        if not best.is_dir():
            raise UsageError(f"{path} is for training, and its run has left no {best}: give --model_name_or_path")
        print(f"model: {best}", file=sys.stderr)
        kept["model_name_or_path"] = str(best)
    kept_words = [word for key, value in kept.items() if value is not None for word in to_words(verb[key], value)]
    before = ["", *words[:-1]]
    own = [word for word, last in zip(words, before, strict=True) if "--config" not in (word.split("=")[0], last)]
    return [*kept_words, *own]


def _named(words: list[str]) -> list[str]:
    """The words with names before the first ones, MODEL and DATA."""
    count = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    if count > len(POSITIONAL):
        raise UsageError(f"{words[2]!r} is one word too many: MODEL, DATA, then options")
    for name in POSITIONAL[:count]:
        if _value_of(name, words) is not None:
            raise UsageError(f"{name} and {words[POSITIONAL.index(name)]!r} say the same; give one of them")
    return [word for pair in zip(POSITIONAL, words[:count], strict=False) for word in pair] + words[count:]


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None
