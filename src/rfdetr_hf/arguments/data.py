"""The options that choose data."""

import contextlib
from dataclasses import dataclass
from typing import Any

from ..choices import BOX_FORMATS, SAMPLINGS, SHARD_CACHE
from ..options import FACTOR, FROM_1, option, settle_options
from ..tasks import TASKS
from .idle import refuse_idle
from .words import answers_by_name


@answers_by_name
@dataclass
class DataArguments:
    """Which data the example scripts and the command line load."""

    dataset_name: str = option(
        "synthetic-shapes", "A folder, a Hub id, an address (s3://...) or 'synthetic-shapes'.", group="data", daily=True
    )
    sources: dict | str | None = option(
        None,
        "Several data sets instead of one: name or path of each, with its share, classes, prefix, splits and options "
        "(JSON, a YAML mapping or a file).",
    )
    sampling: str | None = option(None, "Draw images with rare classes more often in training.", SAMPLINGS)
    repeat_threshold: float = option(
        0.001, "Share of images below which repeat_factor draws a class more often.", FACTOR
    )
    dataset_config_name: str | None = option(None, "Configuration of a Hub data set.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub data set.")
    image_dir: str | None = option(None, "Image folder of a COCO layout where it is not found by itself.")
    train_split: str | None = option(None, "Name of the training split where it is not 'train' or the like.")
    validation_split: str | None = option(None, "Name of the validation split, or a share of 'train' to hold out.")
    test_split: str | None = option(None, "Name of the test split where it is not 'test' or the like.")
    task: str | None = option(None, "What the objects need besides boxes; default: what the model needs.", tuple(TASKS))
    label_dir: str | None = option(None, "Label folder of a YOLO layout where it is not 'labels'.")
    bbox_format: str | None = option(None, "How boxes are written, where it is not as usual.", BOX_FORMATS)
    max_image_pixels: int | None = option(None, "Most pixels of an image; default: Pillow's limit.", FROM_1)
    missing_masks: str = option("error", "Objects without a mask: an error, or their box.", ("error", "box"))
    keypoint_schema: dict | str | None = option(
        None, "Names, skeleton, flip_pairs and sigmas of the keypoints of each class (JSON, a YAML mapping or a file)."
    )
    shard_window: int = option(8, "Shards whose rows are mixed at a time.", FROM_1)
    shard_cache: str = option(SHARD_CACHE, "Folder for the shards of a store.")
    shard_cache_gb: int = option(64, "Gigabytes of shards that the folder may hold.", FROM_1)
    data_hash: dict | str | None = option(
        None,
        "Checksums that the splits must have, as args.yaml of a run holds them (JSON, a YAML mapping); {} for "
        "any data.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.validation_split, float):
            self.validation_split = str(self.validation_split)
        settle_options(self)
        if self.sources is not None and self.dataset_name != "synthetic-shapes":
            raise ValueError(
                f"sources is given, and dataset_name={self.dataset_name!r} too; make it one of the sources"
            )
        if self.keypoint_schema is not None and self.task not in (None, "keypoints"):
            raise ValueError(f"keypoint_schema is for task=keypoints, and task is {self.task}")
        refuse_idle(self)

    def require_source(self) -> None:
        """Look whether a local data set is there, before anything is fetched.

        Raises:
            DetectionDataError: it is not.
        """
        from ..data.sources import source_of

        if self.sources is None:
            source_of(self.dataset_name)

    def load_options(self, model_task: str = "detection") -> dict[str, Any]:
        """The fields as arguments of [`load_detection_dataset`].

        Args:
            model_task: "detection", "segmentation" or "keypoints": what the model that gets the data is for.

        Raises:
            ValueError: `task` is given and another, or `keypoint_schema` or `missing_masks` to another task.
        """
        if self.task not in (None, model_task):
            raise ValueError(
                f"task={self.task!r} contradicts the model, which is for {model_task}; leave task out, or choose "
                f"a model for {self.task}"
            )
        if self.keypoint_schema is not None and model_task != "keypoints":
            raise ValueError(f"keypoint_schema is for keypoint models, and this one is for {model_task}; leave it out")
        if self.missing_masks != "error" and model_task != "segmentation":
            raise ValueError(f"missing_masks is for segmentation models, this one is for {model_task}; leave it out")
        share: Any = self.validation_split
        with contextlib.suppress(TypeError, ValueError):
            share = float(share)
        return {
            "name_or_path": self.dataset_name if self.sources is None else None,
            "sources": self.sources,
            "sampling": self.sampling,
            "repeat_threshold": self.repeat_threshold,
            "name": self.dataset_config_name,
            "revision": self.dataset_revision,
            "image_dir": self.image_dir,
            "train_split": self.train_split,
            "validation_split": share,
            "test_split": self.test_split,
            "task": model_task,
            "label_dir": self.label_dir,
            "bbox_format": self.bbox_format,
            "max_image_pixels": self.max_image_pixels,
            "missing_masks": self.missing_masks,
            "keypoint_schema": self.keypoint_schema,
            "data_hash": self.data_hash,
            "shard_window": self.shard_window,
            "shard_cache": self.shard_cache,
            "shard_cache_gb": self.shard_cache_gb,
        }
