"""What a run is made of."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_pt_utils import log_metrics, save_metrics, save_state

from ..evaluation.evaluator import CocoEvaluator
from ..tasks import TASKS
from .best import BestModel
from .callbacks import EarlyStopping
from .drop_path import DropPathSchedule
from .ema import ExponentialMovingAverage
from .loaders import build_eval_loader, build_train_loader
from .optimization import build_optimizer, build_param_groups, build_scheduler

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, TrainerState
    from transformers.trainer_callback import CallbackHandler

    from .arguments import RFDETRTrainingArguments
    from .parallel import Strategy


class TrainerParts:
    """Makes the parts of a run. A subclass of `RFDETRTrainer` replaces a part by overriding the method that makes it.

    Every part with a state has `state_dict` and `load_state_dict`, by which a resumed run goes on where it was.
    """

    args: "RFDETRTrainingArguments"
    model: "PreTrainedModel"
    state: "TrainerState"
    accelerator: "Accelerator"
    strategy: "Strategy"
    callback_handler: "CallbackHandler"
    train_dataset: Dataset | None
    augmentation: Callable[..., Any] | None
    image_processor: Callable[..., Any]
    scales: list[int]
    steps_per_epoch: int

    # transformers' own, for scripts that call them
    log_metrics = log_metrics
    save_metrics = save_metrics
    save_state = save_state

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches; its `batch_sampler` has `set_epoch(epoch, start_batch)`."""
        return build_train_loader(
            self.train_dataset, self.args, self.model.config, self.scales, self.accelerator, self.augmentation
        )

    def get_eval_dataloader(self, dataset: Dataset) -> DataLoader:
        """This rank's share of a data set, every image once over all ranks."""
        return build_eval_loader(dataset, self.args, self.model.config, self.image_processor, self.accelerator)

    def create_optimizer(self) -> Optimizer:
        """The optimizer, of the model before it is sharded."""
        return build_optimizer(build_param_groups(self.model, self.args), self.args, self.accelerator.device)

    def create_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """The schedule of the learning rates, stepped once after each optimizer step."""
        return build_scheduler(optimizer, self.args, self.state.max_steps, self.steps_per_epoch)

    def create_average(self) -> ExponentialMovingAverage:
        """The moving average of the weights, of the model as it is sharded; not called with `use_ema=False`."""
        return self.strategy.average()

    def create_drop_path_schedule(self) -> DropPathSchedule:
        """The drop path rate by optimizer step."""
        args = self.args
        return DropPathSchedule(
            args.drop_path,
            self.state.max_steps,
            mode=args.drop_path_mode,
            schedule=args.drop_path_schedule,
            cutoff_steps=round(args.drop_path_cutoff_epochs * self.steps_per_epoch),
        )

    def create_best_model(self) -> BestModel:
        """What decides, after each evaluation, whether the weights are the best so far."""
        args = self.args
        return BestModel(args.metric_for_best_model, args.greater_is_better, args.skip_best_epochs, args.smooth_alpha)

    def create_early_stopping(self) -> TrainerCallback:
        """The callback that stops the run; not called without `early_stopping_patience`."""
        args = self.args
        return EarlyStopping(
            args.metric_for_best_model,
            args.early_stopping_patience,
            args.early_stopping_threshold,
            args.skip_best_epochs,
            args.greater_is_better,
        )

    def create_evaluator(self, dataset: Dataset) -> CocoEvaluator:
        """What scores one pass over a data set."""
        iou_types = TASKS[self.model.task].iou_types
        return CocoEvaluator(dataset, self.args.eval_max_dets, iou_types=iou_types, backend="auto")

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
