"""Training runs that take seconds, and what they leave."""

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rfdetr_hf import RFDETRTrainingArguments


def quick_arguments(folder: str | Path, **options) -> RFDETRTrainingArguments:
    """Two images a micro-batch at one size, loaded in this process, without bars, pictures and an audit of the data."""
    defaults = {
        "per_device_train_batch_size": 2, "dataloader_num_workers": 0, "disable_tqdm": True, "audit": "off",
        "multi_scale": "off", "plots": False,
    }  # fmt: skip
    return RFDETRTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def one_step(folder: str | Path) -> RFDETRTrainingArguments:
    """The quick arguments of a run of one step that saves nothing."""
    return quick_arguments(folder, max_steps=1, save_strategy="no")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """The same names, and the same bits under each."""
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def metrics_rows(folder: str | Path) -> list[dict[str, str]]:
    """The rows of a run's `metrics.csv`."""
    with (Path(folder) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
