"""The optimizer's state in a checkpoint: `optimizer/index.json`, and a safetensors file of pieces per process.

A piece is a range of one flattened state tensor, under the name of its parameter. A process of any launch reads the
ranges that it needs, whoever wrote them: one process, data parallelism, FSDP2 and ZeRO read each other's files.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from .directory import CheckpointError
from .reading import CheckpointFiles
from .tree import require_finite

FOLDER, INDEX, FORMAT = "optimizer", "index.json", 1
# How torch computes a step, not what.
OF_THE_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
INITIAL = "initial"
"""The key of what a group, or a schedule, was made with; schedules and callbacks change it."""


class DifferentGroups(ValueError):
    """The parameter groups or the schedule of a checkpoint are others than those of a run."""


class Piece(NamedTuple):
    """The elements from `start` on of the flattened state `field` ("exp_avg") of a parameter."""

    name: str
    field: str
    start: int
    values: Tensor


class OptimizerIndex(NamedTuple):
    """What the pieces belong to.

    Attributes:
        groups: the parameter groups as plain values, without the parameters; `param_names` has their names.
        shapes: of the parameters, by name; and of states of other shapes, by parameter and field ("name:row_var").
        numbers: state that is one number for all of a parameter (`step`), by parameter and field.
    """

    groups: list[dict[str, Any]]
    shapes: dict[str, list[int]]
    numbers: dict[str, dict[str, float]]


class OptimizerPart(NamedTuple):
    """What one process writes of the optimizer.

    Attributes:
        rank: of the process.
        pieces: that it holds, or that it writes for all.
        index: on the main process, else None.
        files: number of the processes that write pieces.
    """

    rank: int
    pieces: list[Piece]
    index: OptimizerIndex | None
    files: int


def write_optimizer(target: Path, part: OptimizerPart) -> None:
    """Write the part of one process into the folder of the optimizer."""
    target.mkdir(exist_ok=True)
    tensors, starts = {}, {}
    for name, field, start, values in part.pieces:
        key = f"{name}:{field}"
        tensors[key], starts[key] = values.detach().reshape(-1).cpu().contiguous(), start
    require_finite(tensors, "the optimizer")
    save_file(tensors, target / f"rank-{part.rank}.safetensors", metadata={"starts": json.dumps(starts)})
    if part.index is not None:
        content = {"format": FORMAT, "files": part.files, **part.index._asdict()}
        (target / INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")


class StateReader(Protocol):
    """Reads ranges of the states of a checkpoint's optimizer; `fields` has the names of the states by parameter."""

    index: OptimizerIndex
    fields: dict[str, list[str]]

    def read(self, name: str, field: str, start: int, stop: int) -> Tensor:
        """The elements `start` to `stop` of a flattened state tensor, (stop - start,), in host memory."""
        ...


