"""Checkpoints of format 1: optimizer and small states in files of `torch.save`, read with `weights_only=True`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directory import CheckpointError
from .optimizer import FOLDER, INDEX, OptimizerIndex, OptimizerReader, StateReader

OPTIMIZER, DEEPSPEED = "optimizer.pt", "deepspeed"


class PreviousOptimizer:
    """An unsharded optimizer of format 1."""

    def __init__(self, folder: Path) -> None:
        saved = load(folder / OPTIMIZER)
        names = [name for group in saved["param_groups"] for name in group["param_names"]]
        self._states: Mapping[str, Mapping[str, Any]] = {
            name: saved["state"].get(i, {}) for i, name in enumerate(names)
        }
        numbers, shapes = {}, {}
        self.fields: dict[str, list[str]] = {}
        for name, state in self._states.items():
            tensors = {field: value for field, value in state.items() if isinstance(value, Tensor) and value.dim()}
            numbers[name] = {field: float(value) for field, value in state.items() if field not in tensors}
            shapes[name] = next((list(value.shape) for value in tensors.values()), [])
            if state:
                self.fields[name] = list(tensors)
        groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
        self.index = OptimizerIndex(groups, shapes, numbers)

    def read(self, name: str, field: str, start: int, stop: int) -> Tensor:
        """The elements `start` to `stop` of a flattened state tensor, (stop - start,), in host memory."""
        return self._states[name][field].reshape(-1)[start:stop]


def open_optimizer(folder: Path) -> StateReader:
    """The optimizer of a checkpoint of this format or of format 1.

    Raises:
        CheckpointError: there is none that can be read.
    """
    if (folder / FOLDER / INDEX).exists():
        return OptimizerReader(folder)
    if (folder / OPTIMIZER).exists():
        return PreviousOptimizer(folder)
    if (folder / FOLDER).is_dir() or (folder / DEEPSPEED).is_dir():
        raise CheckpointError(
            f"the optimizer of {folder} was written by an earlier version under FSDP2 or DeepSpeed, in files that only "
            "a pickle reader opens; start a new run from its model.safetensors with model_name_or_path"
        )
    raise CheckpointError(f"{folder / FOLDER / INDEX} is missing")


def load(path: Path) -> Any:
    """Read a file of `torch.save` that holds numbers, strings, tensors, lists and dicts.

    Raises:
        CheckpointError: it is missing, damaged, or holds anything else.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
