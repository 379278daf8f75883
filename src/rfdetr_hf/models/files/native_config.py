"""`config.json` files that plain transformers wrote."""

from typing import Any

# What plain transformers takes for a field that is missing in the file.
_PLAIN_DEFAULTS = {"layer_norm_eps": 1e-5, "decoder_n_points": 4, "decoder_layers": 3}
_PLAIN_BACKBONE_DEFAULTS = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 14,
    "num_windows": 4,
}
_REQUIRED_FIELDS = ("model_type", "backbone_config")


def complete_plain_config(fields: dict[str, Any], origin: str) -> dict[str, Any]:
    """The fields of a `config.json`, completed if plain transformers wrote it.

    Its defaults stand for missing fields, so that the same file means the same model to both readers. One value is
    overruled: `dropout`, which transformers writes as 0.1 for models that were trained without any. It acts in
    training alone.

    Raises:
        ValueError: if the file does not describe a model at all.
    """
    missing = [name for name in _REQUIRED_FIELDS if not fields.get(name)]
    if missing:
        raise ValueError(f"{origin}: config.json has no field {missing[0]!r}: it is incomplete or of another kind.")
    if "projector_scales" in fields:
        return fields
    fields = {**_PLAIN_DEFAULTS, **fields, "dropout": 0.0}
    fields["backbone_config"] = {**_PLAIN_BACKBONE_DEFAULTS, **fields["backbone_config"]}
    if not any("Segmentation" in name for name in fields.get("architectures") or ()):
        fields.pop("intermediate_size", None)
    return fields
