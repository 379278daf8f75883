"""Convolutions as one operation each for `torch.compile`, which has lowerings of its own for them.

Those of the derivative ask for the sides of the image as plain numbers, so that each size of image would be compiled
again, and choose a layout of saved tensors that only fits the first size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .linears import to_autocast


@torch.library.custom_op("rfdetr_hf::convolution", mutates_args=())
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    """(B, C, H, W) -> (B, h, w, D), contiguous."""
    y = torch.ops.aten.convolution(x, weight, bias, stride, padding, [1, 1], transposed, [0, 0], groups)
    return y.permute(0, 2, 3, 1).contiguous()


@_convolution.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    y = torch.ops.aten.convolution(x, weight, bias, stride, padding, [1, 1], transposed, [0, 0], groups)
    batch, channels, height, width = y.shape
    return x.new_empty((batch, height, width, channels))


@torch.library.custom_op("rfdetr_hf::convolution_backward", mutates_args=())
def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    transposed: bool,
    groups: int,
    of_input: bool,
) -> tuple[Tensor, Tensor]:
    """Derivatives (B, H, W, C) by x, empty if it is not asked for, and by the weight."""
    by_x, by_weight, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), x, weight, None, stride, padding, [1, 1], transposed, [0, 0], groups,
        [of_input, True, False],
    )  # fmt: skip
    by_x = by_x.permute(0, 2, 3, 1).contiguous() if of_input else x.new_empty(0)
    return by_x, by_weight.contiguous()


@_convolution_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    transposed: bool,
    groups: int,
    of_input: bool,
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    return x.new_empty((batch, height, width, channels) if of_input else 0), weight.new_empty(weight.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _derive(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    of_input, of_weight = ctx.needs_input_grad[:2]
    by_x = by_weight = by_bias = None
    if of_input or of_weight:
        by_x, by_weight = _convolution_backward(grad.contiguous(), x, weight, *ctx.options, of_input)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        by_bias = grad.sum((0, 1, 2))
    by_x = by_x.permute(0, 3, 1, 2) if of_input and by_x is not None else None
    return by_x, by_weight if of_weight else None, by_bias, None, None, None, None


_convolution.register_autograd(_derive, setup_context=_remember)


def convolve(module: nn.Module, x: Tensor) -> Tensor:
    """The output (B, D, h, w) of a two-dimensional convolution, transposed or not, of x (B, C, H, W).

    Args:
        module: `nn.Conv2d` or `nn.ConvTranspose2d` with zero padding, without dilation; another class, such as an
            adapter, is called as it is.
        x: its input.
    """
    plain: Any = module
    if type(module) not in (nn.Conv2d, nn.ConvTranspose2d) or torch.compiler.is_exporting():
        return plain(x)
    if not torch.compiler.is_compiling():
        return plain(x)
    tensors = [None if each is None else to_autocast(each) for each in (x, plain.weight, plain.bias)]
    options = list(plain.stride), list(plain.padding), type(module) is nn.ConvTranspose2d, plain.groups
    return _convolution(*tensors, *options).permute(0, 3, 1, 2)
