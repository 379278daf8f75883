"""The options of an export."""

from dataclasses import dataclass

from ..choices import EXPORT_FORMATS
from ..options import Range, option, settle_options


@dataclass
class ExportArguments:
    """Which model, which file."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.")
    output: str = option("model", "The new file; the format's suffix is added.")
    format: str = option("onnx", "onnx, or torch (torch.export).", EXPORT_FORMATS)
    size: list[int] | None = option(None, "Height and width of the input; default: the model's resolution.")
    opset: int | None = option(None, "ONNX operator set; default: the lowest that PyTorch writes.", Range(1))
    tolerance: float = option(1e-4, "Largest difference to the model that passes the check.", Range(0))

    def __post_init__(self) -> None:
        settle_options(self)
        if self.size is not None and len(self.size) not in (1, 2):
            raise ValueError(f"size={self.size}: give one number for a square, or height and width")
