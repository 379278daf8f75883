"""`rfdetr-hf export`: a trained model as an ONNX file or a `torch.export` program, compared with its source."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import ExportArguments, parse_arguments

if TYPE_CHECKING:
    from .. import ExportReport

DESCRIPTION = """Write a trained model as an ONNX file or a torch.export program.

  rfdetr-hf export outputs/mine/best --output model.onnx
  rfdetr-hf export outputs/mine/best --format torch --size 384 640

The batch size stays free, the image size is fixed. The file is run beside the
model on random images, and kept only if they agree."""


def main(argv: Sequence[str], prog: str = "rfdetr-hf export") -> "ExportReport":
    """Load, export, compare, print."""
    places = {"model_name_or_path": "MODEL"}
    (args,) = parse_arguments((ExportArguments,), argv, prog, DESCRIPTION, places)
    args.require_new()
    from .. import export_model, load_model, load_processor

    size = None if args.size is None else (args.size[0], args.size[-1])
    options: dict[str, Any] = {} if args.opset is None else {"opset": args.opset}
    model = load_model(args.model_name_or_path)
    options["processor"] = load_processor(args.model_name_or_path, model.config.resolution)
    report = export_model(model, args.output, args.format, size=size, tolerance=args.tolerance, **options)
    print(report)
    return report
