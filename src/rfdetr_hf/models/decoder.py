"""Two-stage proposals, deformable attention and the decoder.

Query groups lie one after the other on the query axis: group g has the rows g * q ... (g + 1) * q - 1.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..losses.types import to_device
from .attention import attend
from .configuration_rfdetr import RFDETRConfig
from .geometry import (
    LevelShapes,
    anchor_boxes,
    by_hand,
    canvas_anchors,
    full_sizes,
    geometry_dtype,
    is_recorded,
    level_padding,
    refine_boxes,
    sampling_frames,
    sine_embedding,
    valid_sizes,
)
from .initialization import (
    init_class_head,
    init_norm,
    init_sampling_offsets,
    init_torch_default,
    init_xavier,
    init_xavier_zero_bias,
    init_zeros,
    with_init,
)
from .linears import Linear, autocast_dtype, is_wrapped, joined, linears, sum_to_autocast, to_autocast

DECODER_NORM_EPS = 1e-5


def layer_norm(width: int) -> nn.LayerNorm:
    """The norm of decoder and proposal heads."""
    return with_init(nn.LayerNorm(width, eps=DECODER_NORM_EPS), init_norm)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int], initializers: Sequence[Callable]) -> None:
        super().__init__()
        sizes = zip(widths[:-1], widths[1:], initializers, strict=True)
        self.layers = nn.ModuleList([with_init(nn.Linear(a, b), initializer) for a, b, initializer in sizes])

    def forward(self, x: Tensor, functions: Sequence[Linear] = ()) -> Tensor:
        """`functions`: what `linears` makes of the layers, where the caller has them."""
        *hidden, last = functions or linears(*([layer] for layer in self.layers))
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


def box_head(width: int) -> MLP:
    """The head of four box deltas. It starts at zero, so that every box starts at its reference."""
    return MLP([width, width, width, 4], [init_torch_default, init_torch_default, init_zeros])


def class_head(width: int, num_labels: int) -> nn.Linear:
    """The head of class logits, with a prior bias."""
    return with_init(nn.Linear(width, num_labels), init_class_head)


class Memory(NamedTuple):
    """What the decoder attends to: all levels as one sequence of S cells, level after level, row after row.

    Attributes:
        tokens: (B, S, C).
        shapes: (h, w) of each level.
        padding: (B, S), True at padding; None where nothing is padded.
        valid_ratios: (B, L, 2), the share of (width, height) of each level that is image; None where all of it is.
        anchors: (B, S, 4) boxes, zero at invalid cells.
        invalid: (B, S), True at cells that are padding or whose anchor is too close to the border.
    """

    tokens: Tensor
    shapes: LevelShapes
    padding: Tensor | None
    valid_ratios: Tensor | None
    anchors: Tensor
    invalid: Tensor


def join_maps(maps: list[Tensor]) -> Tensor:
    """Feature maps (B, C, h_l, w_l) as one sequence (B, S, C), in the type that the decoder multiplies in."""
    return to_autocast(torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1))


def flatten_levels(maps: list[Tensor], pixel_mask: Tensor | None) -> Memory:
    """Join feature maps (B, C, h_l, w_l) to one memory.

    Args:
        maps: One map for each level.
        pixel_mask: (B, H, W), non-zero = image; None if nothing is padded.
    """
    tokens = join_maps(maps)
    shapes = [(level.shape[2], level.shape[3]) for level in maps]
    dtype = geometry_dtype(tokens.dtype)
    if pixel_mask is None and not is_recorded():
        anchors, invalid = (to_device(array, tokens.device) for array in canvas_anchors(*shapes))
        every_image = anchors.to(dtype).expand(len(tokens), -1, -1), invalid.expand(len(tokens), -1)
        return Memory(tokens, shapes, None, None, *every_image)
    full = [full_sizes(tokens.shape[0], shape, tokens.device) for shape in shapes]
    if pixel_mask is None:
        padding, sizes = None, full
    else:
        levels = level_padding(pixel_mask, shapes)  # (B, h_l, w_l) each
        padding, sizes = torch.cat([level.flatten(1) for level in levels], 1), [valid_sizes(x) for x in levels]
    anchors, inside = anchor_boxes(shapes, sizes)
    invalid = ~inside if padding is None else padding | ~inside
    ratios = torch.stack([valid / all_cells for valid, all_cells in zip(sizes, full, strict=True)], 1)  # (B, L, 2)
    anchors = anchors.masked_fill(invalid[..., None], 0.0)
    return Memory(tokens, shapes, padding, ratios.to(dtype), anchors.to(dtype), invalid)


class Proposals(NamedTuple):
    """The best T = min(num_queries, S) cells of each group.

    Attributes:
        grouped: (G, B*T, C), their features.
        logits: (B, G*T, K).
        boxes: (B, G*T, 4).
    """

    grouped: Tensor
    logits: Tensor
    boxes: Tensor

    @property
    def features(self) -> Tensor:
        """(B, G*T, C)."""
        return _ungroup(self.grouped, len(self.boxes))


def grouped_linears(layers: Iterable[Iterable[Any]], groups: int) -> list[Linear]:
    """Linear layers of which each group has its own, as one function each for the first `groups` of them.

    Args:
        layers: for each function the layers of all groups.
        groups: G.

    Returns:
        Functions (G, N, in) -> (G, N, out).
    """
    used = [list(modules)[:groups] for modules in layers]
    if groups == 1:
        # The modules themselves, since they may be quantised ones, which have no weight to be read.
        return [modules[0] for modules in used]
    parameters = [[getattr(module, name) for module in modules] for name in ("weight", "bias") for modules in used]
    tensors = joined(parameters, stacked=True)
    weights = [weight.transpose(1, 2) for weight in tensors[: len(used)]]  # (G, in, out)
    biases = [bias[:, None] for bias in tensors[len(used) :]]  # (G, 1, out)

    def product(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        if autocast_dtype(x.device) is None:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return torch.baddbmm(bias, x, weight)

    return [partial(product, *pair) for pair in zip(weights, biases, strict=True)]


class _GroupedNorm(torch.autograd.Function):
    # By hand for memory: autograd would keep the input in float32, where it is bfloat16, and what is scaled.

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed, *statistics = _plain_norm(x.to(weight.dtype))
        ctx.save_for_backward(x, weight, *statistics)
        return torch.addcmul(bias, normed, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, *statistics = ctx.saved_tensors
        wide, of_x = x.to(weight.dtype), None
        if ctx.needs_input_grad[0]:
            derived = torch.ops.aten.native_layer_norm_backward(
                grad * weight, wide, x.shape[-1:], *statistics, None, None, [True, False, False]
            )
            of_x = derived[0].to(x.dtype)
        return of_x, (grad * _plain_norm(wide)[0]).sum(1, keepdim=True), grad.sum(1, keepdim=True)


def _grouped_norm(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x (G, N, C), normed and scaled group by group."""
    if by_hand():
        return _GroupedNorm.apply(x, weight, bias)
    return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:], eps=DECODER_NORM_EPS), weight)


