"""From the encoder's maps to the levels that the detector reads, and the two joined as the official layout has them."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import DropPath, WindowedDinov2
from .configuration_rfdetr import RFDETRConfig
from .convolution import convolve
from .initialization import init_norm, init_torch_default, with_init
from .linears import is_changed, joined


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a (B, C, h, w) map."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps=eps)
        with_init(self, init_norm)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvUnit(nn.Module):
    """Convolution without bias, channel norm (named `bn` in the files), activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, eps: float, stride: int = 1, activation: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.conv = with_init(conv, init_torch_default)
        self.bn = ChannelLayerNorm(outputs, eps)
        self.activation = activation()

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """`weight`: the convolution's, where it is cast already."""
        conv = self.conv
        if weight is None or torch.compiler.is_compiling():
            return self.activation(self.bn(convolve(conv, x)))
        return self.activation(self.bn(F.conv2d(x, weight, None, conv.stride, cast(tuple[int, int], conv.padding))))


class Bottleneck(nn.Module):
    """Two 3 x 3 units without a shortcut."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.cv1 = ConvUnit(channels, channels, 3, eps)
        self.cv2 = ConvUnit(channels, channels, 3, eps)

    def forward(self, x: Tensor, first: Tensor | None, second: Tensor | None) -> Tensor:
        """With the weights of the convolutions, see `ConvUnit`."""
        return self.cv2(self.cv1(x, first), second)


class C2f(nn.Module):
    """Split the channels in two, pass the second half through a chain of bottlenecks, fuse all intermediate results."""

    def __init__(self, inputs: int, outputs: int, blocks: int, eps: float) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = ConvUnit(inputs, 2 * half, 1, eps)
        self.m = nn.ModuleList([Bottleneck(half, eps) for _ in range(blocks)])
        self.cv2 = ConvUnit((2 + blocks) * half, outputs, 1, eps)

    def forward(self, x: Tensor) -> Tensor:
        units: list[Any] = [self.cv1, *(unit for block in self.m for unit in block.children()), self.cv2]
        # Autocast copies each weight by a launch of its own.
        together = not any(is_changed(unit.conv, nn.Conv2d) for unit in units)
        first, *weights, last = joined([[unit.conv.weight] for unit in units]) if together else [None] * len(units)
        parts = list(self.cv1(x, first).chunk(2, 1))
        for block, *own in zip(self.m, weights[::2], weights[1::2], strict=True):
            parts.append(block(parts[-1], *own))
        return self.cv2(torch.cat(parts, 1), last)


def _sampling(scale: str, channels: int, eps: float) -> tuple[nn.Sequential, int]:
    """What brings an encoder map to the size of a level, and the channels that it has then."""
    if scale == "P3":
        up = nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)
        return nn.Sequential(with_init(up, init_torch_default)), channels // 2
    if scale == "P5":
        return nn.Sequential(ConvUnit(channels, channels, 3, eps, stride=2, activation=nn.ReLU)), channels
    return nn.Sequential(), channels


class MultiScaleProjector(nn.Module):
    """Fuse all tapped maps into each of the levels P3 (twice the patch grid), P4 (the grid), P5 (half of it)."""

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        maps, width, eps = len(config.backbone_config.out_indices), config.d_model, config.layer_norm_eps
        self.stages_sampling, self.stages = nn.ModuleList(), nn.ModuleList()
        for scale in config.projector_scales:
            samplings = [_sampling(scale, config.backbone_config.hidden_size, eps) for _ in range(maps)]
            self.stages_sampling.append(nn.ModuleList([module for module, _ in samplings]))
            inputs = sum(channels for _, channels in samplings)
            fuse = C2f(inputs, width, config.c2f_num_blocks, eps)
            self.stages.append(nn.Sequential(fuse, ChannelLayerNorm(width, eps)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Tapped maps (B, D, h, w) -> one map (B, d_model, h_l, w_l) for each level."""
        levels = []
        for samplings, stage in zip(self.stages_sampling, self.stages, strict=True):
            sampled = [sampling(x) for sampling, x in zip(cast(nn.ModuleList, samplings), maps, strict=True)]
            levels.append(stage(torch.cat(sampled, 1)))  # (B, channels of all taps, h_l, w_l)
        return levels


class RFDETRBackbone(nn.Module):
    """Encoder and projector.

    `encoder.encoder` is the encoder: the official layout has a level more, which is a plain container here.
    """

    def __init__(self, config: RFDETRConfig) -> None:
        super().__init__()
        self.size_divisor = config.size_divisor
        self.patch_size = config.backbone_config.patch_size
        self.num_channels = config.backbone_config.num_channels
        self.encoder = nn.ModuleDict({"encoder": WindowedDinov2(config.backbone_config)})
        self.projector = MultiScaleProjector(config)

    @property
    def vit(self) -> WindowedDinov2:
        """The encoder itself."""
        return cast(WindowedDinov2, self.encoder["encoder"])

    def forward(
        self, pixel_values: Tensor, drop_path: DropPath | None = None, positions: Tensor | None = None
    ) -> list[Tensor]:
        """(B, 3, H, W) -> one map (B, d_model, h_l, w_l) for each level.

        Raises:
            ValueError: if the input is no batch of images or its sides are not multiples of `size_divisor`.
        """
        self.check(pixel_values)
        return self.projector(self.vit(pixel_values, drop_path, positions))

    def check(self, pixel_values: Tensor) -> None:
        """Raise a ValueError if the input is no batch of images or its sides are not multiples of `size_divisor`."""
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != self.num_channels:
            raise ValueError(f"pixel_values must have the shape (batch, {self.num_channels}, H, W), got {shape}.")
        height, width = shape[-2:]
        if height % self.size_divisor or width % self.size_divisor:
            rounded = [-(-side // self.size_divisor) * self.size_divisor for side in (height, width)]
            raise ValueError(
                f"pixel_values of {height} x {width} pixels: both sides must be divisible by patch_size x num_windows ="
                f" {self.patch_size} x {self.size_divisor // self.patch_size} = {self.size_divisor}."
                f" Resize or pad to {rounded[0]} x {rounded[1]}."
            )
