"""Windowed DINOv2: a plain ViT whose attention stays inside windows of the image, except in a few blocks.

Module names are those of the official checkpoints (`encoder.encoder.encoder.layer.N.attention.attention.query` ...).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import attend
from .configuration_rfdetr import RFDETRBackboneConfig
from .convolution import convolve
from .geometry import is_recorded
from .initialization import init_norm, init_vit, with_init
from .linears import Linear, linears

# For each block the factors of its two branches, or None.
DropPath = list[tuple[Tensor, Tensor] | None]


def drop_path_factors(x: Tensor, rate: float) -> Tensor:
    """Factors (rows, 1, 1) for the rows of x (rows, T, D): 0 with probability `rate`, 1 / (1 - rate) else."""
    keep = 1.0 - rate
    return x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


def split_windows(grid: Tensor, windows: int) -> Tensor:
    """Cut token grids into windows.

    Args:
        grid: (B, h, w, D) with h and w divisible by `windows`.
        windows: Windows per side.

    Returns:
        (B * windows**2, h * w / windows**2, D); the windows of an image follow each other row by row.
    """
    batch, height, width, channels = grid.shape
    rows, columns = height // windows, width // windows
    # (B, window row, row, window column, column, D) -> (B, window row, window column, row, column, D)
    grid = grid.reshape(batch, windows, rows, windows, columns, channels).transpose(2, 3)
    return grid.reshape(batch * windows**2, rows * columns, channels)


def join_windows(tokens: Tensor, windows: int, height: int, width: int) -> Tensor:
    """Undo `split_windows`: (B * windows**2, T, D) -> (B, height, width, D)."""
    rows, columns = height // windows, width // windows
    grid = tokens.reshape(-1, windows, windows, rows, columns, tokens.shape[-1]).transpose(2, 3)
    return grid.reshape(-1, height, width, tokens.shape[-1])


def resize_position_table(table: Tensor, height: int, width: int) -> Tensor:
    """Resize a square table of position rows (P, D) to (height * width, D): bicubic with antialiasing, in float32."""
    side = round(table.shape[0] ** 0.5)
    grid = table.T.reshape(1, -1, side, side).float()  # (1, D, side, side)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    return grid[0].flatten(1).T.to(table.dtype)  # (D, height, width) -> (height * width, D)


class ViTEmbeddings(nn.Module):
    """Pixels to windows of tokens, each window with its own copy of the class token."""

    def __init__(self, config: RFDETRBackboneConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.windows = config.num_windows
        self.std = config.initializer_range
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        # Never used: it belongs to the pre-training of DINOv2 and is kept for the layout of the files.
        self.mask_token = nn.Parameter(torch.empty(1, width), requires_grad=False)
        self.position_embeddings = nn.Parameter(torch.empty(1, config.position_grid**2 + 1, width))
        projection = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.patch_embeddings = nn.ModuleDict({"projection": with_init(projection, init_vit, std=self.std)})
        with_init(self, ViTEmbeddings._initialize)

    def _initialize(self) -> None:
        init.trunc_normal_(self.cls_token, std=self.std)
        init.trunc_normal_(self.position_embeddings, std=self.std)
        init.zeros_(self.mask_token)

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B * windows**2, 1 + tokens of a window, D).

        `positions`: what the method of that name gives, if it is there already.
        """
        projection: Any = self.patch_embeddings["projection"]
        # (B, D, h, w) -> (B, h, w, D)
        grid = convolve(projection, pixel_values.to(projection.weight.dtype)).permute(0, 2, 3, 1)
        _, height, width, channels = grid.shape
        positions = self.positions(height, width) if positions is None else positions
        positions = positions.reshape(height, width, channels)
        tokens = split_windows(grid + positions, self.windows)
        cls = (self.cls_token + self.position_embeddings[:, :1]).to(tokens.dtype)
        return torch.cat([cls.expand(tokens.shape[0], -1, -1), tokens], 1)

    def positions(self, height: int, width: int) -> Tensor:
        """The position rows (height * width, D) of a grid of that size."""
        table = self.position_embeddings[0, 1:]
        if height == width and height * width == table.shape[0]:
            return table
        return resize_position_table(table, height, width)


class ViTAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: RFDETRBackboneConfig) -> None:
        super().__init__()
        width, std = config.hidden_size, config.initializer_range
        names = ("query", "key", "value")
        self.config, self.num_heads = config, config.num_attention_heads
        self.attention = nn.ModuleDict({name: with_init(nn.Linear(width, width), init_vit, std=std) for name in names})
        self.output = nn.ModuleDict({"dense": with_init(nn.Linear(width, width), init_vit, std=std)})

    def forward(self, x: Tensor, project: Linear, output: Linear) -> Tensor:
        """`project` makes query, key and value, `output` is the layer after them; see `RFDETRViTLayer.forward`."""
        # (rows, T, 3 * D) -> (rows, heads, T, D / heads) each
        packed = project(x).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = (each.transpose(1, 2) for each in packed.unbind(2))
        attended, _ = attend(query, key, value, self.config._attn_implementation)
        return output(attended.transpose(1, 2).flatten(-2))


class ViTMLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, config: RFDETRBackboneConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.hidden_size * config.mlp_ratio
        self.fc1 = with_init(nn.Linear(width, hidden), init_vit, std=config.initializer_range)
        self.fc2 = with_init(nn.Linear(hidden, width), init_vit, std=config.initializer_range)

    def forward(self, x: Tensor, widen: Linear, narrow: Linear) -> Tensor:
        """With the two layers as functions."""
        return narrow(F.gelu(widen(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, config: RFDETRBackboneConfig) -> None:
        super().__init__()
        self.initial = config.layerscale_value
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))
        with_init(self, LayerScale._initialize)

    def _initialize(self) -> None:
        init.constant_(self.lambda1, self.initial)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + branch * lambda1."""
        if is_recorded():
            return x + branch * self.lambda1
        return _AddScaled.apply(x, branch, self.lambda1)


class _AddScaled(torch.autograd.Function):
    # By hand for the types of autocast: the sum is float32 and the branch is not. Autograd would make the scaled branch
    # and its gradient in float32, and cast the latter.

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(branch, scale)
        return torch.addcmul(x, branch, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        branch, scale = ctx.saved_tensors
        of_branch = of_scale = None
        if ctx.needs_input_grad[1]:
            of_branch = torch.mul(grad, scale, out=torch.empty_like(branch))
        if ctx.needs_input_grad[2]:
            of_scale = (grad * branch).sum(tuple(range(grad.ndim - 1))).to(scale.dtype)
        return grad, of_branch, of_scale


class RFDETRViTLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block.

    Args:
        config: The encoder's configuration.
        index: Number of the block from 0; it decides whether attention joins the windows of an image.
    """

    def __init__(self, config: RFDETRBackboneConfig, index: int) -> None:
        super().__init__()
        self.joined_windows = config.num_windows**2 if index in config.out_indices else 1
        self.norm1 = with_init(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), init_norm)
        self.attention = ViTAttention(config)
        self.layer_scale1 = LayerScale(config)
        self.norm2 = with_init(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), init_norm)
        self.mlp = ViTMLP(config)
        self.layer_scale2 = LayerScale(config)

    def forward(self, x: Tensor, factors: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B * windows**2, T, D) -> the same shape.

        `factors` (B * windows**2, 1, 1) scale the two residual branches, see `drop_path_factors`. They are tensors made
        outside: a compiled block would be compiled again for each rate.
        """
        first, second = factors or (None, None)
        # The weights of a block are cast for autocast in one launch.
        attention, mlp = self.attention, self.mlp
        queries = attention.attention.values(), [attention.output["dense"]]
        project, output, widen, narrow = linears(*queries, [mlp.fc1], [mlp.fc2])
        branch = self._attend(self.norm1(x), project, output)
        x = self.layer_scale1(x, branch if first is None else branch * first)
        branch = mlp(self.norm2(x), widen, narrow)
        return self.layer_scale2(x, branch if second is None else branch * second)

    def _attend(self, x: Tensor, project: Linear, output: Linear) -> Tensor:
        if self.joined_windows == 1:
            return self.attention(x, project, output)
        rows, tokens, channels = x.shape
        joined = x.reshape(rows // self.joined_windows, self.joined_windows * tokens, channels)
        return self.attention(joined, project, output).reshape(rows, tokens, channels)


class WindowedDinov2(nn.Module):
    """The encoder: image to one feature map for each tapped block."""

    def __init__(self, config: RFDETRBackboneConfig) -> None:
        super().__init__()
        self.windows, self.patch_size = config.num_windows, config.patch_size
        self.taps = list(config.out_indices)
        self.embeddings = ViTEmbeddings(config)
        layers = [RFDETRViTLayer(config, index) for index in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.layernorm = with_init(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), init_norm)
        self.drop_path_rate = config.drop_path_rate

    @property
    def layers(self) -> list[RFDETRViTLayer]:
        """The transformer blocks."""
        return [cast(RFDETRViTLayer, layer) for layer in cast(nn.ModuleList, self.encoder["layer"])]

    @property
    def unused_layers(self) -> list[RFDETRViTLayer]:
        """Blocks after the last tapped one. They are in the files of some variants, and nothing reads their output."""
        return self.layers[self.taps[-1] :]

    def block_rates(self, rate: float | None = None) -> list[float]:
        """Probability of each block to drop a branch: 0 at the first, rising linearly to `rate` at the last.

        Args:
            rate: By default that of the configuration.

        Raises:
            ValueError: If it is not in [0, 1).
        """
        rate = self.drop_path_rate if rate is None else rate
        if not 0 <= rate < 1:
            raise ValueError(f"the drop path rate must be in [0, 1), got {rate}.")
        last = max(len(self.layers) - 1, 1)
        return [rate * index / last for index in range(len(self.layers))]

    def drop_path(self, batch_size: int, rate: float | None = None) -> DropPath | None:
        """Factors of the residual branches for one pass in training, by block, or None where nothing is dropped.

        They are made outside of `forward`, so that a compiled one serves all rates.

        Args:
            batch_size: Images of the pass.
            rate: See `block_rates`.
        """
        rates, like = self.block_rates(rate), self.embeddings.position_embeddings
        if not self.training or not any(rates):
            return None
        rows = like.new_empty(batch_size * self.windows**2)
        return [
            (drop_path_factors(rows, rate), drop_path_factors(rows, rate)) if rate else None
            for rate in rates[: self.taps[-1]]
        ]

    def forward(
        self, pixel_values: Tensor, drop_path: DropPath | None = None, positions: Tensor | None = None
    ) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, D, h, w), h and w being H and W over the patch size.

        `drop_path`: what the method of that name gives. `positions`: see `ViTEmbeddings`.
        """
        height, width = (side // self.patch_size for side in pixel_values.shape[-2:])
        tokens, maps = self.embeddings(pixel_values, positions), []
        for number, layer in enumerate(self.layers[: self.taps[-1]], start=1):
            tokens = layer(tokens, drop_path[number - 1] if drop_path else None)
            if number in self.taps:
                patches = self.layernorm(tokens)[:, 1:]
                maps.append(join_windows(patches, self.windows, height, width).permute(0, 3, 1, 2))
        return maps
