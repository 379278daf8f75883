"""Which names are fields of a configuration: in a call all must be, in a file others may be there."""

import difflib
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig

# Fields under the names of the official package.
_OFFICIAL_WORDS = {
    "num_classes": "num_labels", "hidden_dim": "d_model", "dec_layers": "decoder_layers",
    "dec_n_points": "decoder_n_points", "sa_nheads": "decoder_self_attention_heads",
    "ca_nheads": "decoder_cross_attention_heads", "dim_feedforward": "decoder_ffn_dim",
    "projector_scale": "projector_scales", "out_feature_indexes": "out_indices", "drop_path": "drop_path_rate",
}  # fmt: skip
# Beside its fields, what transformers takes out of the arguments of a configuration.
OF_TRANSFORMERS = {
    "num_labels", "torch_dtype", "name_or_path", "_name_or_path", "_commit_hash", "output_attentions",
    "attn_implementation", "_attn_implementation", "experts_implementation",
}  # fmt: skip
STORED = "_stored"
"""The argument that marks the fields of a file."""


def require_known(names: Iterable[str], known: set[str], others: set[str], owner: str, error: type) -> None:
    """Refuse names that are no field of a configuration.

    Args:
        names: Given in a call.
        known: All that may be given.
        others: Fields of the configuration beside or above.
        owner: "RFDETRConfig" or "backbone_config".
        error: The type of the error.
    """
    unknown = sorted(set(names) - known)
    if not unknown:
        return
    name = _OFFICIAL_WORDS.get(unknown[0], unknown[0])
    near = [name] if name in known else difflib.get_close_matches(name, sorted(known), n=1)
    where = "backbone_config" if owner == "RFDETRConfig" else "RFDETRConfig"
    hint = f"it is a field of {where}" if name in others - known else f"see the attributes of {owner}"
    raise error(f"unknown fields {unknown} of {owner}: {f'did you mean {near[0]!r}?' if near else hint}")


class ReadLeniently(PreTrainedConfig):
    """A stored configuration may hold fields that nobody here knows; a call may not."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration from the content of a `config.json`; fields without a meaning here are kept."""
        return super().from_dict({**config_dict, STORED: True}, **kwargs)
