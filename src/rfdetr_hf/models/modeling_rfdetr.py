"""RF-DETR for object detection, with the parameter names of the official checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from ..losses.criterion import LayerOutput, RFDETRCriterion
from .backbone import DropPath, RFDETRViTLayer, WindowedDinov2
from .compilation import CompiledNetwork
from .configuration_rfdetr import RFDETRConfig
from .decoder import (
    DecoderStates,
    Memory,
    Proposals,
    RFDETRDecoderLayer,
    RFDETRTransformer,
    box_head,
    class_head,
    flatten_levels,
)
from .files.pretrained import RFDETRPreTrainedModel
from .geometry import refine_boxes
from .image_processing_rfdetr import RFDETRImageProcessor
from .initialization import init_standard_normal, init_zeros, with_init
from .linears import linears, rows_of, to_autocast
from .post_processing import DEFAULT_THRESHOLD, Threshold, class_thresholds
from .projector import RFDETRBackbone
from .structure import structure_of


@dataclass
class RFDETRObjectDetectionOutput(ModelOutput):
    """Output of `RFDETRForObjectDetection`. Q is num_queries in evaluation and group_detr * num_queries in training.

    Attributes:
        loss: Weighted sum of the loss terms, if labels were given.
        loss_dict: The unweighted terms, `loss_ce`, `loss_bbox`, `loss_giou` and the same with `_0`, `_1`, ... for
            decoder layers before the last and `_enc` for the proposals, and values for logging.
        logits: (B, Q, num_labels), independent sigmoid logits.
        pred_boxes: (B, Q, 4) as (cx, cy, w, h), normalised by the un-padded image, not clamped.
        auxiliary_outputs: For each decoder layer before the last a dict of `logits` and `pred_boxes`; only in training
            or with labels, and if `config.auxiliary_loss`.
        enc_outputs_class: (B, groups * T, num_labels) logits of the proposals; in training or with labels.
        enc_outputs_coord_logits: (B, groups * T, 4) boxes of the proposals (the name is that of transformers).
        init_reference_points: (B, Q, 4), the boxes that the decoder refines.
        last_hidden_state: (B, Q, d_model), the normalised state after the last layer.
        hidden_states: (B, Q, d_model) for the queries and the state after each decoder layer, before the norm; if they
            are asked for, like the next two.
        attentions: For each decoder layer the weights (B * groups, heads, num_queries, num_queries) among queries.
        cross_attentions: For each decoder layer the weights (B, Q, heads, levels, points) of the points that are read.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    init_reference_points: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class DetectorStates(NamedTuple):
    """What the heads of a task read.

    Attributes:
        maps: (B, d_model, h_l, w_l) for each level.
        proposals: Features, logits and boxes of the chosen cells.
        references: (B, Q, 4), the boxes that the decoder refines.
        hidden_states: (layers, B, Q, d_model) after `decoder.norm`: all layers, or the last alone.
        decoder: What the layers gave, before the norm; of the keypoints as many layers as of `hidden_states`.
    """

    maps: list[Tensor]
    proposals: Proposals
    references: Tensor
    hidden_states: Tensor
    decoder: DecoderStates


