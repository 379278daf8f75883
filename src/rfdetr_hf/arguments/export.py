"""The options of an export."""

from dataclasses import dataclass

from ..choices import EXPORT_FORMATS
from ..options import Range, option, require_writable, settle_options
from .words import answers_by_name


@answers_by_name
@dataclass
class ExportArguments:
    """Which model, which file."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.", group="model", daily=True)
    output: str = option("model", "The new file; the format's suffix is added.", group="output", daily=True)
    format: str = option("onnx", "onnx, or torch (torch.export).", tuple(EXPORT_FORMATS), daily=True)
    size: list[int] | None = option(None, "Height and width of the input; default: the model's resolution.", daily=True)
    opset: int | None = option(
        None, "ONNX operator set; default: the lowest that PyTorch writes.", Range(1), daily=True
    )
    tolerance: float = option(1e-4, "Largest difference to the model that passes the check.", Range(0), daily=True)

    def __post_init__(self) -> None:
        settle_options(self)
        if self.size is not None and len(self.size) not in (1, 2):
            raise ValueError(f"size={self.size}: give one number for a square, or height and width")

    def require_new(self) -> None:
        """Look whether the file may be written, before a model is fetched.

        Raises:
            OSError: it exists, or cannot be written.
        """
        suffix = EXPORT_FORMATS[self.format]
        path = self.output if self.output.endswith(suffix) else f"{self.output}{suffix}"
        require_writable(path, "output")
