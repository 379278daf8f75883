"""`rfdetr-hf export`: a trained model as an ONNX file or a `torch.export` program, compared with its source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import ExportReport, Range, export_model, load_model, load_processor, option, parse_arguments, settle_options

DESCRIPTION = """Write a trained model as an ONNX file or a torch.export program.

  rfdetr-hf export --model_name_or_path outputs/mine/best --output model.onnx
  rfdetr-hf export --model_name_or_path outputs/mine/best --format torch --size 384 640

The batch size stays free, the image size is fixed. The file is run beside the model on random images, and kept only if
they agree."""


@dataclass
class ExportArguments:
    """Which model, which file."""

    model_name_or_path: str = option(help="A model folder, Hub id or official file.")
    output: str = option("model", "The new file; the format's suffix is added.")
    format: str = option("onnx", "onnx, or torch (torch.export).", ("onnx", "torch"))
    size: list[int] | None = option(None, "Height and width of the input; default: the model's resolution.")
    opset: int | None = option(None, "ONNX operator set; default: the lowest that PyTorch writes.", Range(1))
    tolerance: float = option(1e-4, "Largest difference to the model that passes the check.", Range(0))

    def __post_init__(self) -> None:
        settle_options(self)
        if self.size is not None and len(self.size) not in (1, 2):
            raise ValueError(f"size={self.size}: give one number for a square, or height and width")


def main(argv: Sequence[str], prog: str = "rfdetr-hf export") -> ExportReport:
    """Load, export, compare, print."""
    (args,) = parse_arguments((ExportArguments,), argv, prog=prog, description=DESCRIPTION)
    size = None if args.size is None else (args.size[0], args.size[-1])
    options: dict[str, Any] = {} if args.opset is None else {"opset": args.opset}
    model = load_model(args.model_name_or_path)
    options["processor"] = load_processor(args.model_name_or_path, model.config.resolution)
    report = export_model(model, args.output, args.format, size=size, tolerance=args.tolerance, **options)
    print(report)
    return report