class OptimizerReader:
    """The optimizer's state of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, files: CheckpointFiles) -> None:
        self._source, self._folder = files, files.folder / FOLDER
        path = self._folder / INDEX
        content = files.value(f"{FOLDER}/{INDEX}", dict)
        try:
            if content["format"] != FORMAT:
                raise CheckpointError(f"{path} has the format {content['format']}, this version reads {FORMAT}")
            self.index = OptimizerIndex(content["groups"], content["shapes"], content["numbers"])
            require_finite_numbers(self.index.numbers, path)
            written = content["files"]  # others that lie there are not the checkpoint's
            names = (f"rank-{rank}.safetensors" for rank in range(written))
            missing = next((name for name in names if not files.exists(f"{FOLDER}/{name}")), None)
            if missing is not None:
                raise CheckpointError(f"{path}: field files is {written}, and {missing} is missing")
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error
        # key -> (first element, the one after the last, name of the file)
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}
        self.fields: dict[str, list[str]] = {}
        for file in (f"{FOLDER}/rank-{rank}.safetensors" for rank in range(written)):
            for key, (start, stop) in self._header(file).items():
                self._ranges.setdefault(key, []).append((start, stop, file))
                name, _, field = key.rpartition(":")
                if field not in self.fields.setdefault(name, []):
                    self.fields[name].append(field)

    def _header(self, file: str) -> Mapping[str, tuple[int, int]]:
        path = self._source.folder / file
        try:
            metadata, lengths = self._source.header(file)
            starts = json.loads(metadata["starts"])
            return {key: (int(starts[key]), int(starts[key]) + length) for key, length in lengths.items()}
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except (
            SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError
        ) as error:  # fmt: skip
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error

    def read(self, name: str, field: str, start: int, stop: int) -> Tensor:
        """The elements `start` to `stop` of a flattened state tensor, (stop - start,), in host memory.

        Raises:
            CheckpointError: no file holds some of them, or some are NaN or infinite.
        """
        parts, reached = [], start
        for first, last, file in sorted(self._ranges.get(f"{name}:{field}", ())):
            if first <= reached < min(last, stop):
                part = reached - first, min(last, stop) - first
                parts.append(self._source.rows(file, f"{name}:{field}", *part))
                reached = min(last, stop)
        if reached < stop:
            raise CheckpointError(f"{self._folder} holds no elements from {reached} on of {name}:{field}")
        values = torch.cat(parts) if parts else torch.empty(0)
        require_finite({f"{name}:{field}": values}, self._folder)
        return values


def require_finite_numbers(numbers: Mapping[str, Mapping[str, float]], what: object) -> None:
    """Check the numbers of an index as `require_finite` does the tensors.

    Raises:
        CheckpointError: some are NaN or infinite.
    """
    require_finite({f"{n}:{f}": torch.tensor(float(v)) for n, each in numbers.items() for f, v in each.items()}, what)


class _State(NamedTuple):
    name: str
    parameter: Tensor
    values: dict[str, Any]


def _states(optimizer: Any) -> list[_State]:
    """Every parameter of a torch optimizer with its state, in the order of the groups."""
    return [
        _State(name, parameter, optimizer.state.get(parameter, {}))
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def plain_groups(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups without their parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def index_of(optimizer: Any) -> OptimizerIndex:
    """The index of a torch optimizer over named parameters, sharded or not."""
    numbers = {
        name: {field: float(value) for field, value in values.items() if _is_number(value)}
        for name, _, values in _states(optimizer)
    }
    shapes = {name: list(parameter.shape) for name, parameter, _ in _states(optimizer)}
    for name, parameter, values in _states(optimizer):
        others = {f: v for f, v in values.items() if not _is_number(v) and v.shape != parameter.shape}
        shapes |= {f"{name}:{field}": list(value.shape) for field, value in others.items()}
    return OptimizerIndex(plain_groups(optimizer.param_groups), shapes, numbers)


def pieces_of(optimizer: Any) -> Iterable[Piece]:
    """The pieces that this process holds of a torch optimizer; of what several hold, only the first has a piece."""
    for name, parameter, values in _states(optimizer):
        start, stop, first_holder = local_range(parameter)
        for field, value in values.items():
            if _is_number(value):
                continue
            if isinstance(parameter, DTensor) and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimizer's {field} of {name} has the shape {tuple(value.shape)}, and the parameter "
                    f"{tuple(parameter.shape)}: such an optimizer is saved on one process or data parallel alone"
                )
            if first_holder and stop > start:
                local = value.to_local() if isinstance(value, DTensor) else value
                yield Piece(name, field, start, local)


def local_range(parameter: Tensor) -> tuple[int, int, bool]:
    """Which elements of a flattened parameter this process has, and whether no process before it has the same.

    Raises:
        ValueError: it is split along another dimension than the first.
    """
    if not isinstance(parameter, DTensor):
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return 0, parameter.numel(), first
    mesh, placements = parameter.device_mesh, parameter.placements
    if any(placement.is_shard() and not placement.is_shard(0) for placement in placements):
        raise ValueError(
            f"a parameter of the shape {tuple(parameter.shape)} is split along {placements}: only the first dimension "
            "is supported"
        )
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    row = math.prod(parameter.shape[1:])
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    first = all(place.is_shard() or index == 0 for place, index in zip(placements, coordinate, strict=True))
    start = offset[0] * row if shape else 0
    return start, start + math.prod(shape), first


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.dim() == 0


def load_optimizer(optimizer: Any, reader: StateReader, folder: Path) -> None:
    """Read a checkpoint's state into a torch optimizer over named parameters, sharded or not.

    Raises:
        CheckpointError: a file is missing or damaged.
        ValueError: the checkpoint has other parameter groups, or another optimizer's.
    """
    check_groups(optimizer.param_groups, reader.index.groups, folder)
    states: dict[int, dict[str, Any]] = {}
    for i, (name, parameter, _) in enumerate(_states(optimizer)):
        if name not in reader.fields:
            continue
        start, stop, _ = local_range(parameter)
        state: dict[str, Any] = {key: torch.tensor(value) for key, value in reader.index.numbers[name].items()}
        for field in reader.fields[name]:
            shape = reader.index.shapes.get(f"{name}:{field}")  # where it is another than the parameter's
            if shape is None:
                state[field] = _like(parameter, reader.read(name, field, start, stop))
            else:
                state[field] = reader.read(name, field, 0, math.prod(shape)).view(shape)
        states[i] = state
    current = optimizer.state_dict()
    indices = [group["params"] for group in current["param_groups"]]
    settled = settled_groups(optimizer.param_groups, reader.index.groups)
    groups = [{**group, "params": params} for group, params in zip(settled, indices, strict=True)]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def settled_groups(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A checkpoint's parameter groups without their parameters, with the flags of implementation of this run.

    A device that has no fused kernels, say, resumes what one with them has written.
    """
    settled = []
    for mine, saved in zip(ours, theirs, strict=True):
        own = {key: mine[key] for key in (*OF_THE_IMPLEMENTATION, INITIAL) if key in mine}
        # In the order of the checkpoint, so that the next one has the same bits.
        kept = [key for key in saved if key in own or key not in OF_THE_IMPLEMENTATION]
        group = {key: own.get(key, saved[key]) for key in kept}
        settled.append(group | own | ({"betas": tuple(group["betas"])} if "betas" in group else {}))
    return settled


