"""The right class for a checkpoint of any kind, for tools that take all of them."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_rfdetr import RFDETRConfig
from ..image_processing_rfdetr import RFDETRImageProcessor
from .adapt import TASK_CLASSES, UNUSED_LABEL, task_of
from .layouts import official_keys
from .official import read_official
from .pretrained import HUB_OPTIONS, read_state

if TYPE_CHECKING:
    from ..modeling_rfdetr import RFDETRForObjectDetection

OFFICIAL_SUFFIXES = (".pth", ".pt", ".ckpt")
_MODULES = {"detection": "modeling_rfdetr", "segmentation": "segmentation", "keypoints": "keypoints"}


def model_class(task: str) -> type["RFDETRForObjectDetection"]:
    """The class that loads models for `task`: "detection", "segmentation" or "keypoints"."""
    return getattr(import_module(f"rfdetr_hf.models.{_MODULES[task]}"), TASK_CLASSES[task])


def is_official(source: str | Path) -> bool:
    """Whether `source` is named like a file of the official package (`.pth`, `.pt`, `.ckpt`, in any case)."""
    return Path(source).suffix.lower() in OFFICIAL_SUFFIXES


def source_task(source: str | Path, **options: Any) -> str:
    """The task of a checkpoint, "detection", "segmentation" or "keypoints", which the names of its tensors tell.

    Args:
        source: See `load_model`.
        options: `use_ema` for a file of the official package; `revision` and other Hub options for the rest.

    Raises:
        FileNotFoundError, ValueError: it is not there or cannot be read.
    """
    if is_official(source):
        return task_of(read_official(source, options.get("use_ema", False)).state)
    hub_options = {name: options[name] for name in HUB_OPTIONS if name in options}
    return task_of(official_keys(read_state(source, names_only=True, **hub_options)))


def load_model(source: str | Path, *, drop_unused_rows: bool = False, **options: Any) -> "RFDETRForObjectDetection":
    """Load any checkpoint with the class of its task, which the names of its tensors tell; it is read once.

    Args:
        source: A file of the official package, a folder of this package or of plain transformers, or a Hub id.
        drop_unused_rows: Leave out the class rows that are called "N/A".
        options: As in `from_official` or `from_pretrained` of the models.

    Raises:
        FileNotFoundError, ValueError: as these do.
    """
    if is_official(source):
        checkpoint: Any = read_official(source, options.get("use_ema", False))
        found = model_class(task_of(checkpoint.state))
        return found.from_official(checkpoint, drop_unused_rows=drop_unused_rows, **options)
    if drop_unused_rows:
        hub_options = {name: options[name] for name in HUB_OPTIONS if name in options}
        id2label: Any = RFDETRConfig.from_pretrained(source, **hub_options).id2label
        used = [name for _, name in sorted(id2label.items()) if name != UNUSED_LABEL]
        options |= {"id2label": dict(enumerate(used))} if len(used) < len(id2label) else {}
    return model_class(source_task(source, **options)).from_pretrained(source, **options)


def load_processor(source: str | Path, resolution: int, revision: str | None = None) -> RFDETRImageProcessor:
    """The image processor beside a checkpoint, or where there is none the standard one.

    Args:
        source: See `load_model`. Files of the official package have none.
        resolution: Side of the standard one's square input in pixels, `model.config.resolution`.
        revision: Branch, tag or commit of a Hub id.
    """
    if not is_official(source):
        try:
            return RFDETRImageProcessor.from_pretrained(source, revision=revision)
        except OSError:
            pass  # A model without a processor: the standard one is right.
    return RFDETRImageProcessor(size={"height": resolution, "width": resolution})
