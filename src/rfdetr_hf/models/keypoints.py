"""RF-DETR for keypoints: beside each query the decoder has a state for each keypoint (GroupPose, arXiv:2308.07313).

Keypoints lie in compact layout inside the decoder: those of class 0, then those of class 1, ... Predictions have the
padded layout: as many slots for each class of the schema as the largest class has keypoints, zero where unused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from ..losses.criterion import LayerOutput, RFDETRCriterion
from ..losses.keypoints import KEYPOINT_CHANNELS, KeypointTerms
from .backbone import DropPath, RFDETRViTLayer
from .configuration_rfdetr import RFDETRConfig
from .decoder import (
    DECODER_NORM_EPS,
    MLP,
    DecoderStates,
    DeformableAttention,
    GroupSelfAttention,
    Memory,
    RFDETRDecoder,
    RFDETRDecoderLayer,
    RFDETRTransformer,
    flatten_levels,
    grouped_linears,
    join_maps,
    layer_norm,
)
from .geometry import LevelShapes, geometry_dtype
from .image_processing_rfdetr import RFDETRImageProcessor
from .initialization import init_torch_default, init_xavier, init_xavier_zero_bias, init_zeros, with_init
from .linears import Linear, is_wrapped, linears
from .modeling_rfdetr import DetectorStates, RFDETRForObjectDetection
from .post_processing import DEFAULT_THRESHOLD, Threshold
from .projector import MultiScaleProjector, RFDETRBackbone

INSTANCE_SCALE = 1e-6
_CLASS_CHANNEL = 7


@dataclass
class RFDETRKeypointDetectionOutput(ModelOutput):
    """Output of `RFDETRForKeypointDetection`: that of the detector, and the keypoints.

    Each class of the schema has K slots, K being the largest number of keypoints of a class; slots that a class does
    not use are 0. The channels of a slot: x and y in [0, 1] of the un-padded image, not clamped; the logits of
    "findable" (the annotators gave it) and "visible"; log l11, l21, log l22 of the lower triangular L whose product
    L Lᵀ, divided by the area of the box, is the precision of (x, y); what the keypoint adds to the logit of its class.

    They follow the boxes; the other fields are those of `RFDETRObjectDetectionOutput`.

    Attributes:
        pred_keypoints: (B, Q, classes of the schema * K, 8). The dicts of `auxiliary_outputs` have it as well.
        enc_outputs_keypoints: (B, groups * T, classes of the schema * K, 8) of the proposals; in training or with
            labels.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_keypoints: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    enc_outputs_keypoints: Tensor | None = None
    init_reference_points: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


def keypoint_head(width: int) -> MLP:
    """The head of the channels of a keypoint. It starts at zero: at the centre of the box, with unit precision."""
    return MLP([width, width, width, KEYPOINT_CHANNELS], [init_torch_default, init_torch_default, init_zeros])


