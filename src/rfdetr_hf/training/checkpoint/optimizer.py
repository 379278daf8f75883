"""The optimizer's state in a checkpoint: one file where every process has all of it, shards by name under FSDP2.

Either is read back into either, by any number of processes.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from .sharded import shard_of

FILE, SHARDS, GROUPS = "optimizer.pt", "optimizer", "groups.pt"


def save_optimizer(optimizer: Any, folder: Path) -> None:
    """Write the unsharded state to `optimizer.pt`."""
    torch.save(optimizer.state_dict(), folder / FILE)


def save_optimizer_shards(optimizer: Any, folder: Path, is_main: bool) -> None:
    """Write each process's part to `optimizer/`, under the names of the parameters; all processes must call it."""
    named = {_key(name, field): value for name, _, state in _states(optimizer) for field, value in state.items()}
    dcp.state_dict_saver.save(named, checkpoint_id=folder / SHARDS)
    if is_main:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        torch.save(groups, folder / SHARDS / GROUPS)


def load_optimizer(optimizer: Any, folder: Path) -> None:
    """Read either form into an optimizer over the same named parameters, sharded or not.

    Raises:
        ValueError: the checkpoint holds neither form, or other parameters.
    """
    if (folder / FILE).is_file():
        saved = torch.load(folder / FILE, weights_only=True, map_location="cpu")
        _check_names(optimizer, saved["param_groups"], folder)
        states = {
            index: {field: _as_parameter(parameter, value) for field, value in saved["state"][index].items()}
            for index, (_, parameter, _) in enumerate(_states(optimizer))
            if index in saved["state"]
        }
        groups = saved["param_groups"]
    elif (folder / SHARDS).is_dir():
        groups = torch.load(folder / SHARDS / GROUPS, weights_only=True)
        _check_names(optimizer, groups, folder)
        states = _read_shards(optimizer, folder / SHARDS)
    else:
        raise ValueError(
            f"{folder} holds no optimizer that fits this launch; resume with the launch that wrote it, or start a new "
            "run from its model.safetensors"
        )
    # Through the optimizer's own `load_state_dict`, which knows where each tensor has to be.
    indices = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    filled = [{**group, "params": params} for group, params in zip(groups, indices, strict=True)]
    optimizer.load_state_dict({"state": states, "param_groups": filled})


def _states(optimizer: Any) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
    """(name, parameter, its state) of every parameter, in the order of the groups."""
    return [
        (name, parameter, optimizer.state.get(parameter, {}))
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def _key(name: str, field: str) -> str:
    return f"{name}:{field}"


def _check_names(optimizer: Any, groups: list[dict[str, Any]], folder: Path) -> None:
    ours, theirs = ([group["param_names"] for group in each] for each in (optimizer.param_groups, groups))
    if ours != theirs:
        raise ValueError(
            f"the parameter groups of {folder} differ from this run's; resume with the same model, param_groups and "
            "freeze_backbone"
        )


def _as_parameter(parameter: Tensor, value: Any) -> Any:
    """An unsharded state tensor in the parameter's layout; numbers (the step) stay what they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    part = shard_of(parameter, value)
    layout = {"shape": parameter.shape, "stride": parameter.stride(), "run_check": False}
    return DTensor.from_local(part, parameter.device_mesh, parameter.placements, **layout)


def _read_shards(optimizer: Any, folder: Path) -> dict[int, dict[str, Tensor]]:
    saved: Any = dcp.filesystem.FileSystemReader(folder).read_metadata().state_dict_metadata
    loaded: dict[str, Tensor] = {}
    states: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter, _) in enumerate(_states(optimizer)):
        fields = [key.removeprefix(f"{name}:") for key in saved if key.startswith(f"{name}:")]
        for field in fields:
            per_weight = tuple(saved[_key(name, field)].size) == tuple(parameter.shape)
            empty = torch.zeros_like(parameter) if per_weight else torch.zeros(())
            loaded[_key(name, field)] = states.setdefault(index, {})[field] = empty
    dcp.state_dict_loader.load(loaded, checkpoint_id=folder)
    return states
