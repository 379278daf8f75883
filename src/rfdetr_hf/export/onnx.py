"""ONNX files, written from a `torch.export` program and run by onnxruntime."""

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..choices import install_hint
from .parity import Runner
from .wrapper import FixedSizeDetector, export_program

# The lowest operator set of PyTorch's exporter.
OPSET = 18


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX export needs {name}; {install_hint('onnx')}") from error


def write_onnx(
    detector: FixedSizeDetector, path: str | Path, opset: int = OPSET, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a detector as one ONNX file with a free batch size.

    The input is `pixel_values` (batch, 3, height, width) float32; the outputs have the names of the model's outputs.

    Args:
        detector: the model at its size.
        path: the file.
        opset: version of the operator set, 18 or more.
        metadata: written into the file, each value as JSON, text without quotes.

    Raises:
        ImportError: without onnx and onnxscript.
        ValueError: for an operator set that the exporter does not write.
    """
    if opset < OPSET:
        raise ValueError(f"opset={opset} is not available; PyTorch's exporter writes {OPSET} and higher")
    onnx = _require("onnx")
    _require("onnxscript")
    with _quiet():
        torch.onnx.export(
            export_program(detector),
            f=str(path),
            opset_version=opset,
            input_names=[detector.input_name],
            output_names=detector.output_names,
            external_data=False,
            verbose=False,
        )
    graph = onnx.load(str(path))
    _tidy(graph)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    onnx.helper.set_model_props(graph, texts)
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def _tidy(model: Any) -> None:
    """Call the free dimension "batch", which the exporter numbers, and drop its notes on how each node came about."""
    graph = model.graph
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.ClearField("metadata_props")
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(free, "batch")
    for node in graph.node:
        node.ClearField("metadata_props")


def onnx_runner(path: str | Path) -> Runner:
    """Run an ONNX file on the CPU: pixels (B, 3, H, W) to its outputs in their order.

    Raises:
        ImportError: without onnxruntime.
    """
    onnxruntime = _require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(pixels: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {name: pixels.numpy()})]

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision, which is not needed, and on its own code."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