class RFDETRForObjectDetection(RFDETRPreTrainedModel):
    """RF-DETR detector.

    Args:
        config: Checked again here, since its fields may have been changed after construction.
    """

    config: RFDETRConfig
    task = "detection"
    _no_split_modules = [RFDETRViTLayer.__name__, RFDETRDecoderLayer.__name__]
    output_class = RFDETRObjectDetectionOutput
    backbone_class = RFDETRBackbone
    transformer_class = RFDETRTransformer
    _compiled: CompiledNetwork | None = None

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__(config)
        config.validate()
        self.made_with = structure_of(config)
        width, rows = config.d_model, config.group_detr * config.num_queries
        self.backbone = nn.ModuleList([self.backbone_class(config)])
        self.transformer = self.transformer_class(config)
        self.class_embed = class_head(width, config.num_labels)
        self.bbox_embed = box_head(width)
        self.refpoint_embed = with_init(nn.Embedding(rows, 4), init_zeros)
        self.query_feat = with_init(nn.Embedding(rows, width), init_standard_normal)
        self._add_task(config)
        self.post_init()
        self._freeze_unused()

    def _add_task(self, config: RFDETRConfig) -> None:
        """Make what the task needs besides the detector: its modules and the loss."""
        _check_task(config)
        self.loss_function = RFDETRCriterion(config)

    def initialize_weights(self) -> None:
        """Initialise what was not read from a checkpoint; the proposal heads start as copies of the decoder's heads."""
        super().initialize_weights()
        for heads, source in self._proposal_head_sources():
            for head in heads:
                for copy, original in zip(head.parameters(), source.parameters(), strict=True):
                    init.copy_(copy, original)
        # Loading replaces the parameters and forgets which of them take no gradient; this runs after it.
        self._freeze_unused()

    def _proposal_head_sources(self) -> list[tuple[nn.ModuleList, nn.Module]]:
        transformer = self.transformer
        return [
            (transformer.enc_out_class_embed, self.class_embed),
            (transformer.enc_out_bbox_embed, self.bbox_embed),
        ]

    @property
    def vit(self) -> WindowedDinov2:
        """The encoder."""
        return cast(RFDETRBackbone, self.backbone[0]).vit

    def unused_parameter_names(self) -> set[str]:
        """Parameters that the files have and no output depends on: the mask token and blocks after the last tap."""
        vit = self.vit
        unused = {id(vit.embeddings.mask_token)}
        unused |= {id(parameter) for layer in vit.unused_layers for parameter in layer.parameters()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in unused}

    def _freeze_unused(self) -> None:
        for name in self.unused_parameter_names():
            self.get_parameter(name).requires_grad_(False)

    def freeze_backbone(self) -> None:
        """Take the encoder out of training; the projector stays in it."""
        self.vit.requires_grad_(False)

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Names of the loss terms of the last layer, as in `loss_dict`."""
        return tuple(self.loss_function.coefficients)

    def enable_activation_checkpointing(self) -> None:
        """Recompute the blocks of encoder and decoder in the backward pass."""
        # Transformers renames the method in version 6.
        name = "activation_checkpointing_enable"
        getattr(self, name if hasattr(self, name) else "gradient_checkpointing_enable")({"use_reentrant": False})

    def detect(
        self,
        outputs: Any,
        processor: RFDETRImageProcessor,
        threshold: Threshold = DEFAULT_THRESHOLD,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        *,
        pixel_mask: Tensor | None = None,
        as_rle: bool = False,
    ) -> list[dict[str, Any]]:
        """Turn the outputs of `forward` into what the task finds, with the image processor's function for the task.

        Args:
            outputs: What `forward` returned.
            processor: Of the model.
            threshold: Detections with a higher score are kept; a negative one keeps all. Also one for each class, as a
                sequence or as a dict of names or ids, in which a class that is left out has 0.5.
            target_sizes: (B, 2) height and width of the images; without it boxes are in [0, 1].
            pixel_mask: (B, H, W) that `forward` got, if it got one; masks need it.
            as_rle: Masks as COCO run-lengths.

        Returns:
            Per image `scores`, `labels`, `boxes`, and what the task has besides.
        """
        return processor.post_process_object_detection(outputs, self.thresholds(threshold), target_sizes)

    def thresholds(self, threshold: Threshold) -> float | Tensor:
        """`threshold` with a value for each class, from a dict of class names or ids; see `class_thresholds`."""
        return class_thresholds(threshold, self.config.num_labels, self.config.id2label)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[dict[str, Tensor]] | None = None,
        num_boxes: Tensor | float | None = None,
        drop_path_rate: float | None = None,
        seed: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RFDETRObjectDetectionOutput | tuple:
        """Detect objects, and compute the loss if there are labels.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W multiples of `config.size_divisor`.
            pixel_mask: (B, H, W), 1 at the image and 0 at padding, which is to the right and below. None: no padding.
            labels: For each image `class_labels` (n,) int64 and `boxes` (n, 4) as (cx, cy, w, h) in [0, 1], and what
                the task needs; `image_id`, see `seed`.
            num_boxes: What the loss sums are divided by: boxes x groups of everything one optimizer step sees, per
                process. By default boxes x groups of this batch, averaged over the processes, at least 1.
            drop_path_rate: Probability to drop a residual branch in training: 0 at the first encoder block, linear to
                this at the last. By default that of the configuration.
            seed: What random points of the mask loss derive from in training. With one seed for a complete optimizer
                step, the loss of an image (labels with `image_id`) does not depend on how the step is split into
                micro-batches and processes. By default each pass draws its own from torch's generator. In evaluation
                the points are always the same.
            output_attentions, output_hidden_states: Give the states of the decoder and its attention weights; by
                default what the configuration says.
            return_dict: False for a tuple.

        Raises:
            ValueError: for pixels that are no normalised floats, an empty batch, shapes that do not fit together, a
                mask on the host that is no rectangle from the top left, or a rate that is not in [0, 1).
        """
        _check_batch(pixel_values, pixel_mask, labels)
        supervised = self.training or labels is not None
        every_layer = supervised and self.config.auxiliary_loss
        need_weights = self.config.output_attentions if output_attentions is None else output_attentions
        drop_path = self.vit.drop_path(pixel_values.shape[0], drop_path_rate)
        flags = every_layer, supervised, bool(need_weights)
        if self._compiled is None:
            states, layers = self.network(pixel_values, pixel_mask, None, drop_path, *flags)
        else:
            states, layers = self._compiled(pixel_values, pixel_mask, drop_path, *flags)
        fields = self._output_fields(states, layers)
        if labels is not None:
            seed = seed if self.training else 0
            fields["loss_dict"] = self.loss_function(layers, labels, self._groups, num_boxes, seed)
            fields["loss"] = self.loss_function.weighted_sum(fields["loss_dict"])
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            fields["hidden_states"] = tuple(states.decoder.hidden)
        if need_weights:
            fields["attentions"] = tuple(states.decoder.attentions)
            fields["cross_attentions"] = tuple(states.decoder.cross_attentions)
        # Made at once: the order of a ModelOutput is the order in which its fields get a value.
        output = self.output_class(**fields)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    @property
    def _groups(self) -> int:
        """Query groups in use: all in training, the first in evaluation."""
        return self.config.group_detr if self.training else 1

    def compile_network(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile all that `forward` does between pixels and predictions; matching and losses stay as they are.

        The names of the parameters stay too. A copy of the model is not compiled.

        Args:
            backend: of `torch.compile`, by name or as a function.
        """
        self._compiled = CompiledNetwork(self, backend)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}

    def network(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        positions: Tensor | None,
        drop_path: DropPath | None,
        every_layer: bool,
        supervised: bool,
        need_weights: bool,
    ) -> tuple[DetectorStates, list[LayerOutput]]:
        """What `forward` makes outputs and losses of.

        Args:
            pixel_values: (B, 3, H, W), checked.
            pixel_mask: (B, H, W) or None.
            positions: (H * W / patch**2, D), the resized position rows; None to resize them here.
            drop_path: what `drop_path` of the encoder gives.
            every_layer: whether all decoder layers are normed and predict.
            supervised: whether the encoder's proposals are among the predictions.
            need_weights: whether attention weights are kept.

        Returns:
            The states, and the predictions: the last layer, then the earlier ones, then the proposals.
        """
        states = self._decode(pixel_values, pixel_mask, every_layer, drop_path, need_weights, positions)
        return states, self._layers(states, pixel_values, pixel_mask, supervised)

    def _decode(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        every_layer: bool,
        drop_path: DropPath | None = None,
        need_weights: bool = False,
        positions: Tensor | None = None,
    ) -> DetectorStates:
        maps = self.backbone[0](pixel_values, drop_path, positions)
        memory = flatten_levels(maps, pixel_mask)
        proposals, references, queries = self._queries(memory)
        queries = queries.expand(references.shape[0], -1, -1)
        states = self.transformer.decoder(queries, references, memory, self._groups, need_weights)
        return DetectorStates(maps, proposals, references, self._normed(states, every_layer), states)

    def _normed(self, states: DecoderStates, every_layer: bool) -> Tensor:
        """(layers, B, Q, d_model): the states after all layers, or the last alone, through the decoder's norm."""
        return self.transformer.decoder.norm(torch.stack(states.hidden[1:] if every_layer else states.hidden[-1:]))

    def _queries(self, memory: Memory) -> tuple[Proposals, Tensor, Tensor]:
        """The proposals, the boxes (B, Q, 4) that the decoder starts from, and its queries (Q, d_model)."""
        proposals = self.transformer.propose(memory, self._groups)
        rows = self._groups * self.config.num_queries
        points, queries = (rows_of(t, rows, memory.tokens.device) for t in (self.refpoint_embed, self.query_feat))
        return proposals, self.transformer.references(points, proposals.boxes), queries

    def _layers(
        self, states: DetectorStates, pixel_values: Tensor, pixel_mask: Tensor | None, supervised: bool
    ) -> list[LayerOutput]:
        """Predictions of the last decoder layer, and if `supervised` those of the earlier ones and of the encoder."""
        # Of (n, B, Q, C) and (n, B, Q, 4).
        hidden = to_autocast(states.hidden_states)
        classify, *functions = linears([self.class_embed], *([layer] for layer in self.bbox_embed.layers))
        boxes = refine_boxes(self.bbox_embed(hidden, functions), states.references)
        *earlier, last = zip(classify(hidden).unbind(), boxes.unbind(), strict=True)
        layers = [LayerOutput("", *last)]
        if supervised:
            layers += [LayerOutput(f"_{index}", *each) for index, each in enumerate(earlier)]
            layers.append(LayerOutput("_enc", states.proposals.logits, states.proposals.boxes))
        return layers

    def _output_fields(self, states: DetectorStates, layers: list[LayerOutput]) -> dict[str, Any]:
        last, *others = layers
        fields: dict[str, Any] = {
            "logits": last.logits,
            "pred_boxes": last.boxes,
            "init_reference_points": states.references,
            "last_hidden_state": states.hidden_states[-1],
        }
        if others:
            *earlier, encoder = others
            fields["auxiliary_outputs"] = [{"logits": layer.logits, "pred_boxes": layer.boxes} for layer in earlier]
            fields |= {"enc_outputs_class": encoder.logits, "enc_outputs_coord_logits": encoder.boxes}
        return fields


