"""Read a model folder or Hub repository, and fit what it holds to the configuration that is asked for."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from ..configuration_rfdetr import RFDETRConfig
from .adapt import adapt_state_dict, log_adaptations, require_model, require_task
from .layouts import dinov2_to_encoder, official_keys

if TYPE_CHECKING:
    from ..modeling_rfdetr import RFDETRPreTrainedModel

logger = logging.getLogger("rfdetr_hf")

HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_state(source: str | Path, names_only: bool = False, **hub_options: Any) -> dict[str, Tensor]:
    """The tensors of a folder or Hub repository, from `model.safetensors` or its shards.

    Args:
        source: Folder or Hub id.
        names_only: Read the files' headers alone; the tensors are on the device "meta", without sizes.
        hub_options: Of `cached_file`.

    Raises:
        FileNotFoundError: if neither is there.
        ValueError: if a file cannot be read.
    """
    if Path(source).is_file():
        raise ValueError(f"{source} is a file: give the folder that holds {_WEIGHTS} and config.json.")
    try:
        files = [cached_file(source, _WEIGHTS, **hub_options)]
    except OSError as error:
        try:
            index = cached_file(source, _INDEX, **hub_options)
        except OSError:
            raise FileNotFoundError(
                f"{source} has neither {_WEIGHTS} nor {_INDEX}. Files of the official package (.pth, .ckpt) are read "
                f"by from_official. ({error})"
            ) from error
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        files = [cached_file(source, name, **hub_options) for name in sorted(set(shards))]
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if names_only:
                with safe_open(file, "pt") as header:
                    state.update(dict.fromkeys(header.keys(), torch.empty(0, device="meta")))
            else:
                state.update(load_file(file))
        except SafetensorError as error:
            raise ValueError(f"{file} is no complete safetensors file ({error}): download or save it again.") from error
    return state


def override_config(config: RFDETRConfig, overrides: Mapping[str, Any]) -> RFDETRConfig:
    """`config` with some fields changed.

    A dict `backbone_config` is merged. Where the position table fits the resolution, a new `resolution` brings a
    table of its own size, unless `backbone_config` gives an `image_size`. `id2label` implies `label2id`.

    Raises:
        ValueError: for a name that is no field, or fields that do not fit together.
    """
    _, unknown = split_overrides(overrides)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no fields of RFDETRConfig: see its attributes.")
    fields = config.to_dict()
    fields.pop("num_feature_levels", None)
    overrides = dict(overrides)
    encoder = overrides.pop("backbone_config", None) or {}
    encoder = dict(encoder) if isinstance(encoder, Mapping) else encoder.to_dict()
    if config.backbone_config.image_size == config.resolution and "resolution" in overrides:
        encoder.setdefault("image_size", overrides["resolution"])
    merged = {**fields["backbone_config"], **encoder}
    if "out_indices" in encoder:
        merged = {name: merged[name] for name in merged if name not in ("out_features", "window_block_indexes")}
    if "id2label" in overrides:
        overrides["id2label"] = {int(key): name for key, name in overrides["id2label"].items()}
        overrides.setdefault("label2id", {name: key for key, name in overrides["id2label"].items()})
    elif overrides.get("num_labels", config.num_labels) != config.num_labels:
        fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
    fields |= {**overrides, "backbone_config": merged, "model_type": RFDETRConfig.model_type}
    return RFDETRConfig(**fields)


def split_overrides(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into fields of the configuration and the rest."""
    known = {*RFDETRConfig.__dataclass_fields__, "num_labels"} - {"dtype", "name_or_path", "transformers_version"}
    fields = {name: value for name, value in options.items() if name in known}
    return fields, {name: value for name, value in options.items() if name not in fields}


def load_adapted(
    model_class: type["RFDETRPreTrainedModel"],
    state: Mapping[str, Tensor],
    names: Mapping[int, str],
    config: RFDETRConfig,
    origin: str,
    class_init: str,
) -> dict[str, Tensor]:
    """The tensors of `state` fitted to a model of `config`; what was changed is logged."""
    require_model(state, origin)
    require_task(state, model_class, origin)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    adapted, done = adapt_state_dict(state, names, config, expected, origin, class_init)
    log_adaptations(origin, done)
    return adapted


def load_pretrained(
    model_class: type["RFDETRPreTrainedModel"], source: str | Path, class_init: str, options: dict[str, Any]
) -> tuple[RFDETRConfig, dict[str, Tensor], dict[str, Any]]:
    """What `from_pretrained` needs: configuration, fitted tensors, and the options that are left for transformers.

    Args:
        model_class: The class to load.
        source: Folder or Hub id.
        class_init: See `adapt_state_dict`.
        options: Keyword arguments of the call: `config`, Hub options, fields of the configuration, others.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    given, origin = options.pop("config", None), str(source)
    stored = RFDETRConfig.from_pretrained(source, **hub)
    overrides, options = split_overrides(options)
    if given is not None and not isinstance(given, RFDETRConfig):
        given = RFDETRConfig.from_pretrained(given, **hub)
    config = override_config(given or stored, overrides) if overrides else given or stored
    state = official_keys(read_state(source, **hub))
    return config, load_adapted(model_class, state, stored.id2label, config, origin, class_init), options


def load_dinov2(model: "RFDETRPreTrainedModel", source: str | Path, **hub_options: Any) -> None:
    """Put the weights of a DINOv2 checkpoint of transformers, with registers or without, into the encoder.

    Raises:
        ValueError: if width or number of blocks differ, naming both sides, or the checkpoint is no DINOv2.
    """
    config, vit = model.config.backbone_config, model.backbone[0].vit
    found = dinov2_to_encoder(read_state(source, **hub_options), config.patch_size, config.position_grid)
    expected = {f"backbone.0.encoder.encoder.{name}": tuple(t.shape) for name, t in vit.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != expected:
        raise ValueError(
            f"{source} does not fit the encoder. Here: {_encoder_facts(expected)}. There: {_encoder_facts(shapes)}."
        )
    with torch.no_grad():
        for name, parameter in vit.state_dict(keep_vars=True).items():
            parameter.copy_(found[f"backbone.0.encoder.encoder.{name}"])
    logger.info("the encoder starts from %s, patches and positions resampled as needed", source)


def _encoder_facts(shapes: Mapping[str, tuple[int, ...]]) -> str:
    blocks = sum(name.endswith(".norm1.weight") for name in shapes)
    norm = shapes.get("backbone.0.encoder.encoder.layernorm.weight")
    mlp = "a GELU MLP" if any(name.endswith("mlp.fc1.weight") for name in shapes) else "no GELU MLP"
    return f"{blocks} blocks of width {norm[0]} with {mlp}" if norm else "no DINOv2 encoder"
