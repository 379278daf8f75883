"""Linear layers with fewer launches: those of one input as one product, and all weights cast for autocast at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Linear = Callable[[Tensor], Tensor]


class _CastTogether(torch.autograd.Function):
    # Autocast copies each weight by a launch of its own, and each gradient back.

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, sizes: Sequence[int], stacked: bool, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        joined, parts = [], []
        for group in _groups(tensors, sizes):
            rows = [len(tensor) for tensor in group]
            shape = (len(group), *group[0].shape) if stacked else (sum(rows), *group[0].shape[1:])
            joined.append(group[0].new_empty(shape, dtype=dtype))
            parts += joined[-1].unbind() if stacked else joined[-1].split(rows)
        torch._foreach_copy_(parts, list(tensors))  # pyright: ignore[reportPrivateImportUsage]
        ctx.sizes, ctx.rows, ctx.dtypes = sizes, [len(tensor) for tensor in tensors], [t.dtype for t in tensors]
        ctx.stacked, needed = stacked, list(_groups(ctx.needs_input_grad[3:], sizes))
        ctx.mark_non_differentiable(*(tensor for tensor, own in zip(joined, needed, strict=True) if not any(own)))
        ctx.set_materialize_grads(False)
        return tuple(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        parts: list[Tensor | None] = []
        for grad, rows in zip(grads, _groups(ctx.rows, ctx.sizes), strict=True):
            parts += [None] * len(rows) if grad is None else grad.unbind() if ctx.stacked else grad.split(rows)
        wanted = [part if need else None for part, need in zip(parts, ctx.needs_input_grad[3:], strict=True)]
        sources = [part for part in wanted if part is not None]
        types = [dtype for part, dtype in zip(wanted, ctx.dtypes, strict=True) if part is not None]
        copies = [part.new_empty(part.shape, dtype=dtype) for part, dtype in zip(sources, types, strict=True)]
        if copies:
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]
        rest = iter(copies)
        return (None, None, None, *(None if part is None else next(rest) for part in wanted))


def _groups(values: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    rest = iter(values)
    for size in sizes:
        yield list(islice(rest, size))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type in which autocast multiplies on a device; None where it is off."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def to_autocast(x: Tensor) -> Tensor:
    """A tensor that several products read, cast once for all of them."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None or x.dtype == torch.float64 else x.to(dtype)


class _CastSum(torch.autograd.Function):
    # Autograd would take a launch for the cast, and one for each of both gradients.

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = first.dtype
        return torch.add(first, second, out=torch.empty_like(first, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        wide = grad.to(ctx.dtype)
        return wide, wide, None


def sum_to_autocast(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two tensors that products read, in the type of these."""
    dtype = autocast_dtype(first.device)
    alike = first.shape == second.shape and first.dtype == second.dtype == torch.float32
    if dtype is None or not alike or torch.compiler.is_compiling():
        return first + second
    return _CastSum.apply(first, second, dtype)


def joined(groups: Sequence[Sequence[Tensor]], stacked: bool = False) -> tuple[Tensor, ...]:
    """The tensors of each group end to end, along the first dimension, in the type of autocast where it is on.

    Args:
        groups: of tensors that differ in the first dimension at most.
        stacked: along a new dimension instead, those of a group having one shape.
    """
    tensors = [tensor for group in groups for tensor in group]
    own = tensors[0].dtype
    dtype = (own if own == torch.float64 else autocast_dtype(tensors[0].device)) or own
    # A compiler fuses casts by itself.
    if torch.compiler.is_compiling() or all(tensor.dtype == dtype for tensor in tensors):
        join = torch.stack if stacked else lambda group: group[0] if len(group) == 1 else torch.cat(group)
        return tuple(join(list(group)).to(dtype) for group in groups)
    return _CastTogether.apply(dtype, [len(group) for group in groups], stacked, *tensors)


def is_wrapped(module: nn.Module) -> bool:
    """Whether the instance has a `forward` of its own, as offloading gives it: its weights are here within it alone."""
    return "forward" in vars(module)


def rows_of(table: nn.Embedding, count: int, device: torch.device) -> Tensor:
    """The first rows of a table, (count, D)."""
    if is_wrapped(table):
        return table(torch.arange(count, device=device))
    return table.weight if len(table.weight) == count else table.weight[:count]


def is_changed(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module must be called: one of another class (adapters), with a weight of another class, with hooks."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    # torchao puts in a weight that is a tensor of another class.
    other = type(module) is not kind or is_wrapped(module) or hasattr(module.weight, "__tensor_flatten__")
    return other or any(getattr(module, hook) for hook in hooks)


def linears(*groups: Iterable[nn.Module], tensors: Sequence[Tensor] = ()) -> list[Any]:
    """A function for each group of linear layers that read the same input: their outputs side by side.

    Layers of another class (adapters, quantised ones), with weights of another class or with hooks are called as they
    are.

    Args:
        groups: of `nn.Linear`, all of a group with a bias or none.
        tensors: further weights to cast along.

    Returns:
        The functions, and behind them `tensors` in the type of the products.
    """
    members: list[list[Any]] = [list(group) for group in groups]
    changed = [any(is_changed(module, nn.Linear) for module in group) for group in members]
    plain = [group for group, other in zip(members, changed, strict=True) if not other]
    weights = [[module.weight for module in group] for group in plain]
    biases = [[module.bias for module in group] for group in plain if group[0].bias is not None]
    together = [*weights, *biases, *([tensor] for tensor in tensors)]
    cast = iter(joined(together) if together else ())
    first = list(islice(cast, len(plain)))
    products = [
        partial(F.linear, weight=weight, bias=None if group[0].bias is None else next(cast))
        for group, weight in zip(plain, first, strict=True)
    ]
    rest = iter(products)
    functions = [
        (lambda x, group=group: torch.cat([module(x) for module in group], -1)) if other else next(rest)
        for group, other in zip(members, changed, strict=True)
    ]
    return [*functions, *cast]
