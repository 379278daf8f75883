"""Methods of Transformers' `Trainer` that scripts call and that are no part of the training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import log_metrics, save_metrics, save_state

from ..hub.model_card import CardFacts, write_model_card
from ..hub.push import HubUploader
from .checkpoint.directory import atomic_directory
from .checkpoint.run_directory import RunDirectory
from .checkpoint.weights import Weights
from .state import RunState


class TransformersMethods:
    """Callbacks in and out, who is the main process, metrics in files, the model in a folder, its card."""

    accelerator: Accelerator
    callback_handler: Any
    directory: RunDirectory
    hub: HubUploader
    image_processor: Any
    model: nn.Module
    optimizer: Any
    state: RunState
    test_dataset: Dataset | None
    weights: Weights
    get_eval_dataloader: Callable[..., DataLoader]
    _card: Callable[..., CardFacts]
    _fire: Callable[..., None]
    _follow_arguments: Callable[[], None]
    _settle: Callable[[], None]

    log_metrics = log_metrics
    save_metrics = save_metrics
    save_state = save_state

    @property
    def processing_class(self) -> Any:
        """The image processor."""
        return self.image_processor

    def get_test_dataloader(self, test_dataset: Dataset | None = None) -> DataLoader:
        """This rank's share of a data set; default: of the test split given at construction."""
        dataset = self.test_dataset if test_dataset is None else test_dataset
        if dataset is None:
            raise ValueError("get_test_dataloader() needs a test_dataset, here or at construction")
        return self.get_eval_dataloader(dataset)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Images that a loader of this trainer goes through on all processes together."""
        dataset: Any = dataloader.dataset
        return len(dataset)

    def get_num_trainable_parameters(self) -> int:
        """Numbers that the training changes."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def get_learning_rates(self) -> list[float]:
        """The present rate of each parameter group."""
        if self.optimizer is None:
            raise ValueError("there is no optimizer before train()")
        self._settle()
        return [group["lr"] for group in self.optimizer.param_groups]

    def create_model_card(self, **description: Any) -> Path | None:
        """Write the card of the model in memory to `output_dir`, on the main process. Model folders have theirs.

        Args:
            description: `model_name`; `finetuned_from` (Hub id), `dataset` (Hub ids), which are else those that model
                and data came from; and fields of the card's head: `tags`, `license`, `language`, …

        Returns:
            The file.
        """
        self._follow_arguments()
        facts = self._card().described(**description)
        if not self.accelerator.is_main_process:
            return None
        self.directory.root.mkdir(parents=True, exist_ok=True)
        write_model_card(self.directory.root, facts)
        return self.directory.root / "README.md"

    def add_callback(self, callback: Any) -> None:
        """Add a callback, or an instance of a callback class, to those that listen."""
        self.callback_handler.add_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first of a class."""
        self.callback_handler.remove_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove a callback, or the first of a class, and return it."""
        return self.callback_handler.pop_callback(callback)

    def is_world_process_zero(self) -> bool:
        """Whether this is the main process of all."""
        return self.accelerator.is_main_process

    def is_local_process_zero(self) -> bool:
        """Whether this is the main process of its machine."""
        return self.accelerator.is_local_main_process

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the model in memory as a `from_pretrained` folder with its image processor; default: `last/`.

        Raises:
            RunInUse: another process trains into `output_dir`.
            FileExistsError: the folder is no model of this trainer, or `last/` is that of an earlier run.
        """
        self._follow_arguments()
        folder = Path(output_dir) if output_dir else self.directory.last
        target = self.directory.replacing(folder, self.state.global_step)
        self.weights.save_pretrained(target, self._card(), self.accelerator)

    def push_to_hub(
        self, commit_message: str = "End of training", blocking: bool = True, **description: Any
    ) -> str | None:
        """Upload the model in memory, with image processor and model card, to `hub_model_id`.

        Args:
            commit_message: of the commit.
            blocking: wait, and raise what goes wrong; else upload in the background and report it.
            description: for the card, see `create_model_card`.

        Returns:
            The address of the commit on the main process when blocking, else None.
        """
        self._follow_arguments()
        folder = self.directory.root / ".del-push"  # of a kind that an interrupted run leaves to be removed
        card = self._card().described(**description)
        self.weights.save_pretrained(atomic_directory(folder), card, self.accelerator)
        if not self.accelerator.is_main_process:
            return None
        self._fire("on_push_begin")
        try:
            if blocking:
                return self.hub.push(folder, commit_message)
            return self.hub.submit(folder, commit_message)
        finally:
            shutil.rmtree(folder)
