"""How new parameters get their values.

A module names its own initialiser with `with_init`, and `RFDETRPreTrainedModel._init_weights` calls it. All writes go
through `transformers.initialization`, which leaves parameters alone that were read from a checkpoint: a model whose
class heads are missing from the file gets exactly these heads new.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import initialization as init

PRIOR_PROBABILITY = 0.01

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def with_init(module: ModuleT, initializer: Callable[..., None], **options: Any) -> ModuleT:
    """Give `module` the function that initialises its own parameters: `initializer(module, **options)`."""
    # A partial of a named function: the model can be pickled.
    cast(Any, module).initializer = partial(initializer, **options)
    return module


def init_norm(module: Any) -> None:
    """Weight 1, bias 0."""
    init.ones_(module.weight)
    init.zeros_(module.bias)


def init_torch_default(module: Any) -> None:
    """Uniform in +-1/sqrt(fan_in) for weight and bias, as torch initialises linear and convolution layers."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        _init_default_bias(module)


def init_xavier(module: nn.Linear) -> None:
    """Xavier-uniform weight and torch's default bias."""
    init.xavier_uniform_(module.weight)
    _init_default_bias(module)


def init_xavier_zero_bias(module: nn.Linear) -> None:
    """Xavier-uniform weight, bias 0."""
    init.xavier_uniform_(module.weight)
    init.zeros_(module.bias)


def init_zeros(module: nn.Module) -> None:
    """All parameters of the module itself 0."""
    for parameter in module.parameters(recurse=False):
        init.zeros_(parameter)


def init_standard_normal(module: nn.Embedding) -> None:
    """Weight from N(0, 1)."""
    init.normal_(module.weight)


def init_class_head(module: nn.Linear) -> None:
    """Torch's default weight; the bias gives every class the prior probability 0.01, so that the loss starts small."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    init.constant_(module.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))


def init_vit(module: Any, std: float) -> None:
    """Normal weight with `std` (cut at +-2), bias 0."""
    init.trunc_normal_(module.weight, std=std)
    init.zeros_(module.bias)


def init_sampling_offsets(module: nn.Linear, heads: int, levels: int, points: int) -> None:
    """Weight 0; the bias sends head k in the direction 2 pi k / heads, its points 1, 2, ... steps away, per level."""
    angles = torch.arange(heads, dtype=torch.float32, device=module.bias.device) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1, dtype=torch.float32, device=module.bias.device)
    offsets = directions[:, None, None] * steps[None, None, :, None]
    init.zeros_(module.weight)
    init.copy_(module.bias, offsets.expand(-1, levels, -1, -1).reshape(-1))


def _init_default_bias(module: Any) -> None:
    fan_in, _ = nn.init._calculate_fan_in_and_fan_out(module.weight)
    bound = 1 / math.sqrt(fan_in)
    init.uniform_(module.bias, -bound, bound)
