"""Methods of Transformers' `Trainer` that scripts call and that are no part of the training."""

from typing import Any

from accelerate import Accelerator
from transformers.trainer_pt_utils import log_metrics, save_metrics, save_state


class TransformersMethods:
    """Callbacks in and out, who is the main process, metrics in the console and in files."""

    accelerator: Accelerator
    callback_handler: Any

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
