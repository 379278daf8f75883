"""`rfdetr-hf export`: a trained model as an ONNX file or a `torch.export` program, compared with its source."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..export.exporter import FORMATS, ExportReport, export
from ..export.onnx import OPSET
from ..export.parity import TOLERANCE
from ..models.files.auto import load_model, load_processor
from ..training.arguments import parse_arguments

DESCRIPTION = """Write a trained model as an ONNX file or a torch.export program.

  rfdetr-hf export --model_name_or_path outputs/mine/best --output model.onnx
  rfdetr-hf export --model_name_or_path outputs/mine/best --format torch --size 384 640

The batch size stays free, the image size is fixed. The file is run beside the model on random images, and kept only if
they agree."""


@dataclass
class ExportArguments:
    """Which model, which file."""

    model_name_or_path: str = field(metadata={"help": "A model folder, Hub id or official file."})
    output: str = field(default="model", metadata={"help": "The new file; the format's suffix is added."})
    format: str = field(default="onnx", metadata={"help": "onnx, or torch (torch.export).", "choices": list(FORMATS)})
    size: list[int] | None = field(
        default=None, metadata={"help": "Height and width of the input; default: the model's resolution."}
    )
    opset: int = field(default=OPSET, metadata={"help": f"ONNX operator set, {OPSET} or higher."})
    tolerance: float = field(
        default=TOLERANCE, metadata={"help": "Largest difference to the model that passes the check."}
    )

    def __post_init__(self) -> None:
        if self.size is not None and len(self.size) not in (1, 2):
            raise ValueError(f"size={self.size}: give one number for a square, or height and width")


def main(argv: Sequence[str], prog: str = "rfdetr-hf export") -> ExportReport:
    """Load, export, compare, print."""
    (args,) = parse_arguments((ExportArguments,), argv, prog=prog, description=DESCRIPTION)
    size = None if args.size is None else (args.size[0], args.size[-1])
    model = load_model(args.model_name_or_path)
    report = export(
        model,
        args.output,
        args.format,
        size=size,
        opset=args.opset,
        tolerance=args.tolerance,
        processor=load_processor(args.model_name_or_path, model.config.resolution),
    )
    print(report)
    return report
