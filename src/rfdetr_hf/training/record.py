"""`args.yaml`: every argument of a run, of its model and its data too, from which the run can be repeated."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from accelerate import Accelerator
from datasets import Dataset

from ..arguments.training import RFDETRTrainingArguments
from ..choices import VARIANTS
from ..data.fingerprint import KINDS, data_hash
from ..decoding import require_decoder
from ..options import to_yaml, without_secrets

_PATHS = ("model_name_or_path", "init_backbone_from", "dataset_name", "output_dir")
SPLITS = {"train_dataset": "train", "eval_dataset": "validation", "test_dataset": "test"}
# No model and no data set has this name, so that a run that is repeated without them says what is missing.
MADE_IN_PYTHON = "./made-in-python"


class RunRecord:
    """What a run writes down of itself.

    Args:
        made_from: dataclasses of options that the model and the data were made from.
        given: names of what was given besides and no file of options can hold, such as callbacks.

    Raises:
        TypeError: `made_from` holds something else than dataclasses.
    """

    def __init__(self, made_from: Sequence[Any] = (), given: Sequence[str] = ()) -> None:
        for each in made_from:
            if not dataclasses.is_dataclass(each) or isinstance(each, type):
                raise TypeError(
                    f"made_from has a {type(each).__name__}: give the dataclasses of options that the model and the "
                    "data were made from, such as ModelArguments and DataArguments"
                )
        self.made_from = tuple(made_from)
        self.given = tuple(given)

    def to_yaml(
        self, args: RFDETRTrainingArguments, config: Any, contents: Mapping[str, str], accelerator: Accelerator
    ) -> str:
        """The text of `args.yaml`.

        Args:
            args: settled for the run.
            config: of the model.
            contents: the checksums of `hash_splits`.
            accelerator: of the run.
        """
        titles = [type(each).__name__.removesuffix("Arguments").lower() for each in self.made_from]
        sections = {title: _plain(each) for title, each in zip(titles, self.made_from, strict=True)}
        count = accelerator.num_processes
        several = f" --num_processes {count}" if count > 1 else ""
        facts = ["The arguments of a run, as resolved and without secrets. This repeats it:",
                 f"rfdetr-hf fit --config args.yaml{several} --output_dir OTHER"]  # fmt: skip
        known = {name for values in sections.values() for name in values}
        unknown = {name: MADE_IN_PYTHON for name in ("model_name_or_path", "dataset_name") if name not in known}
        source = os.path.expanduser(str(config._name_or_path or ""))
        if "model_name_or_path" in unknown and os.path.isdir(source):
            unknown["model_name_or_path"] = os.path.abspath(source)
        if unknown:
            sections["made in Python"] = unknown
            facts.append(f"Made in Python: {', '.join(unknown)}; check them before.")
        if self.given:
            facts.append(f"Given in Python, and not here: {', '.join(self.given)}.")
        for values in sections.values():
            if "dataset_name" in values:
                values["data_hash"] = dict(contents)
            if "revision" in values and not os.path.isabs(str(values.get("model_name_or_path"))):
                values["revision"] = values["revision"] or getattr(config, "_commit_hash", None)
        sections["training"] = args.to_dict() | {"resume_from_checkpoint": None}
        sections["training"]["output_dir"] = os.path.abspath(args.output_dir)
        packages = ", ".join(f"{name} {version(name)}" for name in ("rfdetr-hf", "torch", "transformers", "accelerate"))
        packages += f", {require_decoder(args.image_decoder)}"
        facts += [f"Equal bits need the same versions and device: {packages}; {accelerator.device.type}, "
                  f"num_processes: {count}."]  # fmt: skip
        return to_yaml(sections, facts)


def hash_splits(splits: Mapping[str, Dataset], audit: str) -> dict[str, str]:
    """`data_hash` of a run's data; it reads the images of all splits unless `audit` is "headers" or "off".

    Args:
        splits: the data sets of the run, by the names of the trainer's arguments.
        audit: of the arguments.
    """
    return data_hash({SPLITS.get(name, name): data for name, data in splits.items()}, KINDS[audit != "full"])


def _from_the_root(value: Any) -> Any:
    """A path of something local as an absolute one, also several with commas between; other values as they are."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        return value
    text = os.path.expanduser(str(value))
    parts = text.split(",")
    if os.path.exists(text) or not all("://" in part or os.path.isdir(part) for part in parts):
        return os.path.abspath(text) if os.path.exists(text) else value
    return ",".join(part if "://" in part else os.path.abspath(part) for part in parts)


def _placed_sources(sources: Any) -> Any:
    """Sources with the paths of their data sets from the root on; in a mapping the names may be these paths."""

    def placed(own: Any) -> Any:
        if not isinstance(own, Mapping):
            return _from_the_root(own)
        return {name: _from_the_root(value) if name == "name_or_path" else value for name, value in own.items()}

    if not isinstance(sources, Mapping):
        return [placed(own) for own in sources]
    return {
        name if isinstance(own, Mapping) and "name_or_path" in own else _from_the_root(name): placed(own)
        for name, own in sources.items()
    }


def _plain(options: Any) -> dict[str, Any]:
    """The fields of a dataclass of options without secrets, local paths from the root on."""
    fields = {k: v for k, v in dataclasses.asdict(options).items() if not k.startswith("_")}
    values = without_secrets(fields)
    for name in _PATHS:
        path = os.path.expanduser(str(values.get(name) or ""))
        a_folder = os.path.isfile(os.path.join(path, "config.json")) and not values.get("from_scratch")
        if name in values and not (name == "model_name_or_path" and path in VARIANTS and not a_folder):
            values[name] = _from_the_root(values[name])
    if values.get("sources"):
        values["sources"] = _placed_sources(values["sources"])
    if values.get("model_name_or_path"):
        values["variant"] = None  # it says the same, and would contradict another model on the command line
    return values
