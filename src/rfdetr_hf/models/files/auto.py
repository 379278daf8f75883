"""The right class for a checkpoint of any kind, for tools that take all of them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from ...choices import is_official
from ..image_processing_rfdetr import RFDETRImageProcessor
from ..keypoints import RFDETRForKeypointDetection
from ..modeling_rfdetr import RFDETRForObjectDetection
from ..segmentation import RFDETRForInstanceSegmentation
from .adapt import task_of
from .layouts import official_names
from .official import read_official
from .pretrained import HUB_OPTIONS, read_names
from .published import CheckpointUnavailable, checkpoint_of, is_hub_name

_CLASSES = (RFDETRForObjectDetection, RFDETRForInstanceSegmentation, RFDETRForKeypointDetection)


def model_class(task: str) -> type[RFDETRForObjectDetection]:
    """The class that loads models for `task`: "detection", "segmentation" or "keypoints"."""
    return next(found for found in _CLASSES if found.task == task)


def source_task(source: str | Path, **options: Any) -> str:
    """The task of a checkpoint, "detection", "segmentation" or "keypoints", by the names of its tensors.

    Args:
        source: See `load_model`.
        options: `use_ema` for a file of the official package; `revision` and other Hub options for the rest.

    Raises:
        FileNotFoundError, ValueError: it is not there or cannot be read.
    """
    if is_official(source):
        return task_of(read_official(source, options.get("use_ema", False)).state)
    hub_options = {name: options[name] for name in (*HUB_OPTIONS, "variant") if name in options}
    return task_of(official_names(read_names(source, **hub_options)).values())


def load_model(source: str | Path, **options: Any) -> RFDETRForObjectDetection:
    """Load any checkpoint with the class of its task, which the names of its tensors show.

    Args:
        source: A file of the official package, a folder of this package or of plain transformers, or a Hub id.
        options: As in `from_official` or `from_pretrained` of the models.

    Raises:
        FileNotFoundError, ValueError: as these do.
    """
    if not is_official(source):
        try:
            return model_class(source_task(source, **options)).from_pretrained(source, **options)
        except CheckpointUnavailable as error:
            raise error.for_use() from error
    checkpoint = read_official(source, options.pop("use_ema", False))
    return model_class(task_of(checkpoint.state)).from_official(checkpoint, **options)


def has_processor(source: str | Path, revision: str | None = None) -> bool:
    """Whether a folder or Hub repository holds the settings of an image processor."""
    source = checkpoint_of(source)
    if not Path(source).is_dir() and not is_hub_name(str(source)):
        return False
    missing_is_none = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(str(source), "preprocessor_config.json", revision=revision, **missing_is_none) is not None


def load_processor(source: str | Path, resolution: int, revision: str | None = None) -> RFDETRImageProcessor:
    """The image processor beside a checkpoint, or where there is none the standard one.

    Args:
        source: See `load_model`. Files of the official package have none.
        resolution: Side of the standard processor's square input in pixels, `model.config.resolution`.
        revision: Branch, tag or commit of a Hub id.
    """
    source = checkpoint_of(source)
    if not is_official(source) and has_processor(source, revision):
        try:
            return RFDETRImageProcessor.from_pretrained(str(source), revision=revision or "main")
        except Exception as error:
            # Whatever transformers and its validators raise for a field.
            raise ValueError(
                f"{source}, preprocessor_config.json cannot be read: restore it, or remove it "
                f"({str(error) or type(error).__name__})"
            ) from error
    return RFDETRImageProcessor(size={"height": resolution, "width": resolution})


def stored_processor(config: PreTrainedConfig) -> RFDETRImageProcessor | None:
    """The image processor beside the checkpoint that a model was loaded from; None where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    source, revision = str(config.name_or_path or ""), getattr(config, "_commit_hash", None)
    if not source or is_official(source) or not has_processor(source, revision):
        return None
    return load_processor(source, config.resolution, revision)
