"""Training a part of a model: frozen blocks, single parts, low-rank adapters; and loading a part of a checkpoint."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ..models.adapters import add_lora, has_adapters
from ..models.configuration_rfdetr import RFDETRConfig
from ..models.files.adapt import CLASS_HEADS, check_class_heads, require_finite, rows_by_name
from ..models.files.layouts import POSITIONS, official_keys, resize_positions
from ..models.files.pretrained import read_state
from ..models.modeling_rfdetr import RFDETRForObjectDetection

logger = logging.getLogger(__name__)

# Parts of a model by the beginnings of parameter names; what fits none of them belongs to the heads.
_PREFIXES = {
    "encoder": ("backbone.0.encoder.",),
    "projector": ("backbone.0.projector.", "backbone.0.cross_attn_projector."),
    "decoder": ("transformer.decoder.", "refpoint_embed.", "query_feat.", "transformer.keypoint_query_initializer."),
}
PARTS = (*_PREFIXES, "heads")


def in_float32(model: RFDETRForObjectDetection) -> RFDETRForObjectDetection:
    """The model in float32, whatever the type of its file: most updates are too small for fewer bits.

    Weights that were made float64 in memory, by `model.double()`, stay so.

    Raises:
        TypeError: a layer is quantised, or its weights are offloaded: it cannot be trained.
    """
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        is_integer = isinstance(weight, torch.Tensor) and not weight.is_floating_point()
        # Of torch.ao a method; of torchao a tensor of a class of its own, as that of a sharded model is.
        is_other = hasattr(weight, "__tensor_flatten__") and not hasattr(weight, "full_tensor")
        is_method = callable(weight) and not isinstance(weight, torch.nn.Module)  # a module where it is parametrised
        if is_method or is_integer or is_other:
            raise TypeError(
                f"{name} of the model is quantised, which cannot be trained: quantise it after the training"
            )
        if hasattr(module, "_hf_hook"):
            raise TypeError(f"the weights of {name or 'the model'} are offloaded: load the model without device_map")
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if types == {torch.float64} and model.config.dtype != torch.float64:
        logger.warning("the weights are torch.float64: they are trained and saved so, many times slower than float32")
    elif others := ", ".join(sorted(str(dtype) for dtype in types - {torch.float32})):
        logger.warning("the weights are %s: they are trained and saved in float32", others)
        model.float()
        model.config.dtype = torch.float32
    return model


def part_of(name: str) -> str:
    """The part that a parameter belongs to: "encoder", "projector", "decoder" (with the queries) or "heads".

    The heads are those of classes, boxes, masks and keypoints, and all that makes proposals.
    """
    return next((part for part, prefixes in _PREFIXES.items() if name.startswith(prefixes)), "heads")


def _check_parts(parts: Collection[str]) -> None:
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise ValueError(f"parts {sorted(parts)}: choose at least one of {', '.join(PARTS)}")


def train_only(model: RFDETRForObjectDetection, parts: Collection[str]) -> None:
    """Take all parameters out of training but those of some parts. Names: see [`part_of`].

    What no output depends on stays out of training.
    """
    _check_parts(parts)
    unused = model.unused_parameter_names()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts and name not in unused)


def freeze_encoder_blocks(model: RFDETRForObjectDetection, count: int) -> None:
    """Take the encoder's embeddings and its first `count` blocks out of training.

    Raises:
        ValueError: if the encoder uses fewer blocks.
    """
    vit: Any = model.get_submodule("backbone.0").vit
    if not 0 <= count <= vit.taps[-1]:
        raise ValueError(f"freeze_encoder_blocks={count}: the encoder uses {vit.taps[-1]} blocks")
    if count:
        for module in (vit.embeddings, *vit.layers[:count]):
            module.requires_grad_(False)


@torch.no_grad()
def load_parts(model: RFDETRForObjectDetection, source: str | Path, parts: Collection[str], **hub_options: Any) -> None:
    """Put some parts of a checkpoint into a model and leave the others as they are.

    The position table of another resolution is resized.

    Args:
        model: the rest of it may differ from the checkpoint: other classes, another task.
        source: a folder or Hub id in the layout of this package or of transformers.
        parts: names as [`part_of`] gives them.
        hub_options: `revision`, `token` and the like.

    Raises:
        ValueError: if a tensor of these parts is missing in the checkpoint, has another shape, or a number that
            is not finite.
    """
    _check_parts(parts)
    found = official_keys(read_state(source, **hub_options))
    if POSITIONS in found:
        found[POSITIONS] = resize_positions(found[POSITIONS], model.config.backbone_config.position_grid)
    chosen = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if part_of(name) in parts}
    for name, tensor in chosen.items():
        if name not in found:
            raise ValueError(f"{source} has no {name}, which belongs to the part {part_of(name)}")
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{name} has the shape {tuple(found[name].shape)} in {source} and {tuple(tensor.shape)} in the model; "
                f"build the model alike, or leave out the part {part_of(name)}"
            )
    require_finite({name: found[name] for name in chosen}, str(source))
    for name, tensor in chosen.items():
        tensor.copy_(found[name])
    logger.info("%d tensors of %s come from %s", len(chosen), ", ".join(sorted(parts)), source)


@torch.no_grad()
def load_class_rows(model: RFDETRForObjectDetection, source: str | Path, **hub_options: Any) -> list[str]:
    """Give the classes that a checkpoint knows by the same name the checkpoint's rows of the class heads.

    Names are compared as `from_pretrained` compares them.

    `from_pretrained` does so itself; this is for the classes of one more checkpoint.

    Args:
        model: is changed in place; its width and query groups are those of the checkpoint.
        source: a folder or Hub id in the layout of this package or of transformers.
        hub_options: `revision`, `token` and the like.

    Returns:
        The names of these classes.

    Raises:
        ValueError: the checkpoint's heads do not fit those of the model, or its own configuration, or have a number
            that is not finite; nothing is changed.
    """
    saved, found = RFDETRConfig.from_pretrained(source, **hub_options), official_keys(read_state(source, **hub_options))
    check_class_heads(found, saved, str(source))
    names: Any = model.config.id2label
    rows = rows_by_name(saved.id2label, names)
    ours = [row for row, old in enumerate(rows) if old is not None]
    theirs = [old for old in rows if old is not None]
    heads = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if CLASS_HEADS.match(name)}
    for name, tensor in heads.items():
        if name not in found or found[name].shape[1:] != tensor.shape[1:]:
            has = f"{name} of the shape {tuple(found[name].shape)}" if name in found else f"no {name}"
            raise ValueError(f"{source} has {has}, and the model {tuple(tensor.shape)}: build the model alike")
    require_finite({name: found[name] for name in heads}, str(source))
    for name, tensor in heads.items():
        tensor[ours] = found[name][theirs].to(tensor)
    logger.info("class rows: %d are those of %s, %d stay as they were", len(ours), source, len(rows) - len(ours))
    return [names[row] for row in ours]


def apply_finetuning(model: RFDETRForObjectDetection, args: Any) -> None:
    """Freeze and adapt the encoder as the training arguments say.

    Args:
        model: is changed in place; adapters that it has stay.
        args: `freeze_backbone`, `freeze_encoder_blocks`, `lora_r`, `lora_alpha`, `lora_dropout`,
            `lora_target_modules` (comma-separated), `use_dora`.
    """
    if args.freeze_backbone:
        model.freeze_backbone()
    freeze_encoder_blocks(model, args.freeze_encoder_blocks)
    if args.lora_r and has_adapters(model):
        logger.warning("the model has adapters already: these are trained, and lora_r=%d adds none", args.lora_r)
    elif args.lora_r:
        targets = [name.strip() for name in args.lora_target_modules.split(",")]
        options = args.lora_alpha, args.lora_dropout, targets, args.use_dora, args.freeze_encoder_blocks
        add_lora(model, args.lora_r, *options)
