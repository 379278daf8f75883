"""Train RF-DETR on Transformers, Accelerate and Datasets."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "RFDETRConfig": "models.configuration_rfdetr",
    "RFDETRForObjectDetection": "models.modeling_rfdetr",
    "RFDETRForInstanceSegmentation": "models.segmentation",
    "RFDETRForKeypointDetection": "models.keypoints",
    "load_model": "models.files.auto",
    "RFDETRImageProcessor": "models.image_processing_rfdetr",
    "RFDETRCriterion": "losses.criterion",
    "HungarianMatcher": "losses.matcher",
    "load_detection_dataset": "data.sources",
    "make_shapes_dataset": "data.synthetic",
    "audit_dataset": "data.audit",
    "KeypointSchema": "data.keypoints",
    "CocoEvaluator": "evaluation.evaluator",
    "evaluate_detector": "evaluation.run",
    "RFDETRTrainer": "training.trainer",
    "RFDETRTrainingArguments": "training.arguments",
    "build_param_groups": "training.optimization",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rfdetr_hf' has no attribute {name!r}")
    return getattr(import_module(f"rfdetr_hf.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
