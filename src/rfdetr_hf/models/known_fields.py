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
STORED = "_stored"
"""The argument that marks the fields of a file."""


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

        Arguments that are fields take the place of those of the file, see `with_fields`.

        Raises:
            TypeError: an argument is no field, and nearly one.
            ValueError: fields do not fit together.
        """
        own = {*cls.__dataclass_fields__, "num_labels"} & {*kwargs} - {"dtype"}
        given = {name: kwargs.pop(name) for name in sorted(own)}
        known = {*cls.__dataclass_fields__, *_OF_TRANSFORMERS}
        for name in () if kwargs.get("return_unused_kwargs") else kwargs.keys() - known:
            if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                raise TypeError(f"unknown argument {name!r}: did you mean {near[0]!r}?")
        if given:
            made = super().from_dict({**config_dict, STORED: True})
            config_dict = {**config_dict, **made.with_fields(**given).to_dict()}
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