def _plain_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(x, x.shape[-1:], None, None, DECODER_NORM_EPS)


class _ProposalHeads:
    """The heads of several groups as one, so that each operation runs once for all of them."""

    def __init__(self, transformer: "RFDETRTransformer", groups: int) -> None:
        norms: list[Any] = list(transformer.enc_output_norm)[:groups]
        boxes: list[Any] = list(transformer.enc_out_bbox_embed)[:groups]
        layers = [
            transformer.enc_output,
            transformer.enc_out_class_embed,
            *zip(*(b.layers for b in boxes), strict=True),
        ]
        # (G, N, C) -> (G, N, C), (G, N, K), ...
        self.output, self.logits, *self.boxes = grouped_linears(layers, groups)
        if groups == 1:
            self.norm = norms[0]
            return
        parts = [torch.stack(list(part)) for part in zip(*((norm.weight, norm.bias) for norm in norms), strict=True)]
        self.norm = partial(_grouped_norm, *(part[:, None] for part in parts))  # (G, 1, C)

    def features(self, tokens: Tensor) -> Tensor:
        """(G, N, C) -> (G, N, C)."""
        return self.norm(self.output(tokens))

    def deltas(self, features: Tensor) -> Tensor:
        """(G, N, C) -> (G, N, 4)."""
        *hidden, last = self.boxes
        for layer in hidden:
            features = F.relu(layer(features))
        return last(features)


