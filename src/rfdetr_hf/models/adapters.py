"""The weights of a model with low-rank adapters as those of one without."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

ADAPTER = "default"
# Parts of the names that peft gives the tensors of an adapted layer.
BASE, LORA = ".base_layer.", ".lora_"


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with adapters by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_lora` changed this model and nothing merged the adapters."""
    return bool(adapted_layers(model))


def plain_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with adapters as those of one without: names of the layout, adapters merged.

    Args:
        model: has the scale of each adapter.
        state: all tensors of the model by name, unsharded; they are not changed.
    """
    scales = {name: module.scaling[ADAPTER] for name, module in adapted_layers(model).items()}
    plain = {}
    for name, tensor in state.items():
        layer, _, field = name.partition(BASE)
        if field == "weight":
            plain[f"{layer}.weight"] = _merged(layer, state, scales[layer])
        elif field or LORA not in name:
            plain[f"{layer}.{field}" if field else name] = tensor
    return plain


def _merged(layer: str, state: Mapping[str, Tensor], scale: float) -> Tensor:
    weight = state[f"{layer}{BASE}weight"]
    down, up = (state[f"{layer}{LORA}{letter}.{ADAPTER}.weight"] for letter in "AB")
    merged = weight.float() + scale * (up.float() @ down.float())
    magnitude = state.get(f"{layer}{LORA}magnitude_vector.{ADAPTER}.weight")
    if magnitude is not None:
        merged = merged * (magnitude.float() / merged.norm(dim=1))[:, None]
    return merged.to(weight.dtype)
