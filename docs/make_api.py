"""Write docs/api.md from the docstrings of the public names: python docs/make_api.py"""

import dataclasses
import importlib
import inspect
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")

SECTIONS = {
    "Models": [
        "models.configuration_rfdetr:RFDETRConfig",
        "models.configuration_rfdetr:RFDETRBackboneConfig",
        "models.modeling_rfdetr:RFDETRForObjectDetection",
        "models.modeling_rfdetr:RFDETRObjectDetectionOutput",
        "models.segmentation:RFDETRForInstanceSegmentation",
        "models.segmentation:RFDETRInstanceSegmentationOutput",
        "models.keypoints:RFDETRForKeypointDetection",
        "models.keypoints:RFDETRKeypointDetectionOutput",
        "models.image_processing_rfdetr:RFDETRImageProcessor",
        "models.auto:load_model",
        "models.auto:load_processor",
    ],
    "Losses": ["losses.criterion:RFDETRCriterion", "losses.matcher:HungarianMatcher"],
    "Data": [
        "data.sources:load_detection_dataset",
        "data.synthetic:make_shapes_dataset",
        "data.audit:audit_dataset",
        "data.schema:class_names",
        "data.schema:category_ids",
        "data.schema:label_table",
        "data.keypoints:KeypointSchema",
        "data.images:decode_image",
        "data.augmentation:adapt_augmentation",
    ],
    "Training": [
        "training.trainer:RFDETRTrainer",
        "training.arguments:RFDETRTrainingArguments",
        "training.arguments:ModelArguments",
        "training.arguments:DataArguments",
        "training.arguments:parse_arguments",
        "training.callbacks:EarlyStopping",
        "training.best:BestModel",
        "training.ema:ExponentialMovingAverage",
        "training.drop_path:DropPathSchedule",
        "training.optimization:build_param_groups",
        "training.optimization:build_optimizer",
        "training.optimization:build_scheduler",
        "training.multi_scale:compute_scales",
    ],
    "Fine-tuning": [
        f"training.finetuning:{name}"
        for name in (
            "freeze_encoder_blocks",
            "train_only",
            "part_of",
            "load_parts",
            "load_class_rows",
            "add_lora",
            "merge_adapters",
        )
    ],
    "Evaluation": [
        "evaluation.evaluator:CocoEvaluator",
        "evaluation.run:evaluate_detector",
        "evaluation.analysis:DetectionAnalysis",
        "evaluation.by_image:predictions_by_image",
        "evaluation.by_image:truth_by_image",
        "inference.detector:load_detector",
        "evaluation.inference:ImageDetector",
        "evaluation.inference:AugmentedDetector",
        "evaluation.inference:TiledDetector",
    ],
    "Export": ["export.exporter:export", "export.exporter:ExportReport"],
}


def load(entry: str) -> tuple[str, Any]:
    """The dotted name and the object of "module:name"."""
    module, name = entry.split(":")
    return f"rfdetr_hf.{module}.{name}", getattr(importlib.import_module(f"rfdetr_hf.{module}"), name)


def text_of(target: Any) -> str:
    """The docstring as Markdown: links of the form [`name`] as code, Google sections as bold words and code blocks."""
    lines = inspect.cleandoc(target.__doc__ or "").splitlines()
    out: list[str] = []
    for line in lines:
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line)
        out += ["", f"**{section[1]}**", ""] if section else [line]
    text = re.sub(r"\[(`\w+`)\]", r"\1", "\n".join(out))
    return re.sub(r"\n{3,}", "\n\n", text)


def signature_of(target: Any) -> str:
    """The signature without annotations, which the text repeats in words."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(target).parameters.values()]
    return str(inspect.Signature([p for p in parameters if p.name != "self"]))


def options_of(arguments: type) -> list[str]:
    """A table of the fields of a dataclass of arguments."""
    rows = ["", "| option | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(arguments):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = default.value if isinstance(default, Enum) else default
        shown = "required" if default is dataclasses.MISSING else f"`{default!r}`"
        meaning = field.metadata["help"].replace("|", "\\|")
        if 0 < len(field.metadata.get("choices", ())) <= 6:
            meaning += " One of " + ", ".join(f"`{choice}`" for choice in field.metadata["choices"]) + "."
        rows.append(f"| `{field.name}` | {shown} | {meaning} |")
    return rows


def methods_of(cls: type) -> list[tuple[str, Any]]:
    """The documented public methods that the class itself defines."""
    found = []
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, getattr(cls, name)))
    return found


def entry_lines(dotted: str, target: Any) -> list[str]:
    """One class or function."""
    fields = dataclasses.is_dataclass(target) and all("help" in f.metadata for f in dataclasses.fields(target))
    plain = inspect.isfunction(target) or "__init__" in vars(target) and not dataclasses.is_dataclass(target)
    heading = f"{target.__name__}{signature_of(target)}" if plain else target.__name__
    lines = [f"### `{heading}`", "", f"`{dotted}`", "", text_of(target)]
    if fields:
        return lines + options_of(target) + [""]
    if inspect.isclass(target):
        for name, method in methods_of(target):
            lines += ["", f"#### `{name}{signature_of(method)}`", "", text_of(method)]
    return [*lines, ""]


def make() -> str:
    """The page."""
    lines = ["# API reference", "", "Made from the docstrings by `python docs/make_api.py`.", ""]
    for section, entries in SECTIONS.items():
        lines += [f"## {section}", ""]
        for entry in entries:
            lines += entry_lines(*load(entry))
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    page = make()
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        sys.exit(0 if current else f"{PAGE} is out of date: run python docs/make_api.py")
    PAGE.write_text(page, encoding="utf-8")
