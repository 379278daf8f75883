"""Tensors of which every process holds a part: FSDP2's DTensors and the partitions of DeepSpeed's ZeRO stage 3.

Each function takes a live tensor of the model and does the right thing for its kind; a tensor that every
process has all of is its own part. Nothing here holds more than one unsharded tensor at a time, except
`unsharded_state` on the main process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ..ema import averaged_tensors


def is_partitioned(tensor: Any) -> bool:
    """Whether ZeRO stage 3 has split this parameter."""
    return hasattr(tensor, "ds_tensor")


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors of `model.state_dict()` by name, each in its sharded form."""
    reshard(model)
    return dict(averaged_tensors(model))


def reshard(model: nn.Module) -> None:
    """Drop gathered copies of weights, which a forward pass without gradients leaves behind under FSDP2.

    Before weights are written this is a must: the next forward pass would read the old copies.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_part(tensor: Any) -> Tensor:
    """The memory of a live tensor that this process keeps; writing to it changes the model."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():  # and so the memory itself, without a view of it
            return tensor.to_local()
    return tensor.ds_tensor.data if is_partitioned(tensor) else tensor.detach()


def unsharded(tensor: Any, part: Tensor) -> Tensor:
    """Put together what all processes hold: `part` belongs to `tensor` as its local part does. All must call it."""
    if isinstance(tensor, DTensor):
        layout = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
        return DTensor.from_local(part, tensor.device_mesh, tensor.placements, **layout).full_tensor()
    if is_partitioned(tensor):
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(tensor.ds_process_group))]
        dist.all_gather(parts, part.contiguous(), group=tensor.ds_process_group)
        return torch.cat(parts)[: tensor.ds_numel].view(tensor.ds_shape)
    return part


def shard_of(tensor: Any, value: Tensor) -> Tensor:
    """This process's part of an unsharded value for a live tensor, cut without communication.

    Raises:
        ValueError: the shapes differ.
    """
    shape = tensor.ds_shape if is_partitioned(tensor) else tensor.shape
    if tuple(shape) != tuple(value.shape):
        raise ValueError(f"a tensor of the shape {tuple(value.shape)} does not fit one of {tuple(shape)}")
    if isinstance(tensor, DTensor):
        value = value.to(tensor.device)
        return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
    if is_partitioned(tensor):
        size, rank = tensor.ds_tensor.numel(), dist.get_rank(tensor.ds_process_group)
        piece = value.reshape(-1)[rank * size : (rank + 1) * size]
        return nn.functional.pad(piece, (0, size - piece.numel()))
    return value


@contextmanager
def writing(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Write into the local parts of the tensors it gives; what is derived from them follows at its end."""
    tensors = saved_tensors(model)
    yield tensors
    _refresh(tensors)


def _refresh(tensors: Mapping[str, Any]) -> None:
    # ZeRO stage 3 keeps gathered copies of small parameters.
    for tensor in tensors.values():
        if is_partitioned(tensor) and tensor.ds_status.name == "AVAILABLE":
            tensor.data.copy_(unsharded(tensor, tensor.ds_tensor.data))


def unsharded_state(
    tensors: Mapping[str, Tensor], parts: Mapping[str, Tensor] | None = None, keep: bool = True
) -> dict[str, Tensor]:
    """Unsharded tensors by name, gathered one by one; all processes must call it.

    Args:
        tensors: live tensors.
        parts: what to gather in their layout; default their own local parts.
        keep: on the processes without it the result is empty.
    """
    state = {}
    for name, tensor in tensors.items():
        value = unsharded(tensor, local_part(tensor) if parts is None else parts[name])
        if keep:
            sharded = isinstance(tensor, DTensor) or is_partitioned(tensor)
            state[name] = value.cpu() if sharded else value
    return state


@torch.no_grad()
def write_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write unsharded tensors into a model, whatever its sharding. Every process needs all of them.

    Raises:
        ValueError: names or shapes differ.
    """
    with writing(model) as tensors:
        if tensors.keys() != state.keys():
            raise ValueError(
                f"the weights do not fit the model: missing {sorted(tensors.keys() - state.keys())[:5]}, "
                f"unknown {sorted(state.keys() - tensors.keys())[:5]}"
            )
        for name, tensor in tensors.items():
            try:
                part = shard_of(tensor, state[name])
            except ValueError as error:
                raise ValueError(f"the weights do not fit the model, {name}: {error}") from None
            local_part(tensor).copy_(part)
