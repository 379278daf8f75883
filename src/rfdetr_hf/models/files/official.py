"""Files of the official package (rfdetr): `.pth`, `.pt` and Lightning `.ckpt`, in and out.

Classes. The official head has a row more than classes. In a fine-tuned model the classes are the rows 0, 1, ... and the
last row is never trained for; in the published COCO weights the row is the category id, 1 to 90, with gaps. Here every
row is a label: the rows stay unchanged, so that logits are equal, and a row without a class is called "N/A".
In older keypoint files row 0 is the background, which has no keypoints, and the names are those of the rows behind it.
"""

import argparse
import logging
import pickle
import re
import struct
import types
from collections.abc import Mapping, Sequence
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..configuration_rfdetr import UNUSED_LABEL, RFDETRConfig
from ..post_processing import TRACE_ALPHA
from .adapt import (
    append_unused_row,
    count_decoder_layers,
    count_encoder_blocks,
    count_groups,
    projector_scales,
    require_model,
    select_class_rows,
    task_of,
)
from .layouts import PATCH_KERNEL, POSITIONS

logger = logging.getLogger(__name__)

# Plain containers that official files are known to hold. Nothing here runs code when it is built.
SAFE_GLOBALS = [
    argparse.Namespace,
    types.SimpleNamespace,
    PosixPath,
    PurePosixPath,
    WindowsPath,
    PureWindowsPath,
]
OWN_KEY = "rfdetr_hf"
# Far below any logit and within float16: the sigmoid is exactly 0.
UNUSED_BIAS = -1e4
# Fields of the official ModelConfig, and the constants beside it that a file may repeat, by what becomes of them.
# Honoured: what leaves no trace in the tensors is read from the file, the rest from the tensors.
READ_FIELDS = {
    "num_windows", "out_feature_indexes", "sa_nheads", "ca_nheads", "resolution", "mask_downsample_ratio",
    "num_keypoints_per_class",
}  # fmt: skip
TENSOR_FIELDS = {
    "encoder", "num_queries", "num_channels", "num_classes", "group_detr", "segmentation_head",
    "use_grouppose_keypoints", "out_channels", "patch_size", "positional_encoding_size", "hidden_dim", "dec_layers",
    "dec_n_points", "projector_scale", "vit_encoder_num_layers", "dim_feedforward",
}  # fmt: skip
# Refused where a file has another value: nothing in the tensors shows it, and the model would give other numbers.
FIXED_FIELDS: dict[str, Any] = {
    "two_stage": True, "bbox_reparam": True, "lite_refpoint_refine": True, "layer_norm": True,
    "keypoint_cross_attn": True, "inter_instance_kp_attn": False, "grouppose_keypoint_dim_downscale": 1,
    "num_decoder_registers": 0, "backbone_lora": False, "position_embedding": "sine", "decoder_norm": "LN",
    "use_cls_token": False, "rms_norm": False, "encoder_only": False, "backbone_only": False,
}  # fmt: skip
# Options of post-processing here: named in the log where a file has another value.
OPTION_FIELDS = {"num_select": "top_k", "postprocess_trace_alpha": "trace_alpha"}
# Without effect on what the model gives: training, devices and names.
IGNORED_FIELDS = {
    "amp", "pretrain_weights", "device", "gradient_checkpointing", "compile", "cuda_graphs", "fused_optimizer",
    "ia_bce_loss", "freeze_encoder", "license", "model_name",
}  # fmt: skip
# What the projector needs beside a keypoint head, and blocks with windows other than those that the taps imply.
_BY_RULE = {"dual_projector", "dual_projector_kp_only", "window_block_indexes"}
# In the settings of older files beside other taps; the official package never used it from there.
_UNUSED_WINDOWS = [0, 1, 3, 4, 6, 7, 9, 10]
_KNOWN_FIELDS = {*READ_FIELDS, *TENSOR_FIELDS, *FIXED_FIELDS, *OPTION_FIELDS, *IGNORED_FIELDS, *_BY_RULE, "class_names"}
# Fields of the configuration in messages about a file that calls them so.
_OFFICIAL_NAMES = {
    "decoder_self_attention_heads": "sa_nheads", "decoder_cross_attention_heads": "ca_nheads", "d_model": "hidden_dim",
    "out_indices": "out_feature_indexes",
}  # fmt: skip
_REMEDY = "Put its settings right in what torch.load gives of the file, and give from_official the dictionary."
# What torch.load raises for files that are cut off or changed.
_DAMAGED = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error)
_ZIP, _PICKLE, _LFS = b"PK\x03\x04", b"\x80", b"version https://git-lfs"
# The keypoints of COCO's persons, the one class of the published keypoint models.
_PERSON_KEYPOINTS = 17
# Names of the categories 1 to 90 of COCO; 0 and the ids that are missing here have no category.
_COCO = (
    "1 person,2 bicycle,3 car,4 motorcycle,5 airplane,6 bus,7 train,8 truck,9 boat,10 traffic light,11 fire hydrant,"
    "13 stop sign,14 parking meter,15 bench,16 bird,17 cat,18 dog,19 horse,20 sheep,21 cow,22 elephant,23 bear,"
    "24 zebra,25 giraffe,27 backpack,28 umbrella,31 handbag,32 tie,33 suitcase,34 frisbee,35 skis,36 snowboard,"
    "37 sports ball,38 kite,39 baseball bat,40 baseball glove,41 skateboard,42 surfboard,43 tennis racket,44 bottle,"
    "46 wine glass,47 cup,48 fork,49 knife,50 spoon,51 bowl,52 banana,53 apple,54 sandwich,55 orange,56 broccoli,"
    "57 carrot,58 hot dog,59 pizza,60 donut,61 cake,62 chair,63 couch,64 potted plant,65 bed,67 dining table,"
    "70 toilet,72 tv,73 laptop,74 mouse,75 remote,76 keyboard,77 cell phone,78 microwave,79 oven,80 toaster,81 sink,"
    "82 refrigerator,84 book,85 clock,86 vase,87 scissors,88 teddy bear,89 hair drier,90 toothbrush"
)
COCO_LABELS = {int(item.split(" ", 1)[0]): item.split(" ", 1)[1] for item in _COCO.split(",")}


