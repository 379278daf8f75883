"""Which names are fields of a configuration: in a call all must be, in a file others may be there."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

from transformers import PreTrainedConfig

# Fields under the names of the official package.
_OFFICIAL_WORDS = {
    "num_classes": "num_labels", "hidden_dim": "d_model", "dec_layers": "decoder_layers",
    "dec_n_points": "decoder_n_points", "sa_nheads": "decoder_self_attention_heads",
    "ca_nheads": "decoder_cross_attention_heads", "dim_feedforward": "decoder_ffn_dim",
    "projector_scale": "projector_scales", "out_feature_indexes": "out_indices", "drop_path": "drop_path_rate",
}  # fmt: skip
# Beside its fields, what transformers takes out of the arguments of a configuration.
_OF_TRANSFORMERS = {
    "num_labels", "torch_dtype", "name_or_path", "_name_or_path", "_commit_hash", "output_attentions",
    "attn_implementation", "_attn_implementation", "experts_implementation",
}  # fmt: skip
# What decides what the tensors are and what is computed with them, of the detector and of the encoder.
_STRUCTURE = (
    "projector_scales", "c2f_num_blocks", "layer_norm_eps", "d_model", "decoder_layers",
    "decoder_self_attention_heads", "decoder_cross_attention_heads", "decoder_n_points", "decoder_ffn_dim",
    "num_queries", "group_detr", "mask_downsample_ratio", "num_keypoints_per_class",
)  # fmt: skip
_STRUCTURE_OF_ENCODER = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size",
    "num_channels", "num_windows", "out_indices", "layer_norm_eps",
)  # fmt: skip
STORED = "_stored"
"""The argument that marks the fields of a file."""


def structure_of(config: Any) -> dict[str, Any]:
    """The values of a configuration that a model cannot change once it is made."""
    values = {name: getattr(config, name) for name in _STRUCTURE}
    values |= {f"backbone_config.{name}": getattr(config.backbone_config, name) for name in _STRUCTURE_OF_ENCODER}
    return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in values.items()}


def require_structure(made: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Compare what `structure_of` gave with what it gives now.

    Raises:
        ValueError: naming `what` was made otherwise, and the fields.
    """
    changed = [f"{name} {value} -> {now[name]}" for name, value in made.items() if now[name] != value]
    if changed:
        raise ValueError(f"{what} with another structure ({', '.join(changed)}): its weights are not for this one")


def hint_of(name: str, known: Collection[str], owner: type) -> str:
    """What may be meant by a name that is none of the known ones."""
    name = _OFFICIAL_WORDS.get(name, name)
    near = [name] if name in known else difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"see the attributes of {owner.__name__}"


class LenientConfig(PreTrainedConfig):
    """A configuration whose file may hold fields that nobody here knows; a call may not.

    Attributes:
        implied_fields: Names beside the fields that a call may give as long as they say the same.
    """

    implied_fields: ClassVar[Any] = set()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration from the content of a `config.json`; fields without a meaning here are kept.

        Raises:
            TypeError: an argument is no field, and nearly one.
            ValueError: fields do not fit together.
        """
        known = {*cls.__dataclass_fields__, *_OF_TRANSFORMERS}
        own = {name: kwargs.pop(name) for name in {*cls.__dataclass_fields__, "num_labels"} & {*kwargs} - {"dtype"}}
        for name in () if kwargs.get("return_unused_kwargs") else kwargs.keys() - known:
            if difflib.get_close_matches(name, known, n=1):
                raise TypeError(f"unknown argument {name!r}: {hint_of(name, known, cls)}")
        if own:
            made = super().from_dict({**config_dict, STORED: True})
            config_dict = {**config_dict, **made.with_fields(**own).to_dict()}
        return super().from_dict({**config_dict, STORED: True}, **kwargs)

    def with_fields(self, **overrides: Any) -> Any:
        """This configuration with some fields changed."""
        return type(self)(**{**self.to_dict(), **overrides, STORED: True})

    @classmethod
    def require_known(cls, names: Iterable[str], error: type = ValueError) -> None:
        """Refuse names that are no field, with an error of the type `error` that says what may be meant."""
        known = {*cls.__dataclass_fields__, *_OF_TRANSFORMERS, *cls.implied_fields}
        unknown = sorted(set(names) - known)
        if not unknown:
            return
        hint = hint_of(unknown[0], known, cls)
        for other in LenientConfig.__subclasses__():
            if unknown[0] in {*other.__dataclass_fields__} - known:
                hint = f"{unknown[0]} is a field of {other.__name__}"
        raise error(f"unknown fields {unknown} of {cls.__name__}: {hint}")
