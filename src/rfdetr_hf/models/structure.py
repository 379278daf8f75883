"""What a model was made with, and whether its configuration and modules still say so when it is written."""

from collections.abc import Collection, Mapping
from typing import Any

# What the names and shapes of the tensors show, and what shows in nothing but the values that are computed.
_IN_TENSORS = (
    "projector_scales", "c2f_num_blocks", "d_model", "decoder_layers", "decoder_ffn_dim", "num_queries", "group_detr",
    "num_keypoints_per_class", "backbone_config.hidden_size", "backbone_config.num_hidden_layers",
    "backbone_config.mlp_ratio", "backbone_config.image_size", "backbone_config.patch_size",
    "backbone_config.num_channels",
)  # fmt: skip
_IN_VALUES = (
    "layer_norm_eps", "decoder_self_attention_heads", "decoder_cross_attention_heads", "decoder_n_points",
    "backbone_config.num_attention_heads", "backbone_config.num_windows", "backbone_config.out_indices",
    "backbone_config.layer_norm_eps",
)  # fmt: skip


def structure_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration that a model cannot change once it is made, those of the encoder too."""
    values = {}
    for name in (*_IN_TENSORS, *_IN_VALUES):
        value = getattr(config.backbone_config if "." in name else config, name.rpartition(".")[2])
        values[name] = list(value) if isinstance(value, (list, tuple)) else value
    return values


def changes_of(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields that `structure_of` gave with other values, as "name before -> now"."""
    return [f"{name} {value} -> {now[name]}" for name, value in made.items() if now[name] != value]


def require_own_config(
    made: Mapping[str, Any], config: Any, shapes: Mapping[str, Any], needed: Mapping[str, Any], origin: str
) -> None:
    """Refuse a configuration that was edited after the model was made, and is not the model's any more.

    Modules that were changed along with it are fine where their tensors show it.

    Args:
        made: What `structure_of` gave at construction.
        config: As it is to be written.
        shapes: Of the model's tensors by name.
        needed: Of those of a model that is made with `config`.
        origin: What is written, for messages.

    Raises:
        ValueError: naming the fields.
    """
    now = structure_of(config)
    changed = changes_of(made, now)
    if changed and (shapes != needed or any(made[name] != now[name] for name in _IN_VALUES)):
        raise ValueError(
            f"{origin}: its configuration was changed after the model was made ({', '.join(changed)}), and the modules "
            "are still as before: set the fields back, or make the model with them, "
            "from_pretrained(…, the fields)"
        )


def replaced(missing: Collection[str], unexpected: Collection[str]) -> bool:
    """Whether for every missing tensor there are others in its module: it is wrapped, parametrised or quantised."""
    return all(any(other.startswith(name.rpartition(".")[0] + ".") for other in unexpected) for name in missing)
