"""Export a model, and compare the file with the model before it gets its name."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_utils import PILImageResampling

from ..choices import EXPORT_FORMATS
from ..models.colours import normalization
from ..models.files.auto import stored_processor
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRForObjectDetection
from ..models.post_processing import DEFAULT_THRESHOLD, Threshold
from ..models.thresholds import class_thresholds
from .onnx import OPSET, onnx_runner, write_onnx
from .parity import TOLERANCE, Runner, check_differences, largest_differences
from .wrapper import FixedSizeDetector, check_size, export_program, on_cpu

logger = logging.getLogger(__name__)

# Of a `torch.export` program: `torch.export.load(path, extra_files=...)` gives it.
METADATA_FILE = "metadata.json"


class ExportReport(NamedTuple):
    """What [`export`] wrote and how far it is from the model.

    Attributes:
        path: the file.
        size: (height, width) of its input.
        differences: for each output the largest difference to the model, as `parity.largest_differences` defines it.
    """

    path: Path
    size: tuple[int, int]
    differences: dict[str, float]

    def __str__(self) -> str:
        outputs = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        return f"{self.path}: {self.size[0]} x {self.size[1]} pixels; largest difference to the model: {outputs}"


def export_model(
    model: RFDETRForObjectDetection,
    path: str | Path,
    format: str = "onnx",
    *,
    size: tuple[int, int] | None = None,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
    processor: RFDETRImageProcessor | None = None,
    threshold: Threshold = DEFAULT_THRESHOLD,
) -> ExportReport:
    """Write a model of any task for another runtime: one image size, free batch size, float32.

    The file is read back, run beside the model on random images, and moved to `path` only if they agree.

    Args:
        model: stays unchanged.
        path: a new file; the suffix of the format is added where it is missing.
        format: "onnx", or "torch" for a `torch.export` program that `torch.export.load` reads.
        size: (height, width) of the input in pixels; default: that of `processor`, or where it keeps the aspect ratio
            the model's `resolution`, square.
        opset: operator set of ONNX.
        tolerance: largest difference of any output, relative to the output's size where that is above 1.
        processor: what prepares the pictures, for the metadata; default: the one that is stored beside
            the model's checkpoint, or the standard one.
        threshold: scores that count, one for all classes or one for each (see `class_thresholds`), for the metadata.

    Raises:
        ValueError: for an unknown format, size or operator set, or a stored processor that cannot be read.
        FileExistsError: if the file exists.
        ParityError: if the outputs differ by more than `tolerance`; no file is left.
        ImportError: if a package of the extra `onnx` is missing.
    """
    if format not in EXPORT_FORMATS:
        raise ValueError(f"format={format!r} is not known; choose one of {', '.join(EXPORT_FORMATS)}")
    processor = processor or _stored(model.config)
    size = size or _usual_size(model.config, processor)
    check_size(model, size)
    path = _new_file(Path(path), EXPORT_FORMATS[format])
    reference = on_cpu(model)
    detector = FixedSizeDetector(model, size)
    draft = path.with_name(f".tmp-{path.name}")
    try:
        exported = _write(detector, draft, format, opset, metadata_of(detector, processor, threshold))
        differences = largest_differences(_runner(reference, detector), exported, detector, tolerance)
        check_differences(differences, tolerance)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return ExportReport(path, size, differences)


def _usual_size(config: Any, processor: RFDETRImageProcessor | None) -> tuple[int, int]:
    """(height, width) of the pictures that the processor makes; they may have several, and a file has one."""
    square = config.resolution, config.resolution
    if processor is None:
        return square
    sides = dict(processor.size)
    if processor.do_resize and sides.get("height") and sides.get("width"):
        return sides["height"], sides["width"]
    logger.warning(
        "the image processor gives pictures of several sizes (do_resize=%s, size=%s), and the file takes one: pictures "
        "are to be resized to %d x %d, whatever their aspect ratio; give size=(height, width) for another",
        processor.do_resize, {side: pixels for side, pixels in sides.items() if pixels}, *square,
    )  # fmt: skip
    return square


def _new_file(path: Path, suffix: str) -> Path:
    path = path if path.suffix == suffix else path.with_name(path.name + suffix)
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _stored(config: Any) -> RFDETRImageProcessor | None:
    """The processor beside the model's checkpoint, where none was given."""
    stored = stored_processor(config)
    logger.info(
        "no image processor was given: the metadata of the file describe %s; give processor= if another prepares "
        "the pictures", f"that of {config.name_or_path}" if stored else "the standard one",
    )  # fmt: skip
    return stored


def metadata_of(
    detector: FixedSizeDetector, processor: RFDETRImageProcessor | None, threshold: Threshold
) -> dict[str, Any]:
    """What a user of the file has to know, as values for JSON: how pictures become pixels, and what the outputs mean.

    `size` (height, width) to which an RGB picture is resized by `resample` with or without `antialias`; `mean` and
    `std` of its pixels, 0 to 255, times `rescale_factor`; `input_range`, the lowest and highest number that comes of
    it; `value_range` of deep pictures, where the processor has one. `names` of the classes in order, `id2label`,
    `task`, `thresholds` in the order of the names, and `num_keypoints_per_class` where there are any.
    """
    config, task = detector.model.config, detector.model.task
    processor = processor or _stored(config) or RFDETRImageProcessor()
    mean, std, factor = normalization(processor, config.backbone_config.num_channels)
    ends = [[(end * factor - m) / s for m, s in zip(mean, std, strict=True)] for end in (0, 255)]
    limits: Any = threshold
    names = [config.id2label[index] for index in range(config.num_labels)]
    metadata = {
        "task": task,
        "size": list(detector.size),
        "mean": mean,
        "std": std,
        "rescale_factor": factor,
        "input_range": [min(ends[0]), max(ends[1])],
        "resample": PILImageResampling(processor.resample).name.lower(),
        "antialias": bool(processor.antialias),
        "names": names,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "thresholds": class_thresholds(limits, config),
    }
    if processor.value_range:
        metadata["value_range"] = [float(value) for value in processor.value_range]
    if config.num_keypoints_per_class:
        metadata["num_keypoints_per_class"] = config.num_keypoints_per_class
    return metadata


def _write(detector: FixedSizeDetector, path: Path, format: str, opset: int, metadata: Mapping[str, Any]) -> Runner:
    """Write the file; returns what runs it."""
    if format == "onnx":
        write_onnx(detector, path, opset, metadata)
        return onnx_runner(path)
    with open(path, "wb") as file:
        torch.export.save(export_program(detector), file, extra_files={METADATA_FILE: json.dumps(metadata)})
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _runner(model: RFDETRForObjectDetection, detector: FixedSizeDetector) -> Runner:
    def run(pixels: Tensor) -> list[Tensor]:
        outputs: Any = model(pixels)
        return [outputs[name] for name in detector.output_names]

    return run
