"""A model at one image size as a `torch.export` program with a free batch size."""

import copy
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ..models.modeling_rfdetr import RFDETRForObjectDetection


class FixedSizeDetector(nn.Module):
    """A copy of a model for inference on images of one size, whose outputs are a tuple in the order of `output_names`.

    What depends on the size alone is computed here and not in the graph: the position table is resized once, with
    antialiasing, which few runtimes have. What only training needs is left out: query groups after the first and
    encoder blocks after the last tap.

    Args:
        model: of any task; it stays unchanged.
        size: (height, width) in pixels, multiples of `config.size_divisor`.

    Raises:
        ValueError: if the size does not fit the model.
    """

    input_name = "pixel_values"

    def __init__(self, model: RFDETRForObjectDetection, size: tuple[int, int]) -> None:
        super().__init__()
        check_size(model, size)
        self.size = tuple(size)
        self.model = on_cpu(model).requires_grad_(False)
        _keep_first_group(self.model)
        _fix_positions(self.model, size)
        outputs = self.model(self.example(1))
        self.output_names = [name for name in outputs if name == "logits" or name.startswith("pred_")]

    def example(self, batch: int, seed: int = 0) -> Tensor:
        """Normally distributed pixels (batch, 3, height, width)."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.model.config.backbone_config.num_channels
        return torch.randn(batch, channels, *self.size, generator=generator)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, height, width), normalised and without padding -> the predictions."""
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in self.output_names)


def on_cpu(model: RFDETRForObjectDetection) -> RFDETRForObjectDetection:
    """A copy of the model for evaluation, on the CPU in float32."""
    twin: Any = copy.deepcopy(model)
    return twin.to("cpu", torch.float32).eval()


def check_size(model: RFDETRForObjectDetection, size: tuple[int, int]) -> None:
    """Raise a ValueError if (height, width) are no positive multiples of the model's `size_divisor`."""
    divisor = model.config.size_divisor
    if any(side <= 0 or side % divisor for side in size):
        nearest = [max(round(side / divisor), 1) * divisor for side in size]
        raise ValueError(
            f"size {size[0]} x {size[1]}: both sides must be multiples of {divisor} (patch_size x num_windows); "
            f"the nearest is {nearest[0]} x {nearest[1]}"
        )


def _keep_first_group(model: RFDETRForObjectDetection) -> None:
    queries, transformer = model.config.num_queries, model.transformer
    for table in (model.refpoint_embed, model.query_feat):
        table.weight = nn.Parameter(table.weight[:queries].clone(), requires_grad=False)
        table.num_embeddings = queries
    for name in [name for name, _ in transformer.named_children() if name.startswith("enc_out")]:
        setattr(transformer, name, getattr(transformer, name)[:1])
    model.vit.encoder["layer"] = nn.ModuleList(model.vit.layers[: model.vit.taps[-1]])
    model.config.group_detr = 1


def _fix_positions(model: RFDETRForObjectDetection, size: tuple[int, int]) -> None:
    embeddings: Any = model.vit.embeddings
    patch = model.config.backbone_config.patch_size
    fixed = embeddings.positions(size[0] // patch, size[1] // patch)
    fixed = fixed.clone(memory_format=torch.contiguous_format)
    embeddings.position_embeddings = nn.Parameter(embeddings.position_embeddings[:, :1].clone(), requires_grad=False)
    embeddings.positions = lambda height, width: fixed


def export_program(detector: FixedSizeDetector) -> torch.export.ExportedProgram:
    """Trace the detector; the batch size stays free."""
    shapes = {FixedSizeDetector.input_name: {0: torch.export.Dim("batch", min=1)}}
    # A batch of two: torch.export takes the sizes 0 and 1 for constants.
    program = torch.export.export(detector, (detector.example(2),), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        # What runs without gradient is a graph of its own.
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            # The files would show the paths of this machine.
            node.meta.pop("stack_trace", None)
    return program