class KeypointQueries(nn.Module):
    """The first state of each keypoint: a learned vector, modulated by the query that the keypoint belongs to."""

    def __init__(self, keypoints: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(keypoints, width))
        first, last = nn.Linear(width, width), nn.Linear(width, 3 * width)
        self.adaLN_modulation = nn.Sequential(
            with_init(first, init_xavier), nn.GELU(), with_init(last, init_xavier_zero_bias)
        )
        self.out_proj = with_init(nn.Linear(width, width), init_xavier)
        with_init(self, KeypointQueries._initialize)

    def _initialize(self) -> None:
        init.xavier_uniform_(self.queries)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., keypoints, C)."""
        first, activation, last = self.adaLN_modulation
        widen, modulate, output = linears([first], [last], [self.out_proj])
        scale, shift, gate = modulate(activation(widen(x)))[..., None, :].chunk(3, -1)
        normed = F.layer_norm(self.queries, self.queries.shape[-1:], eps=DECODER_NORM_EPS)
        return gate * output((1 + scale) * normed + shift) + self.queries


class RFDETRKeypointDecoderLayer(RFDETRDecoderLayer):
    """The layer of the detector, and behind it for the keypoints: attention among a query and its keypoints, deformable
    cross-attention at the query's box, feed-forward; norms after each.
    """

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__(config)
        width = config.d_model
        self.instance_kp_layer_scale = nn.Parameter(torch.empty(1))
        self.kp_inst_self_attn = GroupSelfAttention(config)
        self.kp_inst_norm, self.kp_norm = layer_norm(width), layer_norm(width)
        self.kp_cross_attn, self.kp_cross_attn_norm = DeformableAttention(config), layer_norm(width)
        self.kp_linear1 = with_init(nn.Linear(width, 4 * width), init_xavier)
        self.kp_linear3 = with_init(nn.Linear(4 * width, width), init_xavier)
        self.kp_norm5 = layer_norm(width)
        with_init(self, RFDETRKeypointDecoderLayer._initialize)

    def _initialize(self) -> None:
        init.constant_(self.instance_kp_layer_scale, INSTANCE_SCALE)

    def forward(
        self,
        x: Tensor,
        keypoints: Tensor,
        position: Tensor,
        keypoint_position: Tensor,
        frames: Tensor,
        tokens: Tensor,
        keypoint_tokens: Tensor,
        shapes: LevelShapes,
        padding: Tensor | None,
        groups: int,
        attends: Tensor | None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """x, position (B, Q, C); keypoints (B, Q, N, C); frames (B, Q, L, 4).

        `keypoint_position` (1 + N, C) begins with zeros for the query. `tokens` and `keypoint_tokens` (B, S, C) are
        what queries and keypoints attend to. `attends` (1 + N, 1 + N) says which of a query and its keypoints see
        which; None for all. Every tensor is an argument: reentrant checkpointing cuts the graph at arguments alone.
        """
        x, weights, cross_weights = super().forward(x, position, frames, tokens, shapes, padding, groups, need_weights)
        own, cross = self.kp_inst_self_attn, self.kp_cross_attn
        output, widen, narrow, *rest = linears(
            [own.out_proj], [self.kp_linear1], [self.kp_linear3], *cross.layers(),
            tensors=[] if is_wrapped(own) else [own.in_proj_weight, own.in_proj_bias],
        )  # fmt: skip
        x, keypoints = self._exchange(x, keypoints, keypoint_position, attends, output, rest[3:])
        count = keypoints.shape[2]
        query = (keypoints + position[:, :, None]).flatten(1, 2)  # (B, Q * N, C), at (B, Q * N, L, 4)
        frames = frames[:, :, None].expand(-1, -1, count, -1, -1).flatten(1, 2)
        read, _ = cross(query, frames, keypoint_tokens, shapes, padding, *rest[:3])
        keypoints = self.kp_cross_attn_norm(keypoints + self._drop(read.unflatten(1, (-1, count)), self.dropout))
        hidden = self._drop(F.relu(widen(keypoints)), self.activation_dropout)
        keypoints = self.kp_norm5(keypoints + self._drop(narrow(hidden), self.dropout))
        return x, keypoints, weights, cross_weights

    def _exchange(
        self,
        x: Tensor,
        keypoints: Tensor,
        keypoint_position: Tensor,
        attends: Tensor | None,
        output: Linear,
        packed: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([x[:, :, None], keypoints], 2)  # (B, Q, 1 + N, C)
        position = keypoint_position.to(tokens.dtype)[None]
        answer, _ = self.kp_inst_self_attn(tokens.flatten(0, 1), position, 1, output, packed, attends)
        answer = self._drop(answer.view_as(tokens), self.dropout)
        x = self.kp_inst_norm(x + answer[:, :, 0] * self.instance_kp_layer_scale)
        return x, self.kp_norm(keypoints + answer[:, :, 1:])


class RFDETRKeypointDecoder(RFDETRDecoder):
    """The decoder with keypoints."""

    layer_class = RFDETRKeypointDecoderLayer
    keypoint_class_mask: Tensor

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__(config)
        schema = config.num_keypoints_per_class
        self.keypoint_pos_embed = nn.Parameter(torch.empty(sum(schema), config.d_model))
        self.several_classes = sum(count > 0 for count in schema) > 1
        # True = blocked. The official files have it, although the schema implies it.
        self.register_buffer("keypoint_class_mask", _blocked(schema))
        with_init(self, RFDETRKeypointDecoder._initialize, schema=list(schema))

    def _initialize(self, schema: Sequence[int]) -> None:
        init.xavier_uniform_(self.keypoint_pos_embed)
        init.copy_(self.keypoint_class_mask, _blocked(schema))

    def forward(
        self,
        queries: Tensor,
        keypoints: Tensor,
        references: Tensor,
        memory: Memory,
        keypoint_tokens: Tensor,
        groups: int,
        need_weights: bool = False,
    ) -> DecoderStates:
        """queries (B, Q, C), keypoints (B, Q, N, C), references (B, Q, 4) -> what each layer gives."""
        frames, position = self._placed(references, memory, queries.dtype)
        attends = ~self.keypoint_class_mask if self.several_classes else None
        keypoint_position = F.pad(self.keypoint_pos_embed, (0, 0, 1, 0))
        states = DecoderStates([queries], [], [], [])
        for layer in self.layers:
            queries, keypoints, *weights = layer(
                queries, keypoints, position, keypoint_position, frames, memory.tokens, keypoint_tokens,
                memory.shapes, memory.padding, groups, attends, need_weights,
            )  # fmt: skip
            states.add(queries, *weights)
            states.keypoints.append(keypoints)
        return states


def _blocked(schema: Sequence[int]) -> Tensor:
    """(1 + N, 1 + N), True between keypoints of different classes; row and column 0 are the instance."""
    classes = torch.tensor([index for index, count in enumerate(schema) for _ in range(count)])
    blocked = classes[:, None] != classes
    return F.pad(blocked, (1, 0, 1, 0))


def _active(schema: Sequence[int]) -> Tensor:
    """(classes of the schema, K), True at slots in use."""
    return torch.arange(max(schema)) < torch.tensor(schema)[:, None]


class RFDETRKeypointTransformer(RFDETRTransformer):
    """Proposals and decoder, both with keypoints."""

    decoder_class = RFDETRKeypointDecoder

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__(config)
        keypoints, width = sum(config.num_keypoints_per_class), config.d_model
        self.keypoint_query_initializer = KeypointQueries(keypoints, width)
        self.keypoint_query_initializer_enc = KeypointQueries(keypoints, width)
        self.enc_out_keypoint_embed = nn.ModuleList([keypoint_head(width) for _ in range(config.group_detr)])

    def propose_keypoints(self, grouped: Tensor, batch: int) -> Tensor:
        """Features of the chosen cells (G, B*T, C) -> channels of their keypoints (B, G*T, N, 8), not placed yet."""
        x = self.keypoint_query_initializer_enc(grouped)
        groups, _, count, _ = x.shape
        x = x.flatten(1, 2)  # (G, B * T * N, C)
        heads: list[Any] = list(self.enc_out_keypoint_embed)[:groups]
        *hidden, last = grouped_linears(zip(*(head.layers for head in heads), strict=True), groups)
        for layer in hidden:
            x = F.relu(layer(x))
        x = last(x)
        return x.unflatten(1, (batch, -1, count)).transpose(0, 1).flatten(1, 2)  # (G, B, T, N, 8) -> (B, G*T, N, 8)


class RFDETRKeypointBackbone(RFDETRBackbone):
    """Encoder with two projectors: one for proposals and boxes, one for what the keypoints attend to."""

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__(config)
        self.cross_attn_projector = MultiScaleProjector(config)

    def forward(
        self, pixel_values: Tensor, drop_path: DropPath | None = None, positions: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 3, H, W) -> the levels of both projectors, (B, d_model, h_l, w_l) each."""
        self.check(pixel_values)
        taps = self.vit(pixel_values, drop_path, positions)
        return self.projector(taps), self.cross_attn_projector(taps)