class OfficialCheckpoint(NamedTuple):
    """What a file of the official package holds.

    Attributes:
        state: Tensors under their official names.
        fields: What the file says about model and training, from `args`, `hyper_parameters` and `model_config`.
        model_name: Name of the official model class, if the file has it.
        config: Our own configuration, if `save_official` wrote the file.
        origin: The file's name, for messages.
    """

    state: dict[str, Tensor]
    fields: dict[str, Any]
    model_name: str | None
    config: dict[str, Any] | None
    origin: str


def read_official(
    source: "str | Path | Mapping[str, Any] | OfficialCheckpoint", use_ema: bool = False
) -> OfficialCheckpoint:
    """Read a checkpoint of the official package. Nothing in the file is executed.

    Args:
        source: A `.pth`, `.pt` or `.ckpt` file, or the dictionary that such a file holds, or what was read of it.
        use_ema: Take the EMA weights that the file holds beside the others.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unsafe or damaged file, an unknown layout, or no EMA weights where they are asked for.
    """
    if isinstance(source, OfficialCheckpoint):
        return source
    origin = "the dictionary" if isinstance(source, Mapping) else str(source)
    payload = source if isinstance(source, Mapping) else _load_safely(Path(source))
    if not isinstance(payload, Mapping):
        raise ValueError(f"{origin} holds a {type(payload).__name__}, not a dictionary with the entry 'model'.")
    config = _as_fields(_as_fields(payload, OWN_KEY, origin), "config", origin) or None
    fields, described = _all_fields(payload, origin), _as_fields(payload, "model_config", origin)
    if unknown := sorted(set(described) - _KNOWN_FIELDS):
        logger.warning(
            "%s: model_config has the fields %s, which this package does not know: if one of them changes the network, "
            "its outputs are others here; compare them with the official package's",
            origin, ", ".join(f"{name}={described[name]!r:.40}" for name in unknown[:5]),
        )  # fmt: skip
    state = _averaged_state(payload, origin) if use_ema else _regular_state(payload, origin)
    if any(name.startswith("backbone.0.encoder.base_model.") for name in state):
        raise ValueError(f"{origin} was written by a LoRA run: merge the adapters with the official package first.")
    require_model(state, origin)
    return OfficialCheckpoint(state, fields, payload.get("model_name"), config, origin)