def check_groups(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Compare parameter groups by the names of their parameters and by what they were made with.

    Raises:
        DifferentGroups: they differ.
    """
    if [group["param_names"] for group in ours] != [group["param_names"] for group in theirs]:
        raise DifferentGroups(
            f"the parameter groups of {folder} differ from this run's; resume with the same model, param_groups and "
            "freeze_backbone"
        )
    for mine, saved in zip(ours, theirs, strict=True):
        require_same(saved.get(INITIAL), mine.get(INITIAL, {}), f"the optimizer of {folder}")


def require_same(before: Mapping[str, Any] | None, now: Mapping[str, Any], what: str) -> None:
    """Compare what an optimizer or a schedule was made with; that of the checkpoint would replace this run's.

    Args:
        before: of the checkpoint; None where it is of an earlier version. Names that only one has are of another
            version of PyTorch.
        now: of this run.
        what: starts the message.

    Raises:
        DifferentGroups: they differ.
    """
    for name in [name for name in now if name in (before or {}) and (before or {})[name] != now[name]]:
        raise DifferentGroups(
            f"{what} was made with {name}={(before or {})[name]}, and this run's with {now[name]}, which the "
            "checkpoint's would replace; give the same, or start a new run from its weights with model_name_or_path"
        )


def _like(parameter: Tensor, flat: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        # With its strides: the fused kernel of a CPU goes by the order in memory.
        return torch.empty_like(parameter, dtype=flat.dtype).copy_(flat.view(parameter.shape))
    row = math.prod(parameter.shape[1:])
    local = flat.view(flat.numel() // max(row, 1), *parameter.shape[1:]) if parameter.dim() else flat.view(())
    layout: dict[str, Any] = {"shape": parameter.shape, "stride": parameter.stride(), "run_check": False}
    return DTensor.from_local(local.to(parameter.device), parameter.device_mesh, parameter.placements, **layout)