class RFDETRForKeypointDetection(RFDETRForObjectDetection):
    """RF-DETR detector with keypoints.

    `forward` is that of the detector; labels need `keypoints` besides, (n, K, 3) of (x, y, v): x and y in [0, 1] of the
    un-padded image, v = 0 not labelled, 1 labelled but hidden, 2 visible. The loss has the terms `loss_keypoints_l1`,
    `loss_keypoints_findable`, `loss_keypoints_visible` and `loss_keypoints_nll`.
    """

    task = "keypoints"
    transformer: "RFDETRKeypointTransformer"
    _kp_active_mask: Tensor
    output_class = RFDETRKeypointDetectionOutput
    backbone_class = RFDETRKeypointBackbone
    transformer_class = RFDETRKeypointTransformer
    _no_split_modules = [RFDETRViTLayer.__name__, RFDETRKeypointDecoderLayer.__name__]
    _keys_to_ignore_on_load_unexpected = []
    # Both repeat the schema, and old official files lack the first.
    _keys_to_ignore_on_load_missing = [r"^_kp_active_mask$", r"keypoint_class_mask$"]

    def _add_task(self, config: RFDETRConfig) -> None:
        schema = config.num_keypoints_per_class
        if not schema:
            raise ValueError("num_keypoints_per_class is empty: give the number of keypoints of each class.")
        self.keypoint_embed = keypoint_head(config.d_model)
        self.register_buffer("_kp_active_mask", _active(schema))
        with_init(self, RFDETRForKeypointDetection._initialize)
        self.loss_function = RFDETRCriterion(config, KeypointTerms(config))

    def _initialize(self) -> None:
        init.copy_(self._kp_active_mask, _active(self.config.num_keypoints_per_class))

    def _proposal_head_sources(self) -> list[tuple[nn.ModuleList, nn.Module]]:
        return [*super()._proposal_head_sources(), (self.transformer.enc_out_keypoint_embed, self.keypoint_embed)]

    def detect(
        self,
        outputs: Any,
        processor: RFDETRImageProcessor,
        threshold: Threshold = DEFAULT_THRESHOLD,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """See `RFDETRForObjectDetection.detect`; each image has `keypoints` and their precision besides."""
        schema = self.config.num_keypoints_per_class
        return processor.post_process_keypoint_detection(outputs, schema, self.thresholds(threshold), target_sizes)

    @torch.no_grad()
    def reset_keypoint_precision(self) -> None:
        """Set the predicted precision of all keypoints to 1, as the official trainer does before fine-tuning."""
        heads: list[Any] = [self.keypoint_embed, *self.transformer.enc_out_keypoint_embed]
        for head in heads:
            head.layers[-1].weight[4:7] = 0
            head.layers[-1].bias[4:7] = 0

    def _decode(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        every_layer: bool,
        drop_path: DropPath | None = None,
        need_weights: bool = False,
        positions: Tensor | None = None,
    ) -> DetectorStates:
        maps, keypoint_maps = self.backbone[0](pixel_values, drop_path, positions)
        memory = flatten_levels(maps, pixel_mask)
        tokens = join_maps(keypoint_maps)
        proposals, references, queries = self._queries(memory)
        batch, transformer = references.shape[0], self.transformer
        states = transformer.decoder(
            queries.expand(batch, -1, -1),
            transformer.keypoint_query_initializer(queries).expand(batch, -1, -1, -1),
            references,
            memory,
            tokens,
            self._groups,
            need_weights,
        )
        kept = states._replace(keypoints=states.keypoints if every_layer else states.keypoints[-1:])
        return DetectorStates(maps, proposals, references, self._normed(states, every_layer), kept)

    def _layers(
        self, states: DetectorStates, pixel_values: Tensor, pixel_mask: Tensor | None, supervised: bool
    ) -> list[LayerOutput]:
        layers = super()._layers(states, pixel_values, pixel_mask, supervised)
        deltas = self.keypoint_embed(torch.stack(states.decoder.keypoints))  # (n, B, Q, N, 8)
        parts = [(deltas, states.references)]
        if supervised:
            proposed = states.proposals
            deltas = self.transformer.propose_keypoints(proposed.grouped, len(proposed.boxes))
            parts.append((deltas[None], proposed.boxes))
        classes, keypoints, boosts = len(self.config.num_keypoints_per_class), [], []
        for deltas, boxes in parts:
            own = self._padded(place_keypoints(deltas, boxes))
            boost = own.unflatten(3, (classes, -1))[..., _CLASS_CHANNEL].sum(-1)  # (n, B, Q, classes)
            boosts += F.pad(boost, (0, self.config.num_labels - classes)).unbind()
            keypoints += own.unbind()
        last = len(states.decoder.keypoints) - 1  # comes first among the layers
        order = [last, *range(last), *range(last + 1, len(keypoints))]
        return [
            layer._replace(logits=layer.logits + boosts[index], keypoints=keypoints[index])
            for layer, index in zip(layers, order, strict=True)
        ]

    def _padded(self, keypoints: Tensor) -> Tensor:
        """(..., N, 8) -> (..., classes * K, 8)."""
        schema = self.config.num_keypoints_per_class
        if len(set(schema)) == 1:
            return keypoints
        parts = keypoints.split(schema, dim=-2)
        return torch.cat([F.pad(part, (0, 0, 0, max(schema) - part.shape[-2])) for part in parts], -2)

    def _output_fields(self, states: DetectorStates, layers: list[LayerOutput]) -> dict[str, Any]:
        fields = super()._output_fields(states, layers)
        fields["pred_keypoints"] = layers[0].keypoints
        for earlier, layer in zip(fields.get("auxiliary_outputs", []), layers[1:-1], strict=True):
            earlier["pred_keypoints"] = layer.keypoints
        if len(layers) > 1:
            fields["enc_outputs_keypoints"] = layers[-1].keypoints
        return fields


def place_keypoints(deltas: Tensor, boxes: Tensor) -> Tensor:
    """Turn x and y from the frame of their boxes to that of the image: `delta * box_wh + box_xy`.

    Numbers that are not finite count as 0.

    Args:
        deltas: (..., B, Q, N, 8).
        boxes: (B, Q, 4).
    """
    deltas = deltas.to(geometry_dtype(torch.promote_types(deltas.dtype, boxes.dtype)))
    deltas = deltas.masked_fill((deltas - deltas) != 0, 0)  # so of NaN and of infinite numbers
    centre, size = boxes.to(deltas.dtype)[:, :, None].split(2, -1)  # (B, Q, 1, 2)
    shift, rest = deltas.split((2, deltas.shape[-1] - 2), -1)
    return torch.cat([shift * size + centre, rest], -1)