def _gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (G, B, T) of x (B, S, C) as (G, B*T, C)."""
    images = torch.arange(x.shape[0], device=x.device)[:, None]
    numbers = torch.add(index, images, alpha=x.shape[1]).flatten()  # of the rows of all images
    return x.flatten(0, 1).gather(0, numbers[:, None].expand(-1, x.shape[-1])).unflatten(0, (len(index), -1))


def _ungroup(x: Tensor, batch: int) -> Tensor:
    """(G, B*T, C) -> (B, G*T, C)."""
    return x.unflatten(1, (batch, -1)).transpose(0, 1).flatten(1, 2)


class GroupSelfAttention(nn.Module):
    """Self-attention with packed projections; queries and keys carry the position, values do not."""

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        width = config.d_model
        self.config, self.num_heads = config, config.decoder_self_attention_heads
        self.dropout = config.attention_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = with_init(nn.Linear(width, width), init_xavier_zero_bias)
        with_init(self, GroupSelfAttention._initialize)

    def _initialize(self) -> None:
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        groups: int,
        output: Linear,
        packed: Sequence[Tensor],
        attends: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x, position (B, groups * q, C); a query attends to the queries of its own group.

        `output` is the layer after the attention and `packed` the weights and biases before it, cast by the caller, or
        nothing to read them here.

        `attends` (q, q) narrows that down: False where the query of the row does not see the one of the column. The
        weights (B * groups, heads, q, q) are given if they are asked for.
        """
        batch, width = x.shape[0], x.shape[-1]
        packed = packed or joined([[self.in_proj_weight], [self.in_proj_bias]])
        x, position = (t.unflatten(1, (groups, -1)).flatten(0, 1) for t in (x, position))  # (B * groups, q, C)
        weight, bias = (t.split((2 * width, width)) for t in packed)
        query, key = F.linear(sum_to_autocast(x, position), weight[0], bias[0]).chunk(2, -1)
        value = F.linear(x, weight[1], bias[1])
        # (B * groups, heads, q, C / heads)
        query, key, value = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        rate = self.dropout if self.training else 0.0
        kind = self.config._attn_implementation
        attended, weights = attend(query, key, value, kind, attends, rate, need_weights)
        attended = attended.transpose(1, 2).flatten(-2)  # (B * groups, q, C)
        return output(attended.unflatten(0, (batch, groups)).flatten(1, 2)), weights  # (B, groups * q, C)


