"""Low-rank adapters (LoRA, DoRA) of a model: to add and to merge them, which it has, and its weights without them."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..choices import install_hint

ADAPTER = "default"
BASE, LORA = ".base_layer.", ".lora_"


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name.

    Raises:
        ValueError: an adapter is none that `plain_state` knows how to merge.
    """
    wrapped = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") or hasattr(module, "modules_to_save")
    }
    for name, module in wrapped.items():
        why = _why_unknown(module)
        if why:
            raise ValueError(
                f"the adapter of {name} {why}: one active LoRA or DoRA adapter per linear layer is supported, as "
                "add_lora makes it; merge others with peft's merge_and_unload first"
            )
    return wrapped


def _why_unknown(module: Any) -> str:
    names = list(getattr(module, "lora_A", ()))
    if not names or not isinstance(module.get_base_layer(), nn.Linear):
        return f"is a {type(module).__module__.rpartition('.')[0]}.{type(module).__name__}"
    if len(names) > 1:
        return f"is one of several ({', '.join(names)})"
    if module.merged or module.disable_adapters:
        return "is merged into the layer already" if module.merged else "is disabled"
    known = {f"lora_{field}.{names[0]}.weight" for field in ("A", "B", "magnitude_vector")}
    others = sorted({key for key in module.state_dict() if not key.startswith(BASE[1:])} - known)
    return f"has {others[0]}" if others else ""


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters that nothing merged.

    Raises:
        ValueError: as `adapted_layers`.
    """
    return bool(adapted_layers(model))


def plain_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of one without: names of the layout, adapters merged.

    Args:
        model: has name and scale of each adapter.
        state: all tensors of the model by name, unsharded; they are not changed.
    """
    layers = adapted_layers(model)
    plain = {}
    for name, tensor in state.items():
        layer, _, field = name.partition(BASE)
        if field == "weight":
            plain[f"{layer}.weight"] = _merged(layer, state, layers[layer].scaling)
        elif field or LORA not in name:
            plain[f"{layer}.{field}" if field else name] = tensor
    return plain


def _merged(layer: str, state: Mapping[str, Tensor], scaling: Mapping[str, float]) -> Tensor:
    ((adapter, scale),) = scaling.items()
    weight = state[f"{layer}{BASE}weight"]
    down, up = (state[f"{layer}{LORA}{letter}.{adapter}.weight"] for letter in "AB")
    merged = weight.float() + scale * (up.float() @ down.float())
    magnitude = state.get(f"{layer}{LORA}magnitude_vector.{adapter}.weight")
    if magnitude is not None:
        merged = merged * (magnitude.float() / merged.norm(dim=1))[:, None]
    return merged.to(weight.dtype)


def adapter_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a plain state does not have: adapters, and the layers below them as they were."""
    return {name: tensor for name, tensor in state.items() if BASE in name or LORA in name}


def unmerged_state(plain: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `plain_state`, given what `adapter_state` kept."""
    merged = {name.replace(BASE, ".") for name in adapters}
    return {name: tensor for name, tensor in plain.items() if name not in merged} | dict(adapters)


def add_lora(
    model: PreTrainedModel,
    rank: int = 16,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Sequence[str] = ("query", "key", "value"),
    use_dora: bool = False,
    first_block: int = 0,
) -> None:
    """Freeze the encoder and give linear layers of its blocks low-rank adapters, which are trained in its place.

    An adapted layer computes `W x + b + alpha / rank * B A x` (LoRA, arXiv:2106.09685). DoRA (arXiv:2402.09353) scales
    the rows of `W + alpha / rank * B A` to a learned norm as well. Both start as the layer was.

    Args:
        model: is changed in place; projector, decoder and heads stay as they are.
        rank: inner dimension of the adapters.
        alpha: see the formula.
        dropout: rate in front of the adapters.
        target_modules: out of query, key, value, dense, fc1, fc2.
        use_dora: DoRA instead of LoRA.
        first_block: blocks before it get no adapters.

    Raises:
        ImportError: without peft.
        ValueError: for layers or blocks that the encoder does not have, or a model with adapters.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"adapters need peft; {install_hint('lora')}") from error
    if has_adapters(model):
        raise ValueError("the model has adapters already; merge them first with merge_adapters")
    vit: Any = model.get_submodule("backbone.0").vit
    # Blocks after the last tap never run: adapters in them would wait for gradients in vain.
    if not 0 <= first_block < vit.taps[-1]:
        raise ValueError(f"blocks from {first_block} on: the encoder uses {vit.taps[-1]}, so none is left for adapters")
    blocks = nn.ModuleList(vit.layers[first_block : vit.taps[-1]])
    known = {name.rsplit(".", 1)[-1] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    if not target_modules or set(target_modules) - known:
        raise ValueError(f"target modules {sorted(target_modules)}: choose among {', '.join(sorted(known))}")
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "use_dora": use_dora}
    config = peft.LoraConfig(target_modules=list(target_modules), **options)
    cast(Any, model).freeze_backbone()
    peft.inject_adapter_in_model(config, blocks, ADAPTER)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Put the adapters into the weights and the plain layers back in place. Without adapters nothing happens.

    Raises:
        ValueError: an adapter is no LoRA or DoRA adapter of a linear layer, or not the only one there.
    """
    adapted = adapted_layers(model)
    plain = plain_state(model, model.state_dict()) if adapted else {}
    for name, module in adapted.items():
        layer = module.get_base_layer()
        layer.weight.copy_(plain[f"{name}.weight"])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
