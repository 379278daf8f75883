"""Low-rank adapters in a model: which it has, and its weights without them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

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
