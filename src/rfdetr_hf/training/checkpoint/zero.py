"""The optimizer's state under DeepSpeed's ZeRO, through the calls that DeepSpeed documents for it.

DeepSpeed's own checkpoint files are never read: its loader unpickles them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .optimizer import OptimizerIndex, Piece, StateReader, check_groups, plain_groups, settled_groups


def zero_index(engine: Any, model: nn.Module) -> OptimizerIndex:
    """The index of a ZeRO engine's optimizer; of the model that the engine trains."""
    base = engine.optimizer.optimizer
    steps = {float(state["step"]) for state in base.state.values() if "step" in state}
    numbers = {"step": max(steps)} if steps else {}
    shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in _trained(model)}
    return OptimizerIndex(plain_groups(base.param_groups), shapes, {name: numbers for name in shapes})


def zero_pieces(engine: Any, model: nn.Module, is_main: bool) -> Iterable[Piece]:
    """The pieces that this process writes; all processes must take them, in this order, for they gather below stage 3.

    Stage 3 gives the partition of each process, the stages below it unsharded states on the main process.
    """
    from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
        safe_get_full_optimizer_state,
        safe_get_local_optimizer_state,
    )

    fields = _fields(engine)
    if fields:
        _link_states(engine)
    for name, parameter in _trained(model):
        for field in fields:
            if hasattr(parameter, "ds_tensor"):
                start, stop = _partition(parameter)
                if stop > start:
                    values: Any = safe_get_local_optimizer_state(parameter, field)
                    yield Piece(name, field, start, values[: stop - start])
            else:
                complete: Any = safe_get_full_optimizer_state(parameter, field)
                if is_main:
                    yield Piece(name, field, 0, complete)


def load_zero(engine: Any, model: nn.Module, reader: StateReader, folder: Path) -> None:
    """Read a checkpoint's state into a ZeRO engine whose model has the checkpoint's weights already.

    Raises:
        CheckpointError: a file is missing or damaged.
        ValueError: the checkpoint has other parameter groups.
    """
    from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    base = engine.optimizer.optimizer
    check_groups(base.param_groups, reader.index.groups, folder)
    for group, settled in zip(base.param_groups, settled_groups(base.param_groups, reader.index.groups), strict=True):
        group.update(settled)
    fields = sorted({field for each in reader.fields.values() for field in each})
    if fields:
        steps = [numbers["step"] for numbers in reader.index.numbers.values() if "step" in numbers]
        _make_states(engine, fields, max(steps, default=0.0))
    for name, parameter in _trained(model):
        partitioned = hasattr(parameter, "ds_tensor")
        start, stop = _partition(parameter) if partitioned else (0, parameter.numel())
        if partitioned:
            safe_set_local_fp32_param(parameter, parameter.ds_tensor.data)
        else:
            safe_set_full_fp32_param(parameter, parameter.detach())
        for field in fields:
            values = reader.read(name, field, start, stop).to(engine.device)
            if partitioned:
                padding = parameter.ds_tensor.numel() - values.numel()
                safe_set_local_optimizer_state(parameter, nn.functional.pad(values, (0, padding)), field)
            else:
                safe_set_full_optimizer_state(parameter, values.view(parameter.shape), field)


def _trained(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _flat_groups(engine: Any) -> list[Tensor]:
    """The flattened float32 tensors that ZeRO's inner optimizer works on."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def _fields(engine: Any) -> list[str]:
    """Names of the state that has an element for each of the parameter; the same on all processes."""
    base = engine.optimizer.optimizer
    return sorted({
        field
        for flat in _flat_groups(engine)
        for field, value in base.state.get(flat, {}).items()
        if isinstance(value, Tensor) and value.shape == flat.shape
    })  # fmt: skip


def _partition(parameter: Any) -> tuple[int, int]:
    """The elements of a parameter that stage 3 keeps on this process, without the padding."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank(parameter.ds_process_group)
    return min(rank * size, parameter.ds_numel), min((rank + 1) * size, parameter.ds_numel)


def _make_states(engine: Any, fields: list[str], step: float) -> None:
    """Make the state that the inner optimizer makes in its first step otherwise, for the calls above to write into."""
    base = engine.optimizer.optimizer
    for flat in _flat_groups(engine):
        base.state[flat] = {"step": torch.tensor(step)} | {field: torch.zeros_like(flat) for field in fields}
    _link_states(engine)


def _link_states(engine: Any) -> None:
    """Below stage 3, let each parameter find its part of the state.

    DeepSpeed does it once, after the first group's first step, when the other groups have no state yet.
    """
    if hasattr(engine.optimizer, "bit16_groups"):
        from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
            lazy_init_hp_params_optimizer_state,
        )

        state = engine.optimizer.optimizer.state
        for parameters, flat in zip(engine.optimizer.bit16_groups, _flat_groups(engine), strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, state)
