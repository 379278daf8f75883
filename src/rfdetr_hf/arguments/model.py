"""The options that choose a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..choices import CLASS_INITS, VARIANTS, is_official
from ..options import FROM_1, option, settle_options

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class ModelArguments:
    """Which model the example scripts and the command line build.

    Raises:
        ValueError: for an option that has no effect beside the others.
    """

    model_name_or_path: str | None = option(None, "A folder or Hub id to start from; default: random weights.")
    variant: str | None = option(
        None, "Size to build when model_name_or_path is not given; default: nano.", VARIANTS
    )
    config_overrides: dict | str | None = option(
        None, "Configuration fields to change (JSON, a YAML mapping or a file)."
    )
    resolution: int | None = option(None, "Side of the square input in pixels; default: the variant's.", FROM_1)
    revision: str | None = option(None, "Branch, tag or commit of model_name_or_path on the Hub.")
    class_init: str = option(
        "prior", "Class rows: kept by name and else new, all new, or repeated as rfdetr does.", CLASS_INITS
    )
    rename_classes: dict | str | None = option(
        None, "Classes of model_name_or_path that have another name in the data, {old: new} (JSON or a YAML mapping)."
    )
    init_backbone_from: str | None = option(None, "DINOv2 of transformers to start a variant's encoder from.")

    def __post_init__(self) -> None:
        settle_options(self)
        idle: dict[str, Any] = {"variant": None, "init_backbone_from": None}
        where = "with model_name_or_path"
        if self.model_name_or_path is None:
            self.variant = self.variant or "nano"
            where = "without model_name_or_path"
            idle = {"revision": None, "class_init": "prior", "rename_classes": None}
        elif is_official(self.model_name_or_path) and self.revision is not None:
            where, idle = f"on the file {self.model_name_or_path}", {"revision": None}
        for name, value in idle.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect {where}; leave one of them out")

    @property
    def task(self) -> str:
        """What the checkpoint or the variant is for: "detection", "segmentation" or "keypoints".

        Raises:
            FileNotFoundError, ValueError: the checkpoint is not there or cannot be read.
        """
        from ..models.configuration_rfdetr import RFDETRConfig
        from ..models.files.auto import source_task

        if self.model_name_or_path is not None:
            options = {} if self.revision is None else {"revision": self.revision}
            return source_task(self.model_name_or_path, **options)
        return RFDETRConfig.variants()[str(self.variant)].task

    @property
    def class_options(self) -> dict[str, Any]:
        """What `from_pretrained` and `from_official` do with the class rows of the checkpoint."""
        return {"class_init": self.class_init, "rename_classes": self.rename_classes}

    def config_fields(self, dataset: "Dataset | None" = None) -> dict[str, Any]:
        """The fields of the model's configuration that these options and the data decide.

        Args:
            dataset: gives `id2label`, and where it has keypoints their schema; None for the options alone.
        """
        fields = dict(cast(dict[str, Any], self.config_overrides or {}))
        fields |= {} if self.resolution is None else {"resolution": self.resolution}
        if dataset is None:
            return fields
        from ..data.schema import class_names, has_keypoints, keypoint_schema

        names = class_names(dataset)
        fields |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        if has_keypoints(dataset):
            schema = keypoint_schema(dataset)
            fields |= {"num_keypoints_per_class": schema.num_keypoints_per_class, "keypoint_schema": schema.to_dict()}
        return fields