def _load_safely(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}.")
    if other := _other_kind(path):
        raise ValueError(f"{path} is {other}, and no file of torch.save: get the checkpoint itself.")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported operand" in str(error):
            raise ValueError(f"{path} is no complete torch file ({_first_line(error)}): get it again.") from error
        unsafe = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class)[: ]+(\S+)", str(error))
        reason = f"it would import {unsafe[1] or unsafe[2]}" if unsafe else _first_line(error)
        raise ValueError(
            f"{path} is not loaded, because it holds more than tensors and plain values: {reason}. Such a file can run "
            "any code. If you trust its source, load it there and save its 'model' and 'args' as plain values."
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"{path} is no complete torch file ({_first_line(error)}): get it again.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _other_kind(path: Path) -> str | None:
    """What a file that does not start like those of torch seems to be."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.startswith((_ZIP, _PICKLE)):
        return None
    if start.startswith(_LFS):
        return "a pointer of Git LFS (git lfs pull brings the file)"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page"
    if start[8:9] == b"{":
        return "a safetensors file, which from_pretrained reads as model.safetensors of a folder with its config.json"
    if b"\0" not in start and start.isascii():
        return f"a text that starts with {start[:30].decode().splitlines()[0]!r}"
    return "of an unknown kind"


def _as_fields(payload: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    """An entry that is a dictionary, an object with attributes, or not there."""
    entry = payload.get(name)
    if not isinstance(entry, Mapping) and entry is not None and not hasattr(entry, "__dict__"):
        raise ValueError(f"{origin}: {name} is a {type(entry).__name__}, where a mapping of names to values is due.")
    return dict(entry) if isinstance(entry, Mapping) else dict(vars(entry)) if entry is not None else {}


def _all_fields(payload: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What a file says of its model, in up to three places; None stands for a field that is not there."""
    fields: dict[str, Any] = {}
    for place in ("hyper_parameters", "args", "model_config"):
        said = {name: value for name, value in _as_fields(payload, place, origin).items() if value is not None}
        for name in sorted(fields.keys() & said.keys() & (READ_FIELDS | FIXED_FIELDS.keys())):
            one, other = ([*value] if isinstance(value, tuple) else value for value in (fields[name], said[name]))
            if one != other:
                logger.warning("%s says %s=%.60r and, in %s, %.60r: the latter counts", origin, name, one, place, other)
        fields |= said
    return fields


def _regular_state(payload: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    if isinstance(payload.get("model"), Mapping):
        return _clean(payload["model"])
    lightning = payload.get("state_dict")
    if isinstance(lightning, Mapping):
        state = _clean({name: tensor for name, tensor in lightning.items() if name.startswith("model.")})
        if state:
            return state
    raise ValueError(
        f"{origin} has the entries {sorted(map(str, payload))[:8]}: neither 'model' nor a 'state_dict' with names that "
        "start with 'model.'. Is it a checkpoint of rfdetr?"
    )


def _averaged_state(payload: Mapping[str, Any], origin: str) -> dict[str, Tensor]:
    for key in ("ema_model", "legacy_ema_state_dict"):
        if isinstance(payload.get(key), Mapping):
            return _clean(payload[key])
    for callback in _as_fields(payload, "callbacks", origin).values():
        averaged = callback.get("average_model_state_dict") if isinstance(callback, Mapping) else None
        if isinstance(averaged, Mapping) and averaged:
            return _clean({name: tensor for name, tensor in averaged.items() if name.startswith("module.")})
    raise ValueError(
        f"{origin} holds no EMA weights beside its weights: use use_ema=False. (checkpoint_best_ema.pth holds "
        "EMA weights as its only ones.)"
    )


def _clean(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors alone, without the prefixes of wrappers and without the states of float8 kernels."""
    cleaned = {}
    for name, tensor in zip(map(str, state), state.values(), strict=True):
        while (short := re.sub(r"^(module|model|_orig_mod)\.", "", name)) != name:
            name = short
        if isinstance(tensor, Tensor) and not name.endswith("_extra_state"):
            cleaned[name] = tensor
    return cleaned


def official_config(checkpoint: OfficialCheckpoint, variant: str | None = None) -> RFDETRConfig:
    """The configuration of the model in an official file, without any adaptation.

    Sizes are taken from the tensors; what leaves no trace in them (windows, heads, taps, resolution) from the
    settings in the file, and what is missing there from the published variant that fits.

    Raises:
        ValueError: if no variant, or more than one, fits and `variant` is not given; if it is given for a file that
            `save_official` wrote.
    """
    if checkpoint.config is not None:
        if variant is not None:
            raise ValueError(f"{checkpoint.origin} holds its configuration: leave out variant={variant!r}.")
        own = RFDETRConfig.from_dict({**checkpoint.config, "model_type": RFDETRConfig.model_type})
        _drop_appended_row(checkpoint.state, own.num_labels)
        return own
    _check_fields(checkpoint)
    name = variant or _variant_of(checkpoint)
    base = RFDETRConfig.from_variant(name)
    fields, state = checkpoint.fields, checkpoint.state
    groups, levels = count_groups(state), projector_scales(state)
    heads = fields.get("ca_nheads", base.decoder_cross_attention_heads)
    schema = _keypoint_schema(checkpoint, base) if task_of(state) == "keypoints" else []
    samples = state["transformer.decoder.layers.0.cross_attn.attention_weights.bias"].shape[0]
    overrides = {
        "group_detr": groups,
        "num_queries": state["query_feat.weight"].shape[0] // groups,
        "decoder_layers": count_decoder_layers(state),
        "d_model": state["query_feat.weight"].shape[1],
        "intermediate_size": 4 * state["query_feat.weight"].shape[1],
        "decoder_ffn_dim": state["transformer.decoder.layers.0.linear1.weight"].shape[0],
        "projector_scales": levels,
        "decoder_self_attention_heads": fields.get("sa_nheads", base.decoder_self_attention_heads),
        "decoder_cross_attention_heads": heads,
        "decoder_n_points": samples // (heads * len(levels)),
        "mask_downsample_ratio": fields.get("mask_downsample_ratio", base.mask_downsample_ratio),
        "id2label": official_labels(
            state["class_embed.bias"].shape[0], fields.get("class_names"), schema, checkpoint.origin
        ),
        "backbone_config": _encoder_fields(checkpoint, base),
        "num_keypoints_per_class": schema,
    }
    _name_contradictions(checkpoint, overrides)
    try:
        return base.with_fields(**overrides, resolution=_resolution(checkpoint, base))
    except ValueError as error:
        message = re.sub("|".join(_OFFICIAL_NAMES), lambda found: _OFFICIAL_NAMES[found[0]], str(error))
        raise ValueError(f"{checkpoint.origin}: {message} {_REMEDY}") from error


def _check_kinds(fields: Mapping[str, Any], origin: str) -> None:
    """Refuse what is no number, or no list, where the configuration is made of it."""
    wrong = {}
    for name in ("num_windows", "sa_nheads", "ca_nheads", "mask_downsample_ratio", "resolution"):
        value = fields.get(name, 1)
        if not isinstance(value, int) or value < 1:
            wrong[name] = "a number from 1"
    for name in ("out_feature_indexes", "window_block_indexes", "num_keypoints_per_class"):
        value = fields.get(name, [])
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, int) for item in value):
            wrong[name] = "a list of numbers"
    for name, kind in wrong.items():
        raise ValueError(f"{origin}: its settings have {name}={fields[name]!r:.60}, which must be {kind}. {_REMEDY}")


def _name_contradictions(checkpoint: OfficialCheckpoint, found: Mapping[str, Any]) -> None:
    """Log which settings of the file say other sizes than its tensors, of which `found` was made."""
    encoder, task = found["backbone_config"], task_of(checkpoint.state)
    sizes = {
        "num_queries": found["num_queries"], "group_detr": found["group_detr"], "dec_layers": found["decoder_layers"],
        "hidden_dim": found["d_model"], "dim_feedforward": found["decoder_ffn_dim"],
        "dec_n_points": found["decoder_n_points"], "projector_scale": found["projector_scales"],
        "patch_size": encoder["patch_size"], "num_channels": encoder["num_channels"],
        "positional_encoding_size": encoder["image_size"] // encoder["patch_size"],
        "segmentation_head": task == "segmentation", "use_grouppose_keypoints": task == "keypoints",
    }  # fmt: skip
    said = {name: checkpoint.fields.get(name, size) for name, size in sizes.items()}
    said = {name: [*value] if isinstance(value, tuple) else value for name, value in said.items()}
    others = [name for name, value in said.items() if value != sizes[name]]
    if others:
        logger.warning(
            "%s: its settings and its tensors do not belong together: %s; the tensors count",
            checkpoint.origin, ", ".join(f"{name}={said[name]!r}, tensors {sizes[name]}" for name in others),
        )  # fmt: skip


def _check_fields(checkpoint: OfficialCheckpoint) -> None:
    """Refuse what the file says about its model and this package cannot represent."""
    fields, task = checkpoint.fields, task_of(checkpoint.state)
    _check_kinds(fields, checkpoint.origin)
    fixed = {**FIXED_FIELDS, "dual_projector": task == "keypoints"}
    if task == "keypoints":
        fixed["dual_projector_kp_only"] = True
    for name, value in fixed.items():
        if fields.get(name) is not None and fields[name] != value:
            raise ValueError(
                f"{checkpoint.origin} was made with {name}={fields[name]!r}, and models here have {name}={value!r}: "
                "its outputs would be others. Train it again with that setting, or use it with the official package."
            )
    _check_windows(checkpoint)
    queries = checkpoint.state["query_feat.weight"].shape[0] // count_groups(checkpoint.state)
    if fields.get("num_select") not in (None, queries):
        logger.info("%s: num_select=%s is top_k of post-processing here", checkpoint.origin, fields["num_select"])
    if fields.get("postprocess_trace_alpha") not in (None, TRACE_ALPHA):
        alpha = fields["postprocess_trace_alpha"]
        logger.info("%s: postprocess_trace_alpha=%s is trace_alpha of post-processing here", checkpoint.origin, alpha)


def _check_windows(checkpoint: OfficialCheckpoint) -> None:
    """Refuse attention in other windows than the taps imply: windows leave no trace in the tensors."""
    fields, origin = checkpoint.fields, checkpoint.origin
    encoder, blocks, taps = fields.get("encoder"), fields.get("window_block_indexes"), fields.get("out_feature_indexes")
    words = str(encoder).split("_")
    if encoder is not None and fields.get("num_windows") != 1 and ("windowed" not in words or "registers" in words):
        raise ValueError(
            f"{origin} was made with encoder={encoder!r}, and encoders here attend in windows and have no registers: "
            "its outputs would be others. Use it with the official package; an encoder without windows, and without "
            "registers, is num_windows=1 here."
        )
    if blocks is None or not taps or fields.get("num_windows") == 1:
        return
    implied = [block for block in range(max(taps) + 1) if block not in taps]
    last = count_encoder_blocks(checkpoint.state)
    if {*blocks} & {*range(last)} == {*implied} & {*range(last)}:
        return
    said = f"{origin} was made with window_block_indexes={list(blocks)}, and out_feature_indexes implies {implied}"
    if list(blocks) != _UNUSED_WINDOWS:
        raise ValueError(f"{said}: its outputs would be others. Use it with the official package.")
    logger.warning("%s: these are used, as the official package does when it reads such a file", said)


def _keypoint_schema(checkpoint: OfficialCheckpoint, base: RFDETRConfig) -> list[int]:
    """Keypoints of each class: by the mask of slots in use, which older files do not have."""
    active = checkpoint.state.get("_kp_active_mask")
    if active is not None and active.any():
        return active.sum(1).tolist()
    return list(checkpoint.fields.get("num_keypoints_per_class") or base.num_keypoints_per_class)


def _drop_appended_row(state: dict[str, Tensor], num_labels: int) -> None:
    """Undo what `official_payload` did to the class heads."""
    if state["class_embed.bias"].shape[0] == num_labels + 1:
        select_class_rows(state, range(num_labels))


def _encoder_fields(checkpoint: OfficialCheckpoint, base: RFDETRConfig) -> dict[str, Any]:
    state, fields = checkpoint.state, checkpoint.fields
    kernel, table = state[PATCH_KERNEL], state[POSITIONS]
    taps = fields.get("out_feature_indexes") or base.backbone_config.out_indices
    return {
        "hidden_size": kernel.shape[0],
        "num_attention_heads": kernel.shape[0] // 64,
        "num_channels": kernel.shape[1],
        "patch_size": kernel.shape[-1],
        "num_hidden_layers": count_encoder_blocks(state),
        "image_size": round((table.shape[1] - 1) ** 0.5) * kernel.shape[-1],
        "num_windows": fields.get("num_windows", base.backbone_config.num_windows),
        "out_indices": list(taps),
    }


def _resolution(checkpoint: OfficialCheckpoint, base: RFDETRConfig) -> int:
    """As the file says; else that of the position table where the variant's table fits its resolution."""
    if checkpoint.fields.get("resolution"):
        return int(checkpoint.fields["resolution"])
    if base.backbone_config.image_size != base.resolution:
        return base.resolution
    patch, rows = checkpoint.state[PATCH_KERNEL].shape[-1], checkpoint.state[POSITIONS].shape[1]
    return round((rows - 1) ** 0.5) * patch


def _variant_of(checkpoint: OfficialCheckpoint) -> str:
    """The variant that the file names, or one that fits its tensors."""
    for name, row in RFDETRConfig.variants().items():
        if checkpoint.model_name == row.official_class:
            return name
    fitting = _fitting_variants(checkpoint.state)
    # Variants that fit alike differ in nothing but resolution and windows.
    windows = {RFDETRConfig.from_variant(name).backbone_config.num_windows for name in fitting}
    if not fitting or (len(windows) > 1 and "num_windows" not in checkpoint.fields):
        raise ValueError(
            f"cannot tell which variant {checkpoint.origin} holds (fitting: {', '.join(fitting) or 'none'}): give "
            f"variant=, one of {', '.join(RFDETRConfig.variants())}."
        )
    return fitting[0]


def _fitting_variants(state: Mapping[str, Tensor]) -> list[str]:
    """Variants of the task with the same encoder, patches, widths and levels.

    Of these the ones with as many decoder layers, if there are any, and of these the ones with the same position table.
    """
    width, _, _, patch = state[PATCH_KERNEL].shape
    facts = (width, patch, state["query_feat.weight"].shape[1], projector_scales(state))
    fitting = {}
    for name, variant in RFDETRConfig.variants().items():
        config = RFDETRConfig.from_variant(name)
        encoder = config.backbone_config
        if variant.task == task_of(state) and facts == (
            encoder.hidden_size, encoder.patch_size, config.d_model, config.projector_scales
        ):  # fmt: skip
            fitting[name] = config
    layers, rows = count_decoder_layers(state), state[POSITIONS].shape[1]
    same_depth = [name for name in fitting if fitting[name].decoder_layers == layers] or list(fitting)
    return [name for name in same_depth if fitting[name].backbone_config.position_grid ** 2 + 1 == rows] or same_depth


def official_labels(
    rows: int, class_names: Any = None, schema: Sequence[int] = (), origin: str = "the file"
) -> dict[int, str]:
    """Names of the rows of an official class head. A row without a class is called "N/A"; none with keypoints is.

    Args:
        rows: Rows of the head.
        class_names: What the file says: a list of names, a dict of rows and names, or None.
        schema: Number of keypoints of each class. Where it starts with the background, [0, 17], as many names as there
            are classes with keypoints are the names of these; else names go with rows from 0, as in training.
        origin: The file, for messages.

    Raises:
        ValueError: for a dict with other keys than rows, more names than rows, or names that are no texts.
    """
    named = {}
    if isinstance(class_names, Mapping):
        named = {int(key) if str(key).isdecimal() else key: name for key, name in class_names.items()}
        if not {*named} <= {*range(rows)}:
            keys = f"the keys {[*class_names][:5]}, and the class head the rows 0 to {rows - 1}"
            raise ValueError(f"{origin}: class_names has {keys}. {_REMEDY}")
    names = [] if class_names is None else [class_names] if isinstance(class_names, str) else class_names
    names = list(named.values()) if isinstance(names, Mapping) else names
    if not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{origin}: class_names={class_names!r:.80} is no list of texts. {_REMEDY}")
    if named:
        return {row: named.get(row, UNUSED_LABEL) for row in range(rows)}
    names = list(names)
    counted = [row for row, count in enumerate(schema) if count]
    unnamed = not names or (rows == 91 and names == list(COCO_LABELS.values()))
    if rows == 91 and unnamed and counted in ([], [1]):
        return {row: COCO_LABELS.get(row, UNUSED_LABEL) for row in range(rows)}
    if len(names) > rows:
        raise ValueError(f"{origin}: class_names has {len(names)} names for {rows} rows of the class head. {_REMEDY}")
    if not unnamed and not counted and len(names) != rows - 1:
        shown = {row: names[row] if row < len(names) else UNUSED_LABEL for row in range(rows)}
        logger.warning(
            "%s has %d class names and %d rows of the class head, where official trainings have a row more than names. "
            "Names go with rows from 0: %s%s. If they are off by one, correct them with id2label or rename_classes",
            origin, len(names), rows, ", ".join(f"{row} {name}" for row, name in [*shown.items()][:10]),
            ", ..." if rows > 10 else "",
        )  # fmt: skip
    background_first = bool(counted) and schema[0] == 0
    if unnamed:
        labels = {row: f"LABEL_{row}" for row in range(int(background_first), rows - 1)}
        if [schema[row] for row in counted] == [_PERSON_KEYPOINTS]:
            labels[counted[0]] = "person"
    else:
        named = counted if background_first and len(names) == len(counted) else range(rows)
        labels = dict(zip(named, names, strict=False))
    labels = {row: f"LABEL_{row}" for row in counted} | labels
    return {row: labels.get(row, UNUSED_LABEL) for row in range(rows)}


def official_payload(config: RFDETRConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `save_official` writes: `model`, `args`, `model_name` and `model_config` as rfdetr 1.11 reads them.

    A class head without an "N/A" row at its end, other than COCO's, gets a row more, which the official package
    expects; it is never selected. Where row 0 has no keypoints the official package takes the names for those of the
    classes that have keypoints, and these are what it gets. Our own configuration is added under `rfdetr_hf`, so that
    nothing is lost on the way back.
    """
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    labels = [name for _, name in sorted(config.id2label.items())]
    schema, is_coco = config.num_keypoints_per_class, config.id2label == official_labels(91)
    background_first = schema[:1] == [0]
    if labels[-1] != UNUSED_LABEL and not is_coco and not (background_first and labels[0] == UNUSED_LABEL):
        append_unused_row(state, UNUSED_BIAS)
        labels.append(UNUSED_LABEL)
    if is_coco:
        labels = list(COCO_LABELS.values())
    elif background_first:
        labels = [labels[row] for row, count in enumerate(schema) if count]
    else:
        labels = labels[:-1]
    state.setdefault("_kp_active_mask", torch.zeros(0, 0, dtype=torch.bool))
    fields = _official_fields(config, state)
    args = argparse.Namespace(**fields, class_names=labels, pretrain_weights=None)
    payload = {"model": state, "args": args, "model_config": fields, OWN_KEY: {"config": _plain(config.to_dict())}}
    return {**payload, "model_name": _official_class(config, state)}


def _official_fields(config: RFDETRConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    encoder, task = config.backbone_config, task_of(state)
    fields = {
        "encoder": "dinov2_windowed_base" if encoder.hidden_size == 768 else "dinov2_windowed_small",
        "out_feature_indexes": list(encoder.out_indices),
        "patch_size": encoder.patch_size,
        "num_windows": encoder.num_windows,
        "positional_encoding_size": encoder.position_grid,
        "resolution": config.resolution,
        "hidden_dim": config.d_model,
        "dec_layers": config.decoder_layers,
        "sa_nheads": config.decoder_self_attention_heads,
        "ca_nheads": config.decoder_cross_attention_heads,
        "dec_n_points": config.decoder_n_points,
        "projector_scale": list(config.projector_scales),
        "num_queries": config.num_queries,
        "num_select": config.num_queries,
        "group_detr": config.group_detr,
        "num_classes": state["class_embed.bias"].shape[0] - 1,
        "segmentation_head": task == "segmentation",
    }
    if task == "segmentation":
        fields["mask_downsample_ratio"] = config.mask_downsample_ratio
    if task == "keypoints":
        fields |= {"use_grouppose_keypoints": True, "num_keypoints_per_class": list(config.num_keypoints_per_class)}
        fields |= {"dual_projector": True, "dual_projector_kp_only": True}
    return fields


def _official_class(config: RFDETRConfig, state: Mapping[str, Tensor]) -> str:
    """The official class that is to hold the model: the same encoder and task, as near as there is one."""
    variants = RFDETRConfig.variants()
    if fitting := _fitting_variants(state):
        return variants[fitting[0]].official_class
    logger.warning(
        "no published variant has an encoder of width %d with patches of %d and a decoder of width %d: the official "
        "package may not be able to build this model.",
        config.backbone_config.hidden_size, config.backbone_config.patch_size, config.d_model,
    )  # fmt: skip
    task = task_of(state)
    return next(variant.official_class for variant in variants.values() if variant.task == task)


def _plain(value: Any) -> Any:
    """Containers and plain values alone, which every weights-only reader accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
