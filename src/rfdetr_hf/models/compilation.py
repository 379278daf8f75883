"""The network between pixels and predictions as one function for `torch.compile`."""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from .backbone import DropPath

logger = logging.getLogger(__name__)

MAX_GRAPHS = 16


class CompiledNetwork:
    """`network` of a model, compiled as a whole.

    The sides of the image are symbols, so that a few graphs serve all sizes. A compiler cannot tell that a side is a
    multiple of what it is divided by; it gets the pixels as blocks, whose numbers of rows and columns all other sizes
    are multiples of. The position table is resized outside, since torch cannot trace the derivative of that.

    Args:
        model: of `modeling_rfdetr`, whose `network` is called; its parameters may change, and its mode.
        backend: of `torch.compile`, by name or as a function.
    """

    def __init__(self, model: Any, backend: str | Callable[..., Any]) -> None:
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
        self.model, self._is_limited = model, False

        def network(blocks: Tensor, mask: Tensor | None, *inputs: Any) -> Any:
            pixel_values = blocks.flatten(2, 4).flatten(3, 5)
            return model.network(pixel_values, None if mask is None else mask.flatten(1, 3).flatten(2, 4), *inputs)

        # Inductor's analysis of how to join loops ends in an assertion where sizes are symbols (pytorch 181563).
        options, known = {"triton.coalesce_tiling_analysis": False}, backend == "inductor"
        known = known and options.keys() <= set(torch._inductor.list_options())
        compiler: Any = torch.compile
        self._network = compiler(network, fullgraph=True, backend=backend, options=options if known else None)

    def __call__(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, drop_path: DropPath | None, *flags: bool
    ) -> Any:
        """What `network` gives for (B, 3, H, W) and (B, H, W); `flags` are its last arguments."""
        backbone: Any = self.model.backbone[0]
        backbone.check(pixel_values)
        vit = self.model.vit
        batch, channels, *sides = pixel_values.shape
        windows, patch = vit.windows, vit.patch_size
        rows, columns = (side // windows // patch for side in sides)
        shape = (windows, rows, patch, windows, columns, patch)
        blocks = pixel_values.contiguous().view(batch, channels, *shape)
        mask = None if pixel_mask is None else pixel_mask.contiguous().view(batch, *shape)
        positions = vit.embeddings.positions(windows * rows, windows * columns)
        positions = positions.clone(memory_format=torch.contiguous_format)
        symbols = [(blocks, 3), (blocks, 6), (positions, 0)] + ([] if mask is None else [(mask, 2), (mask, 5)])
        if not self.model.training:
            # The last batch of an evaluation is smaller.
            symbols += [(blocks, 0)] + ([] if mask is None else [(mask, 0)])
        for tensor, dimension in symbols:
            torch._dynamo.maybe_mark_dynamic(tensor, dimension)
        try:
            return self._network(blocks, mask, positions, drop_path, *flags)
        except FailOnRecompileLimitHit:
            if not self._is_limited:
                logger.warning(
                    "torch_compile: %d graphs are compiled, and a batch of the shape %s would need another one. It and "
                    "others that no graph fits run without compilation, slower and with the same results. Fewer shapes "
                    "help: multi_scale, batch sizes.", MAX_GRAPHS, tuple(pixel_values.shape),
                )  # fmt: skip
            self._is_limited = True
            return self.model.network(pixel_values, pixel_mask, positions, drop_path, *flags)
