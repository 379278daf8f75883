"""Checkpoints of earlier formats.

Format 1 has optimizer and small states in files of `torch.save`, read with `weights_only=True`. Before format 3 scores
had other names.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arguments.metric_names import present_metric
from .directory import CheckpointError
from .optimizer import FOLDER, INDEX, OptimizerIndex, OptimizerReader, StateReader, require_finite_numbers
from .reading import CheckpointFiles
from .tree import require_finite

logger = logging.getLogger(__name__)

OPTIMIZER, DEEPSPEED = "optimizer.pt", "deepspeed"
PLAIN_NAMES = 3
"""The format from which on `eval_map` is the score of the EMA weights; before, it was that of the raw weights."""


class PreviousOptimizer:
    """An unsharded optimizer of format 1.

    Raises:
        CheckpointError: its file is damaged, or holds NaN or infinite numbers.
    """

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
        values = {f"{n}:{f}": self._states[n][f] for n, names_of in self.fields.items() for f in names_of}
        require_finite(values, folder / OPTIMIZER)
        require_finite_numbers(numbers, folder / OPTIMIZER)
        groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
        self.index = OptimizerIndex(groups, shapes, numbers)

    def read(self, name: str, field: str, start: int, stop: int) -> Tensor:
        """The elements `start` to `stop` of a flattened state tensor, (stop - start,), in host memory."""
        return self._states[name][field].reshape(-1)[start:stop]


def open_optimizer(files: CheckpointFiles) -> StateReader:
    """The optimizer of a checkpoint of this format or of format 1.

    Raises:
        CheckpointError: there is none that can be read.
    """
    folder = files.folder
    if (folder / OPTIMIZER).exists() and not (folder / FOLDER / INDEX).exists():  # beside the present one it is none
        return PreviousOptimizer(folder)
    if (folder / FOLDER / INDEX).exists():
        return OptimizerReader(files)
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


def with_present_names(
    folder: Path, progress: dict[str, Any], callbacks: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint holds of the run and of its callbacks, with the present names of scores.

    Before the third format the score of the EMA weights was `eval_ema_map`, that of the raw weights `eval_map`, and
    "map" chose the best of both.

    Args:
        folder: of the checkpoint, for the log.
        progress: of `RunState.state_dict`.
        callbacks: of `RunState.callback_state`.
    """
    if progress.get("format", 1) >= PLAIN_NAMES or not progress["arguments"].get("use_ema"):
        return progress, callbacks
    both = progress["arguments"].get("eval_raw_weights")

    def metric_now(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        now = present_metric(name)
        return f"{name},raw_{name.removeprefix('eval_')}" if both and now == name else now

    arguments, stateful = progress["arguments"], dict(callbacks.get("stateful_callbacks") or {})
    arguments = arguments | {"metric_for_best_model": metric_now(arguments.get("metric_for_best_model"))}
    if isinstance(stopping := stateful.get("EarlyStopping"), dict) and "metric" in stopping.get("args", {}):
        given = stopping["args"] | {"metric": metric_now(stopping["args"]["metric"])}
        stateful["EarlyStopping"] = stopping | {"args": given}
    history = [_row_now(row) for row in callbacks["log_history"]]
    if history != callbacks["log_history"]:
        logger.warning("%s has scores under earlier names: what it calls eval_ema_map is called eval_map now", folder)
    return progress | {"arguments": arguments}, callbacks | {"log_history": history, "stateful_callbacks": stateful}


def _row_now(row: dict[str, Any]) -> dict[str, Any]:
    names: dict[str, str] = {}
    for name in row:
        if name.startswith("eval_") and "_ema_" in name:
            plain = name.replace("_ema_", "_", 1)
            names |= {name: plain, plain: name.replace("_ema_", "_raw_", 1)}
    return {names.get(name, name): value for name, value in row.items()}
