"""The right class for a checkpoint of any kind, for tools that take all of them."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import read_official
from .pretrained import HUB_OPTIONS, read_state
from .pretrained_adapt import task_of
from .pretrained_layouts import official_keys

if TYPE_CHECKING:
    from .modeling_rfdetr import RFDETRPreTrainedModel

OFFICIAL_SUFFIXES = (".pth", ".pt", ".ckpt")
_CLASSES = {
    "detection": ("modeling_rfdetr", "RFDETRForObjectDetection"),
    "segmentation": ("segmentation", "RFDETRForInstanceSegmentation"),
    "keypoints": ("keypoints", "RFDETRForKeypointDetection"),
}


def model_class(task: str) -> type["RFDETRPreTrainedModel"]:
    """The class that loads models for `task`: "detection", "segmentation" or "keypoints"."""
    module, name = _CLASSES[task]
    return getattr(import_module(f"rfdetr_hf.models.{module}"), name)


def is_official(source: str | Path) -> bool:
    """Whether `source` is named like a file of the official package (`.pth`, `.pt`, `.ckpt`)."""
    return Path(source).suffix in OFFICIAL_SUFFIXES


def load_model(source: str | Path, **options: Any) -> "RFDETRPreTrainedModel":
    """Load any checkpoint with the class of its task, which the names of its tensors tell.

    Args:
        source: A file of the official package, a folder of this package or of plain transformers, or a Hub id.
        options: As in `from_official` or `from_pretrained` of the models.

    Raises:
        FileNotFoundError, ValueError: as these do.
    """
    if is_official(source):
        state = read_official(source, options.get("use_ema", False)).state
        return model_class(task_of(state)).from_official(source, **options)
    state = official_keys(read_state(source, **{name: options[name] for name in HUB_OPTIONS if name in options}))
    return model_class(task_of(state)).from_pretrained(source, **options)
