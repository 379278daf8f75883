"""What the verbs share that work on a trained model: how it is named, and how it and its data are loaded."""

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from datasets import Dataset

from ..data.sources import load_detection_dataset
from ..models.files.auto import load_model, load_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRPreTrainedModel
from ..training.arguments import DataArguments, ModelArguments, RFDETRTrainingArguments, UsageError, to_words

FIT_TYPES = (ModelArguments, DataArguments, RFDETRTrainingArguments)
POSITIONAL = ("--model_name_or_path", "--dataset_name")
# In a training's file these are where it starts and where it writes.
_OF_THE_RUN = ("model_name_or_path", "output_dir")


@dataclass(kw_only=True)
class TrainedModelArguments:
    """Which model, and where it runs."""

    model_name_or_path: str = field(metadata={"help": "A model folder, Hub id or official file."})
    batch_size: int = field(default=8, metadata={"help": "Images (or tiles) of a batch."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, cuda:1; default: cuda where there is one."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is not valid: it must be at least 1")


class Subject(NamedTuple):
    """A model, its image processor, and the images to score it on."""

    model: RFDETRPreTrainedModel
    processor: RFDETRImageProcessor
    dataset: Dataset


def load_trained_model(source: str) -> RFDETRPreTrainedModel:
    """A model whose class rows all have a class: rows that are called "N/A" are left out, which no data set has."""
    return load_model(source, drop_unused_rows=True)


def load_split(model: RFDETRPreTrainedModel, data_args: DataArguments, split: str) -> Dataset:
    """A split with the labels of the model and what its task needs.

    Raises:
        ValueError: there is no such split, or the data does not fit the model.
    """
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    dataset = load_detection_dataset(**data_args.load_options(model.task), class_names=names)
    if split not in dataset:
        raise ValueError(f"{data_args.dataset_name} has no split {split!r}; it has {', '.join(dataset)}")
    return dataset[split]


def load_subject(source: str, data_args: DataArguments, split: str) -> Subject:
    """The model of a folder, Hub id or official file, and a split of its data."""
    model = load_trained_model(source)
    processor = load_processor(source, model.config.resolution)
    return Subject(model, processor, load_split(model, data_args, split))


def as_options(argv: Sequence[str], types: Sequence[type]) -> list[str]:
    """The words of a verb as `parse_arguments` wants them.

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
    values = _read(path) if path else None
    verb, fit = _fields(types), _fields(FIT_TYPES)
    foreign = [key for key in values or () if key not in verb]
    if not foreign:
        return words
    for key in foreign:
        if key not in fit:
            near = difflib.get_close_matches(key, [*verb, *fit], n=1)
            raise UsageError(f"unknown option {key!r} in {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    print(f"{path} is for training; ignored here: {', '.join(foreign)}", file=sys.stderr)
    kept = {key: value for key, value in values.items() if key in verb and key not in _OF_THE_RUN}
    if _value_of(POSITIONAL[0], words) is None:
        kept["model_name_or_path"] = _best_of(path, values)
    kept_words = [word for key, value in kept.items() if value is not None for word in to_words(verb[key], value)]
    return [*kept_words, *_without_config(words)]


def _named(words: list[str]) -> list[str]:
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


def _without_config(words: Sequence[str]) -> list[str]:
    before = ["", *words[:-1]]
    return [w for w, last in zip(words, before, strict=True) if "--config" not in (w.split("=")[0], last)]


def _read(path: str) -> dict[str, Any] | None:
    """The file's options; None where it is not what `parse_arguments` reads, which says so."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return values if isinstance(values, dict) else None


def _best_of(path: str, values: dict[str, Any]) -> str:
    best = Path(values.get("output_dir") or RFDETRTrainingArguments.output_dir) / "best"
    if not best.is_dir():
        raise UsageError(f"{path} is for training, and its run has left no {best}: give --model_name_or_path")
    print(f"model: {best}", file=sys.stderr)
    return str(best)


def _fields(types: Sequence[type]) -> dict[str, dataclasses.Field]:
    return {each.name: each for cls in types for each in dataclasses.fields(cls)}
