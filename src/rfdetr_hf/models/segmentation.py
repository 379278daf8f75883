"""RF-DETR for instance segmentation: the detector, and a head that makes masks of its states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from ..losses.criterion import LayerOutput, RFDETRCriterion
from ..losses.masks import MaskFactors, MaskTerms
from .configuration_rfdetr import RFDETRConfig
from .convolution import convolve
from .decoder import DECODER_NORM_EPS
from .geometry import full_sizes, geometry_dtype, valid_sizes
from .image_processing_rfdetr import RFDETRImageProcessor
from .initialization import init_norm, init_torch_default, init_zeros, with_init
from .linears import to_autocast
from .modeling_rfdetr import DetectorStates, RFDETRForObjectDetection
from .post_processing import DEFAULT_THRESHOLD, Threshold

MASK_BLOCK_NORM_EPS = 1e-6


@dataclass
class RFDETRInstanceSegmentationOutput(ModelOutput):
    """Output of `RFDETRForInstanceSegmentation`: that of the detector, and the masks.

    The masks follow the boxes; the other fields are those of `RFDETRObjectDetectionOutput`.

    Attributes:
        pred_masks: (B, Q, H // r, W // r) logits with r = `mask_downsample_ratio`, of the complete canvas, padding
            included; only in evaluation. In training the loss works on the factors of the masks, which are never
            multiplied out for all queries and groups.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    enc_outputs_class: Tensor | None = None
    enc_outputs_coord_logits: Tensor | None = None
    init_reference_points: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class MaskBlock(nn.Module):
    """Depthwise 3 x 3 convolution, norm, linear layer and GELU, around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = with_init(nn.Conv2d(width, width, 3, padding=1, groups=width), init_torch_default)
        self.norm = with_init(nn.LayerNorm(width, eps=MASK_BLOCK_NORM_EPS), init_norm)
        self.pwconv1 = with_init(nn.Linear(width, width), init_torch_default)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(convolve(self.dwconv, x).permute(0, 2, 3, 1))
        return x + F.gelu(self.pwconv1(hidden)).permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """Norm and two linear layers with GELU between them, around which the input is added."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm_in = with_init(nn.LayerNorm(width, eps=DECODER_NORM_EPS), init_norm)
        widen, narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.layers = nn.Sequential(
            with_init(widen, init_torch_default), nn.GELU(), with_init(narrow, init_torch_default)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm_in(x))


class SegmentationHead(nn.Module):
    """Features of cells and of queries whose products are the masks.

    Each decoder layer has a block that works on the features of the block before it; the projections behind them are
    shared by all layers and by the encoder, whose masks use the features before the first block.
    """

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        width = config.d_model
        self.downsample_ratio = config.mask_downsample_ratio
        self.blocks = nn.ModuleList([MaskBlock(width) for _ in range(config.decoder_layers)])
        self.spatial_features_proj = with_init(nn.Conv2d(width, width, 1), init_torch_default)
        self.query_features_block = QueryBlock(width, config.intermediate_size)
        self.query_features_proj = with_init(nn.Linear(width, width), init_torch_default)
        self.bias = nn.Parameter(torch.empty(1))
        with_init(self, init_zeros)

    def forward(
        self, level: Tensor, image_size: tuple[int, int], hidden_states: Tensor, proposals: Tensor | None
    ) -> list[MaskFactors]:
        """Factors of the masks of some layers.

        Args:
            level: (B, C, h, w), the first level of the projector.
            image_size: (H, W) of the input.
            hidden_states: (n, B, Q, C), the normalised states of the last n decoder layers.
            proposals: (B, G*T, C), features of the chosen cells; None if the encoder is not asked for.

        Returns:
            One for each layer of `hidden_states`, and one for the encoder if there are proposals.
        """
        size = [side // self.downsample_ratio for side in image_size]
        x = F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        skipped, maps = len(self.blocks) - len(hidden_states), []
        encoder = [x]
        for index, block in enumerate(self.blocks):
            x = block(x)
            maps += [x] if index >= skipped else []
        # The projections run once for all layers, and once for the encoder, whose rows may be fewer.
        read = [self.query_features_proj(self.query_features_block(hidden_states)).unbind()]
        if proposals is not None:
            read.append((self.query_features_proj(self.query_features_block(proposals)),))
            maps += encoder
        joined = convolve(self.spatial_features_proj, to_autocast(torch.cat(maps)))
        features = joined.unflatten(0, (len(maps), -1)).unbind()
        queries = [own for each in read for own in each]
        return [MaskFactors(*own, self.bias) for own in zip(features, queries, strict=True)]


class RFDETRForInstanceSegmentation(RFDETRForObjectDetection):
    """RF-DETR detector with masks.

    `forward` is that of the detector; labels need `masks` besides, (n, h, w) bool or uint8 of any size, which cover the
    un-padded image, and the loss has the terms `loss_mask_ce` and `loss_mask_dice`.
    """

    task = "segmentation"
    output_class = RFDETRInstanceSegmentationOutput

    def _add_task(self, config: RFDETRConfig) -> None:
        super()._add_task(config)
        self.segmentation_head = SegmentationHead(config)
        self.loss_function = RFDETRCriterion(config, MaskTerms(config))

    def detect(
        self,
        outputs: Any,
        processor: RFDETRImageProcessor,
        threshold: Threshold = DEFAULT_THRESHOLD,
        target_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """See `RFDETRForObjectDetection.detect`; each image has `masks` besides."""
        return processor.post_process_instance_segmentation(
            outputs, self.thresholds(threshold), target_sizes, **options
        )

    def _layers(
        self, states: DetectorStates, pixel_values: Tensor, pixel_mask: Tensor | None, supervised: bool
    ) -> list[LayerOutput]:
        layers = super()._layers(states, pixel_values, pixel_mask, supervised)
        proposals = states.proposals.features if supervised else None
        size = tuple(pixel_values.shape[-2:])
        factors = self.segmentation_head(states.maps[0], size, states.hidden_states, proposals)
        share = None if pixel_mask is None else _image_share(pixel_mask, states.references.dtype)
        factors = [each._replace(image_share=share) for each in factors]
        decoder = len(states.hidden_states)
        # The last decoder layer first, as the layers are.
        factors = [factors[decoder - 1], *factors[: decoder - 1], *factors[decoder:]]
        return [layer._replace(masks=masks) for layer, masks in zip(layers, factors, strict=True)]

    def _output_fields(self, states: DetectorStates, layers: list[LayerOutput]) -> dict[str, Any]:
        fields = super()._output_fields(states, layers)
        if not self.training and layers[0].masks is not None:
            fields["pred_masks"] = layers[0].masks.dense()
        return fields


def _image_share(pixel_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 2) share of (width, height) of a padded batch that is image."""
    height, width = pixel_mask.shape[1:]
    complete = full_sizes(len(pixel_mask), (height, width), pixel_mask.device)
    return (valid_sizes(pixel_mask == 0) / complete).to(geometry_dtype(dtype))
