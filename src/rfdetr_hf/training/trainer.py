"""The training loop."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import EvalPrediction, TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import TrainOutput, enable_full_determinism

from ..arguments.training import RFDETRTrainingArguments
from ..data.fingerprint import annotation_hash
from ..data.pipeline.order import EpochBatchSampler
from ..data.shards.dataset import ShardedDataset
from ..evaluation.evaluator import CocoEvaluator
from ..hub.push import fetch_checkpoint
from ..losses.points import derive_seed
from ..models.adapters import has_adapters, merge_adapters
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRForObjectDetection
from .agreement import agree_on_control, is_shared, patiently_on_main
from .arrangement import ArrangementMethods
from .batch_size import decide_batch, keep_batch
from .best import BestModel
from .callbacks import concerns
from .checkpoint.lock import LockLost
from .checkpoint.run_directory import RunDirectory
from .checkpoint.tree import require_finite
from .checkpoint.weights import Weights
from .checks import audit_splits, check_data, check_kinds, init_model, named_splits
from .distributed import allow_tf32, build_accelerator, replace_precision
from .drop_path import DropPathSchedule
from .ema import ExponentialMovingAverage
from .finetuning import apply_finetuning, in_float32
from .host_memory import kept_memory
from .loaders import batch_to_device, build_train_loader, choose_processor
from .meters import LossMeter, Stopwatch, plain_logs
from .multi_scale import scale_for_step
from .optimization import build_optimizer, build_param_groups, build_scheduler, name_parameters, noted, present_rate
from .parallel import choose_parallel
from .precision import keep_precision, settle_precision
from .preemption import Noticed, PreemptionNotice
from .record import RunRecord, hash_splits
from .startup import startup_lines
from .state import RunState, TooManySkipped
from .update import StepResult, Unsettled, loss_divisors, out_of_memory_advice, update_weights
from .validation import Validation
from .waiting import Batches, LoaderStuck, end_workers
from .watchdog import Watchdog

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class RFDETRTrainer(ArrangementMethods):
    """Trains, evaluates and saves an RF-DETR model on Accelerate.

    A subclass may override `create_optimizer`, `create_scheduler`, `get_train_dataloader`, `get_eval_dataloader` and
    `compute_loss`.

    Args:
        model: the model to train; its `id2label` must name the classes of the data.
        args: see [`RFDETRTrainingArguments`]; the trainer works on a copy, `args`. What is set on it later holds from
            the next `train()` on, or is refused there.
        train_dataset: a `datasets.Dataset` in the schema of [`load_detection_dataset`].
        eval_dataset: likewise, for evaluation during training; or several by name, whose scores are `eval_<name>_map`…
        image_processor: the pre-processing of evaluation and prediction, saved with the model; default: a square resize
            to the model's resolution.
        callbacks: `transformers.TrainerCallback`s.
        augmentation: a torchvision-v2 transform, an Albumentations pipeline or a callable `(image, target) -> (image,
            target)`, applied to training samples beside the recipe of the arguments.
        test_dataset: likewise, evaluated once at the end of training by the model that is then in memory.
        compute_metrics: takes an `EvalPrediction` of all images, whose `predictions` are those of
            [`~evaluation.by_image.predictions_by_image`] and whose `label_ids` are those of
            [`~evaluation.by_image.truth_by_image`], and returns further metrics; called on the main process.
        processing_class: another name of `image_processor`.
        optimizers: an optimizer of the model's parameters and its schedule, each or None; default: by the arguments.
        model_init: makes the model, after the seed of the arguments is set; in place of `model`. It may take a trial,
            as in Transformers, which is None.
        best_model: decides, after each evaluation, whether the weights are the best so far; default: by the arguments.
        drop_path: the drop path rate by optimizer step; default: by the arguments.
        evaluator: makes what scores one pass over a data set; default: COCO's metrics of the model's task.
        made_from: the dataclasses of options that model and data were made from, such as [`ModelArguments`] and
            [`DataArguments`]; `args.yaml` of the run holds them beside the training's, so that it repeats the run.
    """

    train_dataset: Any
    # Made when a training begins, for they depend on its data and on the launch.
    optimizer: Any = None
    lr_scheduler: Any = None
    train_loader: Any = None
    drop_path: Any = None
    _unsettled: Unsettled | None = None

    def __init__(
        self,
        model: RFDETRForObjectDetection | None = None,
        args: RFDETRTrainingArguments | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        image_processor: RFDETRImageProcessor | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        augmentation: Callable[..., Any] | None = None,
        test_dataset: Dataset | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        *,
        processing_class: RFDETRImageProcessor | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        model_init: Callable[..., RFDETRForObjectDetection] | None = None,
        best_model: BestModel | None = None,
        drop_path: DropPathSchedule | None = None,
        evaluator: Callable[[Dataset], CocoEvaluator] | None = None,
        made_from: Sequence[Any] = (),
    ) -> None:
        self.splits = named_splits(train_dataset, eval_dataset, test_dataset)
        processor = image_processor or processing_class
        given = {"image_processor": processor, "callbacks": callbacks, "evaluator": evaluator, "drop_path": drop_path,
                 "augmentation": augmentation, "compute_metrics": compute_metrics, "best_model": best_model,
                 "optimizers": optimizers != (None, None) and optimizers}  # fmt: skip
        self.record = RunRecord(made_from, [name for name, value in given.items() if value])
        model, args = check_kinds(model, args, self.splits, processor, model_init, given, processing_class)
        self.args = args = args.for_run(model.task, eval_dataset)
        self._device_decides = settle_precision(args)
        self.model, self.augmentation = in_float32(model), augmentation
        self.train_dataset, self.eval_dataset, self.test_dataset = train_dataset, eval_dataset, test_dataset
        self.image_processor = processor = choose_processor(processor, model.config, args, train_dataset)
        self.accelerator = build_accelerator(args)
        self.parallel = choose_parallel(self.accelerator, args, model)
        self.directory, self.given_best = RunDirectory(args.output_dir), best_model
        local, world = self.is_local_process_zero(), self.is_world_process_zero()
        self.state = RunState(is_local_process_zero=local, is_world_process_zero=world)
        self.control, self.given_drop_path = TrainerControl(), drop_path
        self.losses, self.stopwatch, self.rate = LossMeter(self.accelerator.device), Stopwatch(), args.learning_rate
        self.stateful: dict[str, Any] = {"losses": self.losses}
        (self.given_optimizer, self.given_scheduler), self.model_init = optimizers, model_init
        self.weights = Weights(model, self.image_processor, train_dataset)
        parts = self.directory, self.accelerator, self.parallel, self.weights
        self.watchdog = Watchdog(who=f"process {self.accelerator.process_index}")
        self.validation = Validation(args, *parts, self.watchdog, compute_metrics, evaluator)
        check_data(model, self.splits)
        self.callback_handler: Any = CallbackHandler([*self._own, *(callbacks or ())], model, processor, None, None)
        self.preemption, self._in_training = PreemptionNotice(), False
        self._follow_arguments()
        self._arrange()
        self._fire("on_init_end")

    @property
    def ema(self) -> ExponentialMovingAverage | None:
        """The moving average of the weights, once a run with `use_ema` has begun."""
        self._settle()
        return self.weights.average

    def _fire(self, event: str, **kwargs: Any) -> None:
        """Call the callbacks' method for an event."""
        if concerns(self.callback_handler.callbacks, event):
            self._settle()
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control, **kwargs)

    # ------------------------------------------------------------------------------------------------ to override

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches; its `batch_sampler` has `set_epoch(epoch, start_batch)`."""
        rest = self.scales, self.accelerator, self.augmentation, self.image_processor.value_range
        return build_train_loader(self.train_dataset, self.args, self.model.config, *rest)

    def create_optimizer(self) -> Optimizer:
        """The optimizer, of the model before it is sharded; the one given at construction, if any."""
        if self.given_optimizer is not None:
            return self.given_optimizer
        return build_optimizer(build_param_groups(self.model, self.args), self.args, self.accelerator.device)

    def create_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """The schedule of the learning rates, stepped once after each optimizer step; the one given, if any."""
        steps = self.state.max_steps, self.state.steps_per_epoch
        return self.given_scheduler or build_scheduler(optimizer, self.args, *steps)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: float | None = None
    ) -> Any:
        """The loss of a micro-batch, a share of the window's.

        Args:
            model: as the launch has wrapped it.
            inputs: arguments of its forward.
            return_outputs: whether to return `(loss, outputs)`; `loss_dict` of the outputs is logged.
            num_items_in_batch: what loss sums are divided by, `num_boxes` of the inputs.
        """
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    # ------------------------------------------------------------------------------------------------ the run

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Run the training.

        Args:
            resume_from_checkpoint: True for the newest valid checkpoint of `output_dir`, or the path of one. Without
                one a run begins at step 0, also where this object has trained before: then with the weights in memory,
                or those of `model_init`, and all else new.

        Returns:
            The steps taken, the mean loss of the steps since start or resume, and metrics of the run.

        Raises:
            FileExistsError: `output_dir` holds an earlier run that this one would write into.
            DetectionDataError: the audit found images that can't be read.
            RuntimeError: `max_skipped_steps` steps in a row had a non-finite loss or gradient.
            RunInUse, LockLost: another process trains into `output_dir`.
            LoaderStuck: the workers of a loader gave no batch for `dataloader_timeout` seconds; it is saved before.
            Preempted: a process of the run got SIGTERM, SIGUSR1, SIGHUP or SIGINT (Ctrl-C), or its launcher ended, and
                a checkpoint is written. A `SystemExit` with the code `preemption.EXIT_CODE`.
        """
        if self.train_dataset is None:
            raise ValueError("train() needs a train_dataset, given at construction")
        if self.optimizer is not None and self.parallel.name != "replicated":
            raise ValueError(f"under {self.parallel.name} a trainer trains once: make another one, which may resume")
        in_float32(self.model)  # it may have been changed since, as the arguments
        self._follow_arguments()
        if dataclasses.asdict(self.args) != self._arranged_for:
            self._arrange()
        resume = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        resume = fetch_checkpoint(resume, self.args.hub_token)
        with ExitStack() as stack, out_of_memory_advice(self.args, max(self.scales)):
            stack.enter_context(self.directory.session(resume, self.accelerator))
            stack.enter_context(kept_memory(self.accelerator.device))
            stack.enter_context(self.watchdog)
            for close in [c.close for c in self.callback_handler.callbacks if hasattr(c, "close")]:
                stack.callback(close)  # trackers write what they hold back
            stack.callback(self.checkpointer.close)
            stack.callback(lambda: end_workers(getattr(self.train_loader, "_iterator", None)))
            stack.push(self._end_training)
            self._in_run = True
            stack.enter_context(self.preemption)
            try:
                with self.preemption.interrupts():
                    self._prepare(resume)
            except Noticed:
                self._leave_unprepared()
            started, first_step = time.perf_counter(), self.state.global_step
            self.state.count_seconds()
            self._in_training = True
            try:
                self._run_epochs()
            except (Noticed, LoaderStuck) as reason:
                if self.preemption.acted:
                    raise
                # In an evaluation that a callback of the user's began.
                self._save_and_leave(due=True, error=reason if isinstance(reason, LoaderStuck) else None)
            self._in_training = False
            return self._finish(time.perf_counter() - started, self.state.global_step - first_step)

    def _prepare(self, resume: bool | str | None) -> None:
        """All that comes before the first step: the run directory, the parts, a checkpoint's state, the audit."""
        checkpoint = self.directory.prepare(resume, self.args.to_dict(), self.accelerator)
        if self.optimizer is not None:
            self._forget_run(is_new=checkpoint is None)
        if checkpoint is not None and self._device_decides:
            if keep_precision(self.args, checkpoint, self.accelerator.device):
                replace_precision(self.accelerator, self.args)
        if checkpoint is not None and self.args.is_automatic_batch:
            keep_batch(self.args, checkpoint, self.accelerator.num_processes)
        self._arranged_for = dataclasses.asdict(self.args)  # with what is not the user's doing
        self._build()
        if checkpoint is not None:
            self.checkpointer.load(checkpoint, self.state)
            self.state.restore_callbacks(self.callback_handler.callbacks)
        self.directory.begin(self.accelerator, *self.weights.sizes(), self.args.save_total_limit)
        self.validation.forget_lost_best(self.state)
        with self.watchdog.during("audit of the data"):
            patiently_on_main(lambda: audit_splits(self.splits, self.args.audit, self.model.config), self.accelerator)
        with self.watchdog.during("checksum of the data"):
            contents = patiently_on_main(lambda: hash_splits(self.splits, self.args.audit), self.accelerator)
            self.state.compare_data(contents)
            recorded = self.args, self.model.config, contents, self.accelerator
            patiently_on_main(lambda: self.directory.write_arguments(self.record.to_yaml(*recorded)), self.accelerator)
            self.pictures.labels(self.splits)
        if self.accelerator.is_main_process:
            of_the_run = self.args, self.state, self.accelerator, self.parallel, self.weights, self.splits
            for line in startup_lines(*of_the_run, self.lr_scheduler):
                logger.info("%s", line)

    def _forget_run(self, is_new: bool) -> None:
        """Leave an earlier `train()` of this object behind, however it ended; `is_new`: no checkpoint follows.

        Raises:
            ValueError: the optimizer or the schedule given at construction has been used up.
        """
        steps = self.state.global_step
        if is_new and steps and (self.given_optimizer or self.given_scheduler):
            raise ValueError(
                f"optimizers: the given ones have trained {steps} steps; make another trainer with new ones, or resume"
            )
        self.accelerator.unwrap_model(self.parallel.wrapped, keep_fp32_wrapper=False)
        self.parallel.wrapped = self.model
        self.accelerator.free_memory()
        replace_precision(self.accelerator, self.args)
        if is_new and self.model_init is not None:
            merge_adapters(self.model)
            self.model.load_state_dict(init_model(self.model_init, self.args.seed).state_dict())
        elif is_new and steps:
            logger.warning("a new run begins at step 0, with the weights of %d steps of this trainer in memory", steps)
        self.state, self.control, self.rate = self.state.fresh(), TrainerControl(), self.args.learning_rate
        self.validation.scored.clear()

    def _end_training(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        processes = self.accelerator.num_processes
        is_failure = isinstance(error, Exception) and not isinstance(error, LockLost)  # the log is another run's then
        if is_failure and (self._in_training or processes > 1):
            # At once: the other processes are about to fail for want of this one.
            index = self.accelerator.process_index
            logger.error("process %d of %d failed", index, processes, exc_info=error)
        self._in_training = self._in_run = False

    def _build(self) -> None:
        """The parts that depend on the data and on the launch, freshly seeded."""
        args, parallel, state = self.args, self.parallel, self.state
        if args.full_determinism:
            enable_full_determinism(args.seed, warn_only=True)
        set_seed(args.seed, device_specific=True)
        allow_tf32(args.tf32)
        if (args.lora_r or has_adapters(self.model)) and parallel.name != "replicated":
            raise ValueError(f"adapters (lora_r) train on one process or data parallel, not under {parallel.name}")
        apply_finetuning(self.model, args)
        if args.gradient_checkpointing:
            self.model.enable_activation_checkpointing()
        self.model.to(self.accelerator.device)
        require_finite(self.model.state_dict(), "the model to train")
        self.model.require_writable("the model to train")
        state.keep_callbacks(self.callback_handler.callbacks)  # names what could not be saved
        data = self.train_dataset
        if args.is_automatic_batch:
            with self.watchdog.during("the search for the largest batch"):
                decide_batch(args, data, self.scales, parallel, self._probed_loss)
        self.train_loader = self.get_train_dataloader()
        state.begin(
            args, data.checksum if isinstance(data, ShardedDataset) else data["image_id"], num_images=len(data),
            annotations=annotation_hash(data),
            strategy=parallel.name, world_size=self.accelerator.num_processes,
            steps_per_epoch=len(self.train_loader) // args.micro_batches,
            images_per_step=self.train_loader.batch_sampler.window_size,
        )  # fmt: skip
        given = self.augmentation
        state.identity["augmentation"] = given and getattr(given, "__qualname__", type(given).__name__)
        if args.torch_compile:
            parallel.compile(args.torch_compile_backend)
        optimizer = name_parameters(self.create_optimizer(), self.model)
        self.lr_scheduler = noted(self.create_scheduler(optimizer))
        self.optimizer = parallel.prepare(optimizer)
        self.stateful["scheduler"] = self.lr_scheduler
        if self.accelerator.scaler is not None:
            self.stateful["scaler"] = self.accelerator.scaler
        if args.use_ema:
            self.weights.start_average(args.ema_decay, args.ema_tau, args.ema_update_interval, args.is_official)
        self.drop_path = self.given_drop_path or DropPathSchedule(
            args.drop_path, state.max_steps, mode=args.drop_path_mode, schedule=args.drop_path_schedule,
            cutoff_steps=round(args.drop_path_cutoff_epochs * state.steps_per_epoch),
        )  # fmt: skip
        if not self.given_drop_path and self.drop_path.is_idle:
            raise ValueError(
                f"drop_path={args.drop_path} is in no step: change drop_path_cutoff_epochs, or leave it out"
            )
        handler, loader = self.callback_handler, self.train_loader
        handler.optimizer, handler.lr_scheduler, handler.train_dataloader = self.optimizer, self.lr_scheduler, loader
        self._unsettled = None
        self.losses.reset()
        self.stopwatch.reset()

    def _run_epochs(self) -> None:
        """Train from where the state stands to the last step, or until a callback ends the run."""
        state = self.state
        self._fire_together("on_train_begin")
        if state.stopped:
            logger.info("a callback had ended the run at step %d: it stays ended", state.global_step)
            self.control.should_training_stop = True
        elif state.global_step >= state.max_steps:
            logger.info("the run has all its %d steps, and nothing is left to train; a larger num_train_epochs or "
                        "max_steps goes on", state.max_steps)  # fmt: skip
        if self.args.eval_on_start and state.global_step == 0:
            self._evaluate_and_track(due=False)
            agree_on_control(self.control, self.parallel)
        while state.epochs_done < state.num_train_epochs and not self.control.should_training_stop:
            self._fire_together("on_epoch_begin")
            if state.due:
                # The callbacks asked for it after the step that a preempted run ended with.
                for name, value in state.due.items():
                    setattr(self.control, name, value)
                state.due = {}
                self._log_evaluate_save()
            windows = self._windows()
            while not (self.control.should_epoch_stop or self.control.should_training_stop):
                window = next(windows, None)
                if window is None:
                    break
                if self.training_step(window, state).preempted:
                    self._save_and_leave(due=True)
                self._log_evaluate_save()
            self._fire_together("on_epoch_end")
            self._log_evaluate_save(epoch_finished=True)
            if self.parallel.sum_on_hosts(self.preemption.received)[0]:
                self._save_and_leave(epoch_finished=True)
            state.end_epoch()

    def _windows(self) -> Iterator[list[Batch]]:
        """The micro-batches of each optimizer step that is left of this epoch."""
        accumulation, state = self.args.micro_batches, self.state
        sampler = self.train_loader.batch_sampler
        if isinstance(sampler, EpochBatchSampler):
            sampler.order = state.order
        sampler.set_epoch(state.epochs_done, start_batch=state.steps_in_epoch * accumulation)
        batches = Batches(self.train_loader, self.preemption, self.args.dataloader_timeout)
        for _ in range(state.steps_left_in_epoch):
            started = time.perf_counter()
            self.watchdog.at("loading data")
            window = batches.take(accumulation)
            if self.accelerator.num_processes > 1:
                self.watchdog.at("waiting for the other processes")
            without, stuck = self.parallel.sum_on_hosts(window is None, batches.stuck)
            if without:  # no process takes a step that one has no data for
                self._save_and_leave(error=batches.why_stuck() if stuck else None)
            self.stopwatch.waited += time.perf_counter() - started
            self.watchdog.at("a training step")
            self.pictures.batch(state.global_step, window or [], self.train_dataset, self._scale(state.global_step))
            yield window or []

    def _scale(self, step: int) -> float | None:
        """The share of the loader's sides, which are the largest, that a step resizes to; None for all of it."""
        args, scales = self.args, self.scales
        if args.multi_scale != "per_batch":
            return None
        return scale_for_step(scales, args.seed, step, args.is_official) / max(scales)

    def training_step(self, window: list[Batch], state: RunState) -> StepResult:
        """One optimizer step: forward and backward over the window's micro-batches, then one update of all.

        Args:
            window: this process's micro-batches of the step.
            state: of the run; counts the step.

        Raises:
            RuntimeError: too many steps in a row were not finite.
        """
        args, parallel, step = self.args, self.parallel, state.global_step
        parallel.wrapped.train()
        self._fire("on_step_begin")
        # The same message says whether a rank is to end early: all end at the same step.
        boxes = [batch["labels"].num_boxes for batch in window]
        *boxes, notices = parallel.sum_on_hosts(*boxes, self.preemption.received)
        groups, apart = self.model.config.group_detr, args.is_official and self.model.task != "keypoints"
        divisors = loss_divisors(boxes, groups, self.accelerator.num_processes, apart)
        shared = {"seed": derive_seed(args.seed, step), "drop_path_rate": self.drop_path.at(step)}
        scale = self._scale(step)
        if type(self).compute_loss is not RFDETRTrainer.compute_loss:
            self._settle()  # it may look at the state
        window_loss = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(window):
            last = i == len(window) - 1
            with parallel.micro_batch(last):
                inputs = self.to_device(batch, scale) | shared | {"num_boxes": divisors[i]}
                with parallel.autocast():
                    loss, outputs = self.compute_loss(parallel.wrapped, inputs, True, num_items_in_batch=divisors[i])
                parallel.backward(loss, last)
            window_loss = window_loss + loss.detach()
            self.losses.add(loss, outputs.loss_dict, len(window))
            if not last:
                self._fire("on_substep_end")
        self._settle()  # the step before, now that the device has work for longer
        self.rate = present_rate(self.optimizer, args)
        update = update_weights(parallel, window_loss, lambda: self._fire("on_pre_optimizer_step"))
        self._unsettled = Unsettled(step, update, self.losses.take(), [b["labels"].fields["image_id"] for b in window])
        failure = None
        try:
            if not parallel.skips_on_device or concerns(self.callback_handler.callbacks, "on_optimizer_step"):
                self._settle()
            state.count_step(sum(boxes))
            self.stopwatch.steps += 1
            self.stopwatch.images += sum(len(b["pixel_values"]) for b in window) * self.accelerator.num_processes
            self._fire("on_step_end")
        except TooManySkipped as error:  # others may learn of it a step later
            failure = error
        if agree_on_control(self.control, parallel, self._unsettled is None, failure):
            self._settle()
        return StepResult(window_loss, *update, notices > 0)

    def _settle(self) -> None:
        """Let the host learn whether the latest step was skipped, and do what follows a step.

        Where the device skips by itself, this is put off until the next step has queued its work, or until something
        may look at the state: a callback, a log event, an evaluation, a checkpoint. The weights are those of the step
        all the while, so nothing comes out otherwise.
        """
        latest, self._unsettled = self._unsettled, None
        if latest is None:
            return
        if latest.update.skipped:
            # Weights, schedule and average stay as they are.
            images = [image_id for ids in latest.image_ids for image_id in ids.tolist()]
            self.state.skip_step(latest.number, images, self.args.max_skipped_steps)
            return
        self._fire("on_optimizer_step")
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.update(latest.number + 1)
        self.losses.end_step(latest.terms, latest.update.grad_norm)
        self.state.skipped_in_a_row = 0

    def _probed_loss(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch at the largest scale, by the model itself, before it is prepared."""
        divisor = max(batch["labels"].num_boxes * self.model.config.group_detr, 1)
        shared = {"seed": 0, "drop_path_rate": self.args.drop_path, "num_boxes": divisor}
        with self.parallel.autocast():
            inputs = self.to_device(batch) | shared
            return self.compute_loss(self.model, inputs, True, num_items_in_batch=divisor)[0]

    def to_device(self, batch: Mapping[str, Any], scale: float | None = None) -> Batch:
        """A batch of a loader as arguments of the model's forward; see `batch_to_device`."""
        return batch_to_device(batch, self.accelerator.device, self.image_processor, self.model.config, scale)

    # ------------------------------------------------------------------------------------------------ between steps

    def _log_training(self) -> None:
        self._settle()
        state, steps = self.state, self.losses.steps
        logs = self.losses.read(self.accelerator)
        if not logs:
            return
        state.loss_total, state.loss_steps = state.loss_total + logs["loss"] * steps, state.loss_steps + steps
        logs["learning_rate"] = self.rate  # of the step that was taken
        logs["skipped_steps"] = state.skipped_steps
        logs |= self.stopwatch.read(self.accelerator.device, state.max_steps - state.global_step)
        self.losses.reset()
        self.stopwatch.reset()
        self.log(logs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Give a log event to the callbacks and to `state.log_history`.

        Args:
            logs: names and values.
            start_time: for subclasses that pass on what Transformers counts text tokens by; nothing follows from it.
        """
        self.directory.lock.check()
        logs = {**plain_logs(logs), "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._fire("on_log", logs=logs)

    def _evaluate_and_track(self, due: bool) -> bool:
        """Evaluate; returns whether a score is the best so far, which `best/` then holds.

        `due`: whether a run that has to end meanwhile must note that this is still to be done.
        """
        self._announce_saved()
        started, go_back = time.perf_counter(), self.state.before_evaluation(self.callback_handler.callbacks)
        try:
            metrics = self.evaluate()
            with self.parallel.together():
                self.validation.require_score(metrics, self.state)
            improved = self.validation.keep_best(metrics, self.state, self._card(metrics))
        except (Noticed, LoaderStuck) as reason:
            go_back()
            self._save_and_leave(due=due, error=reason if isinstance(reason, LoaderStuck) else None)
        except LockLost:
            raise
        except Exception as error:
            processes, step = self.accelerator.num_processes, self.state.global_step
            if self._in_training and processes > 1 and not is_shared(error):
                # The others are in the middle of it, and end for want of this process.
                logger.error(
                    "the evaluation of step %d failed on process %d of %d, in a forward pass or another operation of "
                    "all: no checkpoint of this step can be written; resume from %s",
                    step, self.accelerator.process_index, processes,
                    self.directory.newest() or "the start, since there is no checkpoint",
                )  # fmt: skip
            elif self._in_training:
                logger.error("the evaluation of step %d failed; its checkpoint is written", self.state.global_step)
                go_back()
                self._save(due=due)
                self.checkpointer.wait()
            raise
        with self.watchdog.during("drawing"):
            self.pictures.evaluated(self.validation.scored, improved, self._card(metrics), self.state)
        self.validation.scored.clear()
        self.stopwatch.paused += time.perf_counter() - started
        return improved
