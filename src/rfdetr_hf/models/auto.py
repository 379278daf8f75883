"""The model class of a task, for tools that take any checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .modeling_rfdetr import RFDETRPreTrainedModel

_CLASSES = {
    "detection": ("modeling_rfdetr", "RFDETRForObjectDetection"),
    "segmentation": ("segmentation", "RFDETRForInstanceSegmentation"),
    "keypoints": ("keypoints", "RFDETRForKeypointDetection"),
}


def model_class(task: str) -> type["RFDETRPreTrainedModel"]:
    """The class that loads models for `task`: "detection", "segmentation" or "keypoints"."""
    module, name = _CLASSES[task]
    return getattr(import_module(f"rfdetr_hf.models.{module}"), name)
