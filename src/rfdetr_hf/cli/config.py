"""`rfdetr-hf config`: the options of a training as they will be used."""

from collections.abc import Sequence
from dataclasses import asdict

from .. import DataArguments, LaunchArguments, ModelArguments, RFDETRTrainingArguments, parse_arguments, to_yaml

DESCRIPTION = """Print the options of `rfdetr-hf fit` as they will be used: defaults, file and
command line together.

  rfdetr-hf config > run.yaml                 a file with every option, to edit
  rfdetr-hf config --config run.yaml --bf16   what a run would use

What is printed is read back by `rfdetr-hf fit --config`."""


def main(argv: Sequence[str]) -> int:
    """Parse as `fit` does and print YAML; returns the exit code."""
    types = (ModelArguments, DataArguments, RFDETRTrainingArguments, LaunchArguments)
    *parsed, launch = parse_arguments(types, argv, "rfdetr-hf config", DESCRIPTION, {"dataset_name": "DATA"})
    print(resolved(*parsed, launch=launch), end="")
    return 0


def resolved(
    model: ModelArguments, data: DataArguments, training: RFDETRTrainingArguments, launch: LaunchArguments
) -> str:
    """All options as YAML, with the facts that follow from them as comments."""
    per_process = training.train_batch_size * training.micro_batches
    total = training.images_per_step
    facts = [f"effective batch: {f'{per_process} images x processes' if total is None else f'{total} images'}"]
    if model.variant is not None:
        from .. import RFDETRConfig

        config = RFDETRConfig.from_variant(str(model.variant), **model.config_fields())
        facts.append(f"input: {config.resolution} x {config.resolution}, a multiple of {config.size_divisor}")
    # `variant` says the same as the model, and would contradict another one on the command line.
    sections = {"model": asdict(model) | {"variant": None}, "data": asdict(data), "training": training.to_dict()}
    chosen = {name: value for name, value in asdict(launch).items() if value is not None}
    return to_yaml(sections | ({"launch": chosen} if chosen else {}), facts)