def _check_task(config: RFDETRConfig) -> None:
    if config.num_keypoints_per_class:
        raise ValueError(
            f"num_keypoints_per_class is {config.num_keypoints_per_class}: this configuration is that of a keypoint "
            "model, use RFDETRForKeypointDetection."
        )


def _check_batch(pixel_values: Tensor, pixel_mask: Tensor | None, labels: Sequence[Any] | None) -> None:
    batch = pixel_values.shape[0]
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixel_values.dtype}: the model takes normalised floats, which RFDETRImageProcessor "
            "makes of pictures."
        )
    if not batch:
        raise ValueError("pixel_values hold no image: leave out the empty batch.")
    if pixel_mask is not None and tuple(pixel_mask.shape) != (batch, *pixel_values.shape[-2:]):
        raise ValueError(
            f"pixel_mask has the shape {tuple(pixel_mask.shape)}, but pixel_values {tuple(pixel_values.shape)} "
            "need (batch, H, W)."
        )
    # Elsewhere the host would wait for the values.
    if pixel_mask is not None and pixel_mask.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_mask(pixel_mask)
    if labels is not None and len(labels) != batch:
        raise ValueError(f"{len(labels)} labels for a batch of {batch} images: give one dict for each image.")


def _check_mask(mask: Tensor) -> None:
    """Refuse masks (B, H, W) that are not 1 in one rectangle from the top left and 0 besides."""
    is_image = mask == 1
    rows, columns = is_image[:, :, 0], is_image[:, 0]  # (B, H), (B, W)
    sound = (is_image | (mask == 0)).flatten(1).all(1) & is_image[:, 0, 0]
    sound &= (is_image == rows[:, :, None] & columns[:, None]).flatten(1).all(1)
    sound &= (rows[:, 1:] <= rows[:, :-1]).all(1) & (columns[:, 1:] <= columns[:, :-1]).all(1)
    if not sound.all():
        raise ValueError(
            f"pixel_mask of image {int((~sound).nonzero()[0, 0])} of the batch: 1 (or True) is the image, which begins "
            "at the top left, and 0 the padding to the right and below; an inverted mask needs 1 - mask."
        )
