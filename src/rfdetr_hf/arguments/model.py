"""The options that choose a model."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..choices import CLASS_INITS, VARIANTS
from ..options import FROM_1, option, settle_options
from .idle import refuse_idle
from .words import answers_by_name

if TYPE_CHECKING:
    from datasets import Dataset


@answers_by_name
@dataclass
class ModelArguments:
    """Which model the example scripts and the command line build.

    Raises:
        ValueError: for an option that has no effect beside the others.
    """

    model_name_or_path: str | None = option(
        None,
        "What to start from: a variant (nano, small, ...: its published checkpoint), a folder, a Hub id or a file of "
        "rfdetr; default: nano.",
        group="model",
        daily=True,
    )
    from_scratch: bool = option(False, "Random weights instead of the variant's published checkpoint.")
    variant: str | None = option(None, "Another name of model_name_or_path, for variants.", VARIANTS)
    config_overrides: dict | str | None = option(
        None, "Configuration fields to change (JSON, a YAML mapping or a file)."
    )
    resolution: int | None = option(
        None, "Side of the square input in pixels; default: the variant's.", FROM_1, daily=True
    )
    revision: str | None = option(None, "Branch, tag or commit of model_name_or_path on the Hub.")
    class_init: str = option(
        "prior", "Class rows: kept by name and else new, all new, or repeated as rfdetr does.", CLASS_INITS
    )
    rename_classes: dict | str | None = option(
        None, "Classes of model_name_or_path that have another name in the data, {old: new} (JSON or a YAML mapping)."
    )
    init_backbone_from: str | None = option(None, "With from_scratch: a DINOv2 of transformers for the encoder.")

    def __post_init__(self) -> None:
        settle_options(self)
        given = self.model_name_or_path or self.variant or "nano"
        if self.variant not in (None, given):
            raise ValueError(f"variant={self.variant!r} and model_name_or_path={given!r} exclude each other; give one")
        if self.from_scratch and given not in VARIANTS:
            raise ValueError(
                f"from_scratch=True builds a variant with random weights, and model_name_or_path={given!r} is none; "
                f"choose from {', '.join(VARIANTS)}"
            )
        self.model_name_or_path, self.variant = given, given if given in VARIANTS else None
        refuse_idle(self)

    @property
    def task(self) -> str:
        """What the checkpoint or the variant is for: "detection", "segmentation" or "keypoints".

        Raises:
            FileNotFoundError, ValueError: the checkpoint is not there or cannot be read; of the Hub, it is fetched.
        """
        from ..models.configuration_rfdetr import RFDETRConfig
        from ..models.files.auto import source_task

        if self.from_scratch:
            return RFDETRConfig.variants()[str(self.variant)].task
        options = {} if self.revision is None else {"revision": self.revision}
        return source_task(str(self.model_name_or_path), **options)

    @property
    def class_options(self) -> dict[str, Any]:
        """What `from_pretrained` and `from_official` do with the class rows of the checkpoint."""
        return {"class_init": self.class_init, "rename_classes": self.rename_classes}

    def config_fields(self, dataset: "Dataset | None" = None) -> dict[str, Any]:
        """The fields of the model's configuration that these options and the data decide.

        Args:
            dataset: gives `id2label`, and where it has keypoints their schema; None for the options alone.

        Raises:
            ValueError: `config_overrides` says another thing than `resolution` or the data.
        """
        given = dict(cast(dict[str, Any], self.config_overrides or {}))
        fields: dict[str, Any] = {} if self.resolution is None else {"resolution": self.resolution}
        if dataset is not None:
            fields |= _fields_of_data(dataset)
        # Keys of JSON are texts.
        twice = [n for n in fields if n in given and json.dumps(given[n]) != json.dumps(fields[n])]
        if twice:
            source = "resolution" if twice[0] == "resolution" else "the data"
            raise ValueError(f"config_overrides gives another {twice[0]} than {source}; leave it out of one of them")
        return given | fields


def _fields_of_data(dataset: "Dataset") -> dict[str, Any]:
    """What the classes and the keypoints of a data set decide."""
    from ..data.schema import class_names, has_keypoints, keypoint_schema

    names = class_names(dataset)
    fields: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if has_keypoints(dataset):
        schema = keypoint_schema(dataset)
        fields |= {"num_keypoints_per_class": schema.num_keypoints_per_class, "keypoint_schema": schema.to_dict()}
    return fields