class _WeightedReads(torch.autograd.Function):
    # By hand for memory: what is read at the points is the largest tensor of a layer after the hidden state of the
    # feed-forward part. Reading again in the backward pass is one launch; a CPU keeps it, since there it takes time.

    @staticmethod
    def forward(ctx: Any, image: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
        read = torch.grid_sampler_2d(image, grid, *_BILINEAR)
        ctx.save_for_backward(image, grid, weights, *([read] if image.device.type in _KEEPS_READS else []))
        return (read.unflatten(0, (weights.shape[0], -1)) * weights).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        image, grid, weights, *kept = ctx.saved_tensors
        grad = grad[..., None]
        of_image = of_grid = of_weights = None
        if ctx.needs_input_grad[2]:
            read = kept[0] if kept else torch.grid_sampler_2d(image, grid, *_BILINEAR)
            of_weights = (read.unflatten(0, (weights.shape[0], -1)) * grad).sum(2, keepdim=True)
        if any(ctx.needs_input_grad[:2]):
            # Contiguous, which `grad` is not.
            of_reads = torch.mul(grad, weights, out=grad.new_empty(torch.broadcast_shapes(grad.shape, weights.shape)))
            of_image, of_grid = torch.ops.aten.grid_sampler_2d_backward(
                of_reads.flatten(0, 1), image, grid, *_BILINEAR, ctx.needs_input_grad[:2]
            )
        return of_image, of_grid, of_weights


_BILINEAR = 0, 0, False  # the mode, zeros outside of the image, a corner of the grid is that of the image
_KEEPS_READS = {"cpu"}


def weighted_reads(image: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear reads.

    Args:
        image: (B * heads, c, h, w).
        grid: (B * heads, Q, P, 2), see `grid_sample`.
        weights: (B, heads, 1, Q, P).

    Returns:
        (B, heads, c, Q).
    """
    if by_hand():
        return _WeightedReads.apply(image, grid, weights)
    read = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (read.unflatten(0, (weights.shape[0], -1)) * weights).sum(-1)


class DeformableAttention(nn.Module):
    """Each query reads a few points near its reference box, bilinearly, from every level.

    The formula is that of Deformable DETR (arXiv:2010.04159, section 4.1) with offsets relative to the box:
    `centre + offset / points * size / 2`, in float32 at least.
    """

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        width, heads = config.d_model, config.decoder_cross_attention_heads
        self.heads, self.levels, self.points = heads, config.num_feature_levels, config.decoder_n_points
        samples = heads * self.levels * self.points
        layout = {"heads": heads, "levels": self.levels, "points": self.points}
        self.sampling_offsets = with_init(nn.Linear(width, samples * 2), init_sampling_offsets, **layout)
        self.attention_weights = with_init(nn.Linear(width, samples), init_zeros)
        self.value_proj = with_init(nn.Linear(width, width), init_xavier_zero_bias)
        self.output_proj = with_init(nn.Linear(width, width), init_xavier_zero_bias)

    def layers(self) -> list[list[nn.Module]]:
        """The linear layers, by what they read; `forward` gets them as functions."""
        return [[self.sampling_offsets, self.attention_weights], [self.value_proj], [self.output_proj]]

    def forward(
        self,
        query: Tensor,
        frames: Tensor,
        tokens: Tensor,
        shapes: LevelShapes,
        padding: Tensor | None,
        sample: Linear,
        read: Linear,
        output: Linear,
    ) -> tuple[Tensor, Tensor]:
        """Read tokens (B, S, C), which are padding where `padding` (B, S) is True.

        query (B, Q, C), frames (B, Q, L, 4), see `sampling_frames` -> (B, Q, C), and the weights of the points (B, Q,
        heads, L, P).
        """
        value = read(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        layout = (self.heads, self.levels, self.points)
        # (B, Q, heads, L, P, 2) and (B, Q, heads, L * P)
        samples = self.heads * self.levels * self.points
        offsets, weights = sample(query).to(frames.dtype).split((2 * samples, samples), -1)
        offsets = offsets.unflatten(-1, (*layout, 2))
        weights = weights.unflatten(-1, (self.heads, -1)).softmax(-1)
        centre, step = frames[:, :, None, :, None].split(2, -1)  # (B, Q, 1, L, 1, 2)
        weights = weights.unflatten(-1, layout[1:])
        # As a sum and a product, of which autograd makes less than of `addcmul`.
        sampled = self._sample(value, centre + offsets * step, weights, shapes)
        return output(sampled.to(query.dtype, memory_format=torch.contiguous_format)), weights

    def _sample(self, value: Tensor, grids: Tensor, weights: Tensor, shapes: LevelShapes) -> Tensor:
        """value (B, S, C), grids (B, Q, heads, L, P, 2), weights (B, Q, heads, L, P) -> (B, Q, C)."""
        batch, dtype = value.shape[0], grids.dtype
        grids = grids.transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P, 2)
        weights = weights.transpose(1, 2)[:, :, None]  # (B, heads, 1, Q, L, P)
        if len(shapes) == 1:
            levels = [(value, grids.squeeze(2), weights.squeeze(-2))]  # the derivatives of these are views
        else:
            cells = value.split([height * width for height, width in shapes], 1)
            levels = zip(cells, grids.unbind(2), weights.unbind(-2), strict=True)
        parts = []
        for shape, (cells, grid, weight) in zip(shapes, levels, strict=True):
            # (B, h * w, C) -> (B * heads, C / heads, h, w), read at (B * heads, C / heads, Q, P)
            image = cells.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)
            image = image.reshape(batch * self.heads, -1, *shape)
            parts.append(weighted_reads(image, grid, weight))  # (B, heads, C / heads, Q)
        return reduce(torch.add, parts).flatten(1, 2).transpose(1, 2)


class RFDETRDecoderLayer(GradientCheckpointingLayer):
    """Self-attention inside a group, deformable cross-attention, feed-forward; norms after each."""

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.decoder_ffn_dim
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.self_attn, self.norm1 = GroupSelfAttention(config), layer_norm(width)
        self.cross_attn, self.norm2 = DeformableAttention(config), layer_norm(width)
        self.linear1 = with_init(nn.Linear(width, hidden), init_xavier)
        self.linear2 = with_init(nn.Linear(hidden, width), init_xavier)
        self.norm3 = layer_norm(width)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        frames: Tensor,
        tokens: Tensor,
        shapes: LevelShapes,
        padding: Tensor | None,
        groups: int,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """x, position (B, Q, C); frames (B, Q, L, 4); tokens (B, S, C); padding (B, S).

        Returns:
            (B, Q, C), and the weights of both attentions, see `GroupSelfAttention` and `DeformableAttention`.
        """
        own, cross = self.self_attn, self.cross_attn
        # The weights of a layer are cast for autocast in one launch.
        output, widen, narrow, *rest = linears(
            [own.out_proj], [self.linear1], [self.linear2], *cross.layers(),
            tensors=[] if is_wrapped(own) else [own.in_proj_weight, own.in_proj_bias],
        )  # fmt: skip
        reads, packed = rest[:3], rest[3:]
        answer, weights = own(x, position, groups, output, packed, need_weights=need_weights)
        x = self.norm1(x + self._drop(answer, self.dropout))
        answer, cross_weights = cross(sum_to_autocast(x, position), frames, tokens, shapes, padding, *reads)
        x = self.norm2(x + self._drop(answer, self.dropout))
        hidden = self._drop(F.relu(widen(x)), self.activation_dropout)
        return self.norm3(x + self._drop(narrow(hidden), self.dropout)), weights, cross_weights

    def _drop(self, x: Tensor, rate: float) -> Tensor:
        return F.dropout(x, rate, self.training)


class DecoderStates(NamedTuple):
    """What the layers of the decoder give.

    Attributes:
        hidden: (B, Q, C), the queries and the state after each layer.
        attentions: For each layer the weights of the self-attention, None where they are not asked for.
        cross_attentions: For each layer the weights of the deformable attention.
        keypoints: (B, Q, N, C), the state of the keypoints after each layer; of keypoint models.
    """

    hidden: list[Tensor]
    attentions: list[Tensor | None]
    cross_attentions: list[Tensor]
    keypoints: list[Tensor]

    def add(self, hidden: Tensor, attention: Tensor | None, cross_attention: Tensor) -> None:
        """Append what one layer gave."""
        self.hidden.append(hidden)
        self.attentions.append(attention)
        self.cross_attentions.append(cross_attention)


class RFDETRDecoder(nn.Module):
    """The decoder layers with one position embedding and one reference for all of them."""

    layer_class = RFDETRDecoderLayer

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        width, self.points = config.d_model, config.decoder_n_points
        self.layers = nn.ModuleList([self.layer_class(config) for _ in range(config.decoder_layers)])
        self.norm = layer_norm(width)
        self.ref_point_head = MLP([2 * width, width, width], [init_xavier, init_xavier])

    def forward(
        self, queries: Tensor, references: Tensor, memory: Memory, groups: int, need_weights: bool = False
    ) -> "DecoderStates":
        """queries (B, Q, C), references (B, Q, 4) -> what each layer gives, before `norm`."""
        frames, position = self._placed(references, memory, queries.dtype)
        states = DecoderStates([queries], [], [], [])
        for layer in self.layers:
            tokens, shapes, padding = memory.tokens, memory.shapes, memory.padding
            queries, *weights = layer(queries, position, frames, tokens, shapes, padding, groups, need_weights)
            states.add(queries, *weights)
        return states

    def _placed(self, references: Tensor, memory: Memory, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Where attention reads at the references (B, Q, L, 4), and the embedding of these (B, Q, C)."""
        if memory.valid_ratios is None:
            scaled, first = references[:, :, None].expand(-1, -1, len(memory.shapes), -1), references
        else:
            # (B, Q, 1, 4) * (B, 1, L, 4)
            scaled = references[:, :, None] * memory.valid_ratios.repeat(1, 1, 2)[:, None]
            first = scaled[:, :, 0]
        embedded = sine_embedding(first, self.norm.weight.shape[0] // 2)
        # In the type of the states: what each layer sends back is then added up without casts.
        return sampling_frames(scaled, self.points), self.ref_point_head(embedded.to(dtype)).to(dtype)


class RFDETRTransformer(nn.Module):
    """Proposals and decoder, with a set of proposal heads for each query group."""

    decoder_class = RFDETRDecoder

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        width, groups = config.d_model, config.group_detr
        self.num_queries = config.num_queries
        self.decoder = self.decoder_class(config)
        self.enc_output = nn.ModuleList([with_init(nn.Linear(width, width), init_xavier) for _ in range(groups)])
        self.enc_output_norm = nn.ModuleList([layer_norm(width) for _ in range(groups)])
        self.enc_out_class_embed = nn.ModuleList([class_head(width, config.num_labels) for _ in range(groups)])
        self.enc_out_bbox_embed = nn.ModuleList([box_head(width) for _ in range(groups)])

    def propose(self, memory: Memory, groups: int) -> Proposals:
        """Rank all cells by their best class logit, group by group, and make boxes of the best.

        The ranking has no gradient. The chosen rows are computed again with one, which is cheaper than keeping the
        activations of every cell in every group for the backward pass. Cells without a valid anchor take part as rows
        of zeros; a chosen one gives a zero box.
        """
        batch, cells, _ = memory.tokens.shape
        heads = _ProposalHeads(self, groups)
        tokens = memory.tokens.masked_fill(memory.invalid[..., None], 0.0)
        with torch.no_grad():
            shared = tokens.flatten(0, 1).expand(groups, -1, -1)  # (G, B * S, C)
            scores = heads.logits(heads.features(shared)).amax(-1).unflatten(1, (batch, cells))  # (G, B, S)
            best = scores.topk(min(self.num_queries, cells), dim=-1).indices  # (G, B, T)
            anchors = memory.anchors.expand(groups, -1, -1, -1).gather(2, best[..., None].expand(-1, -1, -1, 4))
        features = heads.features(_gather_rows(tokens, best))  # (G, B * T, C)
        read = to_autocast(features)
        boxes = refine_boxes(heads.deltas(read), anchors.flatten(1, 2))
        return Proposals(features, *(_ungroup(x, batch) for x in (heads.logits(read), boxes)))

    def references(self, learned: Tensor, boxes: Tensor) -> Tensor:
        """Reference boxes (B, Q, 4): learned deltas (Q, 4) applied to proposals (B, G*T, 4), which get no gradient.

        With fewer cells than queries the proposals fill the first rows whatever their group, and the remaining queries
        have their learned values as box, as in the official model.
        """
        count = boxes.shape[1]
        if count == len(learned):
            return refine_boxes(learned, boxes.detach())
        first, rest = learned.split((count, len(learned) - count))
        refined = refine_boxes(first, boxes.detach())
        return torch.cat([refined, rest.to(refined.dtype).expand(boxes.shape[0], -1, -1)], 1)
