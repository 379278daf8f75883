"""Methods of Transformers' `Trainer` that scripts call and that are no part of the training."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.trainer_pt_utils import log_metrics, save_metrics, save_state

from ..hub.push import HubUploader
from .checkpoint.directory import atomic_directory
from .checkpoint.run_directory import RunDirectory
from .checkpoint.weights import Weights
from .state import RunState


class TransformersMethods:
    """Callbacks in and out, who is the main process, metrics in the console and in files, the model in a folder."""

    accelerator: Accelerator
    callback_handler: Any
    directory: RunDirectory
    weights: Weights
    state: RunState
    hub: HubUploader
    _card: Any
    _fire: Any

    log_metrics = log_metrics
    save_metrics = save_metrics
    save_state = save_state

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
        """Write the model in memory as a `from_pretrained` folder with its image processor; default: `last/`."""
        folder = Path(output_dir) if output_dir else self.directory.last
        target = self.directory.replacing(folder, self.state.global_step)
        self.weights.save_pretrained(target, self._card(), self.accelerator)

    def push_to_hub(self, commit_message: str = "End of training", blocking: bool = True) -> str | None:
        """Upload the model in memory, with image processor and model card, to `hub_model_id`.

        Args:
            commit_message: of the commit.
            blocking: wait, and raise what goes wrong; else upload in the background and report it.

        Returns:
            The address of the commit on the main process when blocking, else None.
        """
        folder = self.directory.root / ".del-push"  # of a kind that an interrupted run leaves to be removed
        self.weights.save_pretrained(atomic_directory(folder), self._card(), self.accelerator)
        if not self.accelerator.is_main_process:
            return None
        self._fire("on_push_begin")
        try:
            if blocking:
                return self.hub.push(folder, commit_message)
            return self.hub.submit(folder, commit_message)
        finally:
            shutil.rmtree(folder)
