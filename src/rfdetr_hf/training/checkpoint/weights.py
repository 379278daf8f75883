"""The weights of a run and their moving average, however the launch spreads them, as files and back."""

import contextlib
import copy
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ...data.schema import keypoint_schema
from ...hub.model_card import CardFacts, write_model_card
from ...models.adapters import adapter_state, plain_state, unmerged_state
from ...models.bars import no_transformers_bars
from ...models.image_processing_rfdetr import RFDETRImageProcessor
from ...models.structure import changes_of, structure_of
from ..agreement import on_main
from ..ema import ExponentialMovingAverage
from .directory import CheckpointError, checksum
from .reading import CheckpointFiles
from .sharded import local_part, saved_tensors, shard_of, unsharded_state, write_state, writing
from .tree import require_finite

logger = logging.getLogger(__name__)

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
COLOURS = {"do_convert_rgb", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "value_range"}
_OF_VALUES = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
# What says where a file is from, and how it is written.
_OF_NO_WEIGHT = {
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "image_processor_type", "label2id",
    "processor_class", "torch_dtype", "transformers_version",
}  # fmt: skip
MODEL, ADAPTERS = "model.safetensors", "adapters.safetensors"


class ModelFolder(NamedTuple):
    """What `from_pretrained` reads.

    Attributes:
        skeleton: the model, without memory for weights.
        tensors: of `model.safetensors`; the live ones where they are not sharded.
        image_processor: of the model.
    """

    skeleton: PreTrainedModel
    tensors: dict[str, Tensor]
    image_processor: RFDETRImageProcessor

    def write(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors` and `preprocessor_config.json`.

        Raises:
            CheckpointError: weights are NaN or infinite.
        """
        require_finite(self.tensors, f"the weights for {folder.name}")
        with no_transformers_bars():
            self.skeleton.save_pretrained(folder, state_dict=self.tensors)
        self.image_processor.save_pretrained(folder)


class Weights:
    """The model of a run, its moving average and its image processor.

    Args:
        model: its present weights are meant, sharded or not.
        image_processor: saved with it.
        dataset: of the training, if there is one; a keypoint model without a schema is saved with its schema.

    Attributes:
        average: the moving average, once there is one.
    """

    def __init__(
        self, model: PreTrainedModel, image_processor: RFDETRImageProcessor, dataset: Dataset | None = None
    ) -> None:
        self.model = model
        self.image_processor = image_processor
        self.average: Any = None
        # FSDP2 gives the model a class of another name, which `save_pretrained` would not know how to write.
        self.model_class = type(model)
        self._dataset = dataset

    @property
    def config(self) -> Any:
        """A copy of the configuration, with what is saved besides."""
        config = copy.deepcopy(self.model.config)
        if self._dataset is not None and self.model.task == "keypoints" and config.keypoint_schema is None:
            config.keypoint_schema = keypoint_schema(self._dataset).to_dict()
        return config

    @property
    def num_parameters(self) -> int:
        """Numbers that a model file holds."""
        return sum(tensor.numel() for tensor in saved_tensors(self.model).values())

    def start_average(self, decay: float, tau: float, update_interval: int, copy_first: bool = False) -> None:
        """Begin a moving average of the weights as they are now; the model is prepared by then."""
        self.average = ExponentialMovingAverage(
            saved_tensors(self.model).items(), decay, tau, update_interval, copy_first,
            writing=lambda: writing(self.model), local=local_part,
        )  # fmt: skip

    def sizes(self) -> tuple[int, int]:
        """Bytes of a checkpoint with AdamW's state, and of a model folder, roughly."""
        model = sum(tensor.numel() * tensor.element_size() for tensor in saved_tensors(self.model).values())
        trained = sum(each.numel() * 4 for each in self.model.parameters() if each.requires_grad)
        return model * (1 if self.average is None else 2) + 2 * trained, model

    def averaged(self, swapped: bool = True) -> contextlib.AbstractContextManager:
        """Within the block the model has the averaged weights, if `swapped`."""
        return self.average.swap() if swapped and self.average is not None else contextlib.nullcontext()

    def gather(self, is_main: bool) -> tuple[ModelFolder | None, dict[str, Tensor], dict[str, Tensor]]:
        """All weights, unsharded, on the main process: the model's files, the adapters, the average.

        All processes must call it. What there is none of is empty.
        """
        tensors = saved_tensors(self.model)
        weights = unsharded_state(tensors, keep=is_main)
        average = {} if self.average is None else unsharded_state(tensors, self.average.state_dict(), keep=is_main)
        return self._folder(weights) if is_main else None, adapter_state(weights), average

    def _folder(self, weights: dict[str, Tensor]) -> ModelFolder:
        with torch.device("meta"):
            skeleton: Any = self.model_class(self.config)
            skeleton.to(self.model.dtype)
            skeleton.made_with = self.model.made_with
        return ModelFolder(skeleton, plain_state(self.model, weights), self.image_processor)

    def save_pretrained(
        self, target: contextlib.AbstractContextManager[Path], card: CardFacts, accelerator: Accelerator
    ) -> None:
        """Write the present weights as a `from_pretrained` folder with model card; all processes must call it.

        Args:
            target: gives the main process the folder to write into, such as `atomic_directory(path)`.
            card: what the model card says.
            accelerator: of the run.
        """
        weights = unsharded_state(saved_tensors(self.model), keep=accelerator.is_main_process)

        def write() -> None:
            with target as folder:
                self._folder(weights).write(folder)
                write_model_card(folder, card)

        on_main(write, accelerator)

    def check_model(self, files: CheckpointFiles) -> None:
        """Compare the configurations of a checkpoint with the run's: its weights go by the order of the classes, and
        know the colours of its image processor. Other values that have changed are named in a warning.

        Raises:
            CheckpointError: `config.json` or `preprocessor_config.json` cannot be read.
            ValueError: the names of the classes, or what the processor makes of colours, differ.
        """
        folder, written = files.folder, files.value(CONFIG, dict)
        ours = {int(k): v for k, v in (self.model.config.id2label or {}).items()}
        try:
            theirs = {int(label): str(name) for label, name in written["id2label"].items()}
            made = type(self.model.config).from_dict(written)
            before = made.to_dict()
        except _OF_VALUES as error:
            raise CheckpointError(f"{folder / CONFIG} cannot be read, or its id2label: {error!r}") from error
        if theirs != ours:
            names = [[table[label] for label in sorted(table)] for table in (theirs, ours)]
            raise ValueError(
                f"{folder} was written for the classes {names[0]}, and this run has {names[1]}; resume with the class "
                "names of the checkpoint in their order, or start a new run from its weights with model_name_or_path, "
                "which goes by the names"
            )
        if other := changes_of(structure_of(made), structure_of(self.model.config)):
            raise ValueError(
                f"{folder} was written with another structure ({', '.join(other)}), and its weights are not for this "
                "one; resume with the model of the checkpoint, or start a new run from it with model_name_or_path"
            )
        changed = _changes(before, self.config.to_dict(), _OF_NO_WEIGHT)
        processor: Any = self.image_processor
        stored = folder / PROCESSOR
        saved = files.value(PROCESSOR, dict) if stored.exists() else processor.to_dict()
        try:
            # With what is not written because it is the default.
            before, now = type(processor).from_dict(saved).to_dict(), processor.to_dict()
        except _OF_VALUES as error:
            raise CheckpointError(f"{stored} cannot be read: {error!r}") from error
        colours = _changes(before, now, {*before, *now} - COLOURS)
        if colours:
            raise ValueError(
                f"{stored}: the weights were trained with other colours than this run has "
                f"({', '.join(colours)}); give the trainer the processor of the checkpoint (image_processor=), or "
                "start a new run from its weights with model_name_or_path"
            )
        changed += _changes(before, now, COLOURS | _OF_NO_WEIGHT)
        if changed:
            logger.warning("the model has changed since %s was written: %s", folder.name, ", ".join(changed))

    def load(self, files: CheckpointFiles) -> None:
        """Put the weights of a model folder or checkpoint of the same configuration into the model."""
        state = files.take_tensors(MODEL)
        if files.exists(ADAPTERS):
            state = unmerged_state(state, files.take_tensors(ADAPTERS))
        write_state(self.model, state)

    def load_average(self, average: dict[str, Tensor], num_updates: int) -> None:
        """Take up an unsharded moving average of this model."""
        tensors = saved_tensors(self.model)
        parts = {name: shard_of(tensors[name], value) if name in tensors else value for name, value in average.items()}
        self.average.load_state_dict(parts, num_updates)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str], inside: str = "") -> list[str]:
    """Values of a configuration that differ, as "name before -> now"."""
    found = []
    for name in sorted({*before, *now} - set(but)):
        one, other = before.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _changes(one, other, but, f"{inside}{name}.")
        elif json.loads(json.dumps(one, default=str)) != json.loads(json.dumps(other, default=str)):
            found.append(f"{inside}{name} {one} -> {other}")
    return found


def checksum_of_model(folder: Path) -> str | None:
    """The checksum of the weights that a model folder holds now, None where there are none."""
    return checksum(folder / MODEL) if (folder / MODEL).is_file() else None
