"""Other names of the same tensors: transformers' own layout, and DINOv2 checkpoints."""

import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbone import resize_position_table

ENCODER = "backbone.0.encoder.encoder."
POSITIONS = f"{ENCODER}embeddings.position_embeddings"
PATCH_KERNEL = f"{ENCODER}embeddings.patch_embeddings.projection.weight"

# transformers' names after its prefixes `model.` are gone -> official names. It writes them only when asked to
# (`save_original_format=False`); the encoder's attention has one spelling up to 5.17 and another since 5.18.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.backbone\.", ENCODER),
    (r"(encoder\.layer\.\d+\.attention\.)q_proj\.", r"\1attention.query."),
    (r"(encoder\.layer\.\d+\.attention\.)k_proj\.", r"\1attention.key."),
    (r"(encoder\.layer\.\d+\.attention\.)v_proj\.", r"\1attention.value."),
    (r"(encoder\.layer\.\d+\.attention\.)o_proj\.", r"\1output.dense."),
    (r"^backbone\.projector\.layer_norm\.", "backbone.0.projector.stages.0.1."),
    (r"^backbone\.projector\.projector_layer\.", "backbone.0.projector.stages.0.0."),
    (r"(projector\.stages\.0\.0\.)bottlenecks\.", r"\1m."),
    (r"(projector\.stages\.0\.0\..*?)conv([12])\.(conv|norm)\.", r"\1cv\2.\3."),
    (r"(projector\.stages\.0\.0\..*cv[12]\.)norm\.", r"\1bn."),
    (r"^decoder\.layernorm\.", "transformer.decoder.norm."),
    (r"^(decoder|enc_output|enc_output_norm|enc_out_class_embed|enc_out_bbox_embed)\.", r"transformer.\1."),
    (r"(decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(decoder\.layers\.\d+\.)cross_attn_layer_norm\.", r"\1norm2."),
    (r"(decoder\.layers\.\d+\.)layer_norm\.", r"\1norm3."),
    (r"(decoder\.layers\.\d+\.)mlp\.fc([12])\.", r"\1linear\2."),
    (r"(decoder\.layers\.\d+\.self_attn\.)o_proj\.", r"\1out_proj."),
    (r"^reference_point_embed\.", "refpoint_embed."),
    (r"^segmentation_bias$", "segmentation_head.bias"),
    (r"^(blocks|query_features_block|query_features_proj|spatial_features_proj)\.", r"segmentation_head.\1."),
    (r"(segmentation_head\.blocks\.\d+\.)depthwise_conv\.", r"\1dwconv."),
    (r"(segmentation_head\.blocks\.\d+\.)pointwise_conv\.", r"\1pwconv1."),
    (r"(segmentation_head\.blocks\.\d+\.)layernorm\.", r"\1norm."),
    (r"(segmentation_head\.query_features_block\.)norm\.", r"\1norm_in."),
    (r"(segmentation_head\.query_features_block\.)mlp\.fc1\.", r"\1layers.0."),
    (r"(segmentation_head\.query_features_block\.)mlp\.fc2\.", r"\1layers.2."),
)


def official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their official names, whichever of the known layouts the names are in.

    Separate query, key and value projections of the decoder are joined to torch's packed ones.
    """
    names = official_names(state)
    renamed = {names[name]: tensor for name, tensor in state.items()}
    packed = {name: tensor for name, tensor in renamed.items() if not re.search(r"self_attn\.[qkv]_proj\.", name)}
    for name in renamed:
        if name.endswith(("self_attn.q_proj.weight", "self_attn.q_proj.bias")):
            parts = [renamed[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            packed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)  # (3 D, D) or (3 D,)
    return packed


def official_names(names: Iterable[str]) -> dict[str, str]:
    """The official name for each name in any of the known layouts; separate projections stay separate.

    The prefixes of torch.compile and of DDP are left out.
    """
    unwrapped = {name: re.sub(r"^(module\.)+", "", re.sub(r"(^|\.)_orig_mod\.", r"\1", name)) for name in names}
    found = {name: re.sub(r"^(model\.)+", "", short) for name, short in unwrapped.items()}
    if found != unwrapped:
        for pattern, replacement in _RENAMES:
            found = {name: re.sub(pattern, replacement, short) for name, short in found.items()}
    return found


def dinov2_to_encoder(state: Mapping[str, Tensor], patch_size: int, position_grid: int) -> dict[str, Tensor]:
    """Tensors of a DINOv2 checkpoint (`Dinov2Model`, with registers or without) under the encoder's names.

    Args:
        state: Tensors of the checkpoint; heads of tasks and the register tokens are left out.
        patch_size: Side of the patches to have; kernels of another size are resampled.
        position_grid: Side of the position table to have; another one is resampled.
    """
    encoder = {}
    for name, tensor in state.items():
        name = re.sub(r"^(dinov2_with_registers|dinov2|backbone|model)\.", "", name)
        for pattern, replacement in _RENAMES[1:5]:
            name = re.sub(pattern, replacement, name)
        if name.startswith(("embeddings.", "encoder.", "layernorm.")) and not name.endswith("register_tokens"):
            encoder[ENCODER + name] = tensor
    if PATCH_KERNEL in encoder:
        encoder[PATCH_KERNEL] = resample_patch_kernel(encoder[PATCH_KERNEL], patch_size)
    if POSITIONS in encoder:
        encoder[POSITIONS] = resize_positions(encoder[POSITIONS], position_grid)
    return encoder


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Resize position embeddings (1, 1 + P, D) to (1, 1 + side**2, D); the row of the class token stays."""
    if table.shape[1] == side**2 + 1:
        return table
    return torch.cat([table[0, :1], resize_position_table(table[0, 1:], side, side)])[None]


def resample_patch_kernel(kernel: Tensor, size: int) -> Tensor:
    """Change the patch size of an embedding kernel (D, C, p, p) with the pseudo-inverse of the image resize.

    For a larger size the token of an enlarged patch stays what the token of the patch was (FlexiViT, arXiv:2212.08013,
    section 3.4).
    """
    old = kernel.shape[-1]
    if old == size:
        return kernel
    basis = torch.eye(old**2, dtype=torch.float64).reshape(old**2, 1, old, old)
    # Row i is what the resize makes of a patch whose only pixel that is not 0 is pixel i: (old**2, size**2).
    resized = F.interpolate(basis, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    resize = resized.reshape(old**2, size**2)
    weights = kernel.double().flatten(2) @ torch.linalg.pinv(resize).T  # (D, C, old**2) -> (D, C, size**2)
    return weights.unflatten(-1, (size, size)).to(kernel.dtype)
