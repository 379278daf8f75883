"""The training loop."""

import contextlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput, enable_full_determinism

from ..data.pipeline.pixels import prepare_pixels
from ..data.schema import keypoint_schema
from ..data.pipeline.recipe import MAX_SIZE
from ..losses.points import derive_seed
from ..hub.push import HubCallback, HubUploader, fetch_checkpoint
from ..models.image_processing_rfdetr import RFDETRImageProcessor
from ..models.modeling_rfdetr import RFDETRForObjectDetection
from .arguments import RFDETRTrainingArguments
from .checkpoint.background import create_saver
from .callbacks import MetricsCsvCallback, ProgressCallback
from .checkpoint.directory import clean_leftovers
from .checks import audit_splits, check_run, check_split, default_metric
from .console import log_to_console, log_to_file, stop_logging
from .distributed import Hosts, allow_tf32, build_accelerator
from .finetuning import apply_finetuning, merge_adapters
from .loaders import end_workers
from .meters import EvalLossMeter, LossMeter, Stopwatch
from .multi_scale import compute_scales, scale_for_step
from .parts import TrainerParts
from .preemption import EXIT_CODE, Preempted, PreemptionNotice
from .state import forget_lost_best, has_best, identity, weights_of
from .checkpoint.run_directory import RunDirectory
from .checkpoint.contents import load_checkpoint, load_weights, save_checkpoint, save_pretrained
from .scoring import detections, score
from .parallel import choose_strategy, compile_blocks
from .trackers import TrackerCallback

logger = logging.getLogger("rfdetr_hf")


class PredictionOutput(NamedTuple):
    """What [`RFDETRTrainer.predict`] returns."""

    predictions: list[dict[str, Any]]
    metrics: dict[str, float]


class RFDETRTrainer(TrainerParts):
    """Trains, evaluates and saves an RF-DETR model on Accelerate.

    Args:
        model: the model to train; its `id2label` must name the classes of the data.
        args: see [`RFDETRTrainingArguments`].
        train_dataset: a `datasets.Dataset` in the schema of [`load_detection_dataset`].
        eval_dataset: likewise, for evaluation during training.
        image_processor: the pre-processing of evaluation and prediction, saved with the model; default: a square resize
            to the model's resolution.
        callbacks: `transformers.TrainerCallback`s.
        augmentation: a torchvision-v2 transform, an Albumentations pipeline or a callable `(image, target) -> (image,
            target)`, applied to training samples beside the recipe of the arguments.
        test_dataset: likewise, evaluated once at the end of training by the model that is then in memory.
        compute_metrics: takes an `EvalPrediction` of all images, whose `predictions` are those of
            [`~evaluation.by_image.predictions_by_image`] and whose `label_ids` are those of
            [`~evaluation.by_image.truth_by_image`], and returns further metrics; called on the main process.
    """

    def __init__(
        self,
        model: RFDETRForObjectDetection,
        args: RFDETRTrainingArguments,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        image_processor: RFDETRImageProcessor | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        augmentation: Callable[..., Any] | None = None,
        test_dataset: Dataset | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    ) -> None:
        if args.metric_for_best_model is None:
            args.metric_for_best_model = default_metric(args, model.task)
        self.args = args
        self.model = self.wrapped = model
        self.train_dataset, self.eval_dataset, self.test_dataset = train_dataset, eval_dataset, test_dataset
        self.compute_metrics = compute_metrics
        self.image_processor = image_processor or _processor_for(model, args.square_resize)
        self.augmentation = augmentation
        self.model_class = type(model)
        self.accelerator = build_accelerator(args)
        self.strategy = choose_strategy(self.accelerator, args)
        self.saver = create_saver(self)
        self.hosts = Hosts(self.accelerator, args.ddp_timeout)
        self.notice = PreemptionNotice()
        self.run = RunDirectory(args.output_dir)
        self.state = TrainerState(
            is_local_process_zero=self.accelerator.is_local_main_process,
            is_world_process_zero=self.accelerator.is_main_process,
        )
        self.control = TrainerControl()
        self.optimizer = self.scheduler = self.ema = None
        self.train_loader: Any = None
        self._in_training = False
        check_run(self, callbacks or ())
        if model.task == "keypoints" and model.config.keypoint_schema is None and train_dataset is not None:
            model.config.keypoint_schema = keypoint_schema(train_dataset).to_dict()
        own = [DefaultFlowCallback(), ProgressCallback(), MetricsCsvCallback(self.run.metrics)]
        if args.early_stopping_patience is not None:
            own.append(self.create_early_stopping())
        if args.trackers:
            own.append(TrackerCallback(args.trackers))
        self.hub = HubUploader(args.hub_model_id or self.run.root.resolve().name, args.hub_token, args.hub_private_repo)
        if args.push_to_hub:
            own.append(HubCallback(self.hub, notify=lambda: self.fire("on_push_begin")))
        self.callback_handler = CallbackHandler([*own, *(callbacks or ())], model, self.image_processor, None, None)
        self.fire("on_init_end")

    def fire(self, event: str, **kwargs: Any) -> None:
        """Tell the callbacks of an event."""
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control, **kwargs)

    # ------------------------------------------------------------------------------------------------ the run

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Run the training.

        Args:
            resume_from_checkpoint: True for the newest whole checkpoint of `output_dir`, or the path of one.

        Returns:
            The steps taken, the mean loss of the steps since start or resume, and metrics of the run.

        Raises:
            FileExistsError: `output_dir` holds an earlier run that this one would write into.
            DetectionDataError: the audit found images that can't be read.
            RuntimeError: `max_skipped_steps` steps in a row had a non-finite loss or gradient.
            Preempted: the process got SIGTERM or SIGUSR1, and a checkpoint of the step it was in is written. A
                `SystemExit` with the code `preemption.EXIT_CODE`.
        """
        if self.train_dataset is None:
            raise ValueError("train() needs a train_dataset, given at construction")
        resume = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        checkpoint = self._prepare_directory(resume)
        log_file = self._open_run()
        try:
            self._build()
            if checkpoint is not None:
                load_checkpoint(self, checkpoint)
                forget_lost_best(self)
            audit_splits(self)
            self._write_arguments()
            started = time.perf_counter()
            self._in_training = True
            with self.notice:
                self._loop()
            self._in_training = False
            return self._finish(time.perf_counter() - started)
        except Exception:
            processes = self.accelerator.num_processes
            if self._in_training or processes > 1:
                # At once, for the other processes are about to fail for want of this one.
                logger.exception("process %d of %d failed", self.accelerator.process_index, processes)
            raise
        finally:
            self._in_training = False
            end_workers(self.train_loader)
            self.saver.close()
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TrackerCallback):
                    callback.close()
            stop_logging(log_file)

    def _prepare_directory(self, resume: bool | str | None) -> Path | None:
        """Refuse the directory of another run, tidy up in one's own, find the checkpoint to go on from."""
        self.run.refuse_earlier_run(resume)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run.root.mkdir(parents=True, exist_ok=True)
            clean_leftovers(self.run.root)
        self.accelerator.wait_for_everyone()
        return self.run.find_checkpoint(fetch_checkpoint(resume, self.args.hub_token))

    def _open_run(self) -> logging.Handler:
        if not self.accelerator.is_main_process:
            return logging.NullHandler()
        log_to_console()
        return log_to_file(self.run.log)

    def _write_arguments(self) -> None:
        if self.accelerator.is_main_process:
            self.run.arguments.write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _build(self) -> None:
        """Everything that `_loop` works with, freshly seeded."""
        args, config = self.args, self.model.config
        if args.full_determinism:
            enable_full_determinism(args.seed, warn_only=True)
        set_seed(args.seed, device_specific=True)
        allow_tf32(args.tf32)
        if args.lora_r and self.strategy.name != "replicated":
            raise ValueError(
                f"lora_r={args.lora_r} runs on one process or data parallel, not under {self.strategy.name}"
            )
        apply_finetuning(self.model, args)
        if args.gradient_checkpointing:
            self.model.enable_activation_checkpointing()
        backbone = config.backbone_config
        self.scales = compute_scales(config.resolution, backbone.patch_size, backbone.num_windows, args.expanded_scales)
        self.train_loader = self.get_train_dataloader()
        self.steps_per_epoch = len(self.train_loader) // args.gradient_accumulation_steps
        epochs = args.num_train_epochs
        self.state.max_steps = args.max_steps if args.max_steps > 0 else math.ceil(epochs * self.steps_per_epoch)
        self.state.num_train_epochs = math.ceil(self.state.max_steps / self.steps_per_epoch)
        self.state.compute_steps(args, self.state.max_steps)
        self.identity = identity(self)
        self._build_optimization()
        self.best = self.create_best_model()
        self.losses, self.stopwatch = LossMeter(), Stopwatch()
        self.epoch = self.steps_in_epoch = 0
        self.skipped_steps = self.skipped_in_a_row = 0
        self.due: dict[str, bool] = {}
        self.preempted = self.had_stopped = False
        self.best_weights: str | None = None
        self._loss_sum = self._loss_steps = 0

    def _build_optimization(self) -> None:
        args = self.args
        self.model.to(self.accelerator.device)
        if args.torch_compile:
            compile_blocks(self.model, args.torch_compile_backend)
        optimizer = self.create_optimizer()
        self.scheduler = self.create_scheduler(optimizer)
        self.wrapped, self.optimizer = self.strategy.prepare(self.model, optimizer)
        self.ema = self.create_average() if args.use_ema else None
        self.drop_path = self.create_drop_path_schedule()
        handler = self.callback_handler
        handler.optimizer, handler.lr_scheduler, handler.train_dataloader = (
            self.optimizer,
            self.scheduler,
            self.train_loader,
        )

    def _loop(self) -> None:
        self.fire("on_train_begin")
        if self.had_stopped:
            logger.info("a callback had ended the run at step %d: it stays ended", self.state.global_step)
            self.control.should_training_stop = True
        if self.args.eval_on_start and self.state.global_step == 0:
            self._evaluate_and_track()
        while self.epoch < self.state.num_train_epochs and not self.control.should_training_stop:
            self._train_epoch()
            self.epoch, self.steps_in_epoch = self.epoch + 1, 0

    def _train_epoch(self) -> None:
        self.fire("on_epoch_begin")
        if self.due:
            self._do_what_is_due()
        windows = self._windows()
        while not self._stops() and (window := next(windows, None)) is not None:
            self._train_step(window)
            self._end_if_preempted()
            self._log_evaluate_save()
        self.fire("on_epoch_end")
        self._log_evaluate_save(epoch_finished=True)

    def _do_what_is_due(self) -> None:
        """What the callbacks asked for after the step that a preempted run ended with."""
        for name, value in self.due.items():
            setattr(self.control, name, value)
        self.due = {}
        self._log_evaluate_save()

    def _stops(self) -> bool:
        return self.control.should_epoch_stop or self.control.should_training_stop

    def _end_if_preempted(self) -> None:
        if self.preempted:
            self.saver.wait()
            save_checkpoint(self, due=True)
            logger.warning(
                "preempted: saved step %d; exit code %d; go on with resume_from_checkpoint=True",
                self.state.global_step,
                EXIT_CODE,
            )
            raise Preempted

    def _windows(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each optimizer step that is left of this epoch."""
        accumulation = self.args.gradient_accumulation_steps
        self.train_loader.batch_sampler.set_epoch(self.epoch, start_batch=self.steps_in_epoch * accumulation)
        batches = iter(self.train_loader)
        left = self.state.max_steps - self.state.global_step
        for _ in range(self.steps_in_epoch, min(self.steps_per_epoch, self.steps_in_epoch + left)):
            started = time.perf_counter()
            window = [next(batches) for _ in range(accumulation)]
            self.stopwatch.waited += time.perf_counter() - started
            yield window

    # ------------------------------------------------------------------------------------------------ one step

    def _train_step(self, window: list[dict[str, Any]]) -> None:
        """Forward and backward over the window's micro-batches, then one update of weights, schedule and EMA."""
        self.wrapped.train()
        self.fire("on_step_begin")
        scale = self._step_scale()
        num_boxes = self._window_boxes(window)
        for i, batch in enumerate(window):
            last = i == len(window) - 1
            with self.strategy.micro_batch(last):
                self._forward_backward(batch, scale, num_boxes, len(window), last)
            if not last:
                self.fire("on_substep_end")
        grad_norm, taken = self.strategy.step(self.losses.now[0], lambda: self.fire("on_pre_optimizer_step"))
        if taken:
            self._update(grad_norm)
        else:
            self._skip(window)
        self._count_step(window)
        self.fire("on_step_end")

    def _step_scale(self) -> float | None:
        """Scale of this step as a share of the largest, which the loader's images have."""
        if self.args.multi_scale != "per_batch":
            return None
        return scale_for_step(self.scales, self.args.seed, self.state.global_step) / max(self.scales)

    def _window_boxes(self, window: list[dict[str, Any]]) -> float:
        """This rank's share of the normaliser of every loss term: boxes of the window on all ranks × groups ÷ ranks.

        Learns on the way whether any rank has notice of an early end, so that all end at the same step.
        """
        boxes = sum(batch["labels"].num_boxes for batch in window)
        total, notices = self.hosts.sum(boxes, self.notice.received)
        self.preempted = notices > 0
        return max(total * self.model.config.group_detr, 1) / self.accelerator.num_processes

    def _forward_backward(
        self, batch: dict[str, Any], scale: float | None, num_boxes: float, micro_batches: int, last: bool
    ) -> None:
        inputs = self.to_device(batch, scale)
        with self.strategy.autocast():
            step = self.state.global_step
            seed, rate = derive_seed(self.args.seed, step), self.drop_path.at(step)
            outputs = self.wrapped(**inputs, num_boxes=num_boxes, drop_path_rate=rate, seed=seed)
        self.strategy.backward(outputs.loss, last)
        self.losses.add(outputs.loss, outputs.loss_dict, micro_batches)

    def to_device(self, batch: dict[str, Any], scale: float | None = None) -> dict[str, Any]:
        """A batch of a loader as the arguments of the model's forward, on the device."""
        device, processor = self.accelerator.device, self.image_processor
        size = None if scale is None else self._scaled(batch["pixel_values"].shape[-2:], scale)
        pixels = batch["pixel_values"].to(device, non_blocking=True)
        mask = batch.get("pixel_mask")
        mask = mask.to(device, non_blocking=True) if mask is not None else None
        pixels, mask = prepare_pixels(pixels, mask, processor.image_mean, processor.image_std, size)
        labels = batch["labels"].to(device, non_blocking=True).unpack()
        return {"pixel_values": pixels, "pixel_mask": mask, "labels": labels}

    def _scaled(self, size: Sequence[int], scale: float) -> tuple[int, ...]:
        divisor = self.model.config.size_divisor
        return tuple(max(round(side * scale / divisor), 1) * divisor for side in size)

    def _update(self, grad_norm: torch.Tensor) -> None:
        self.fire("on_optimizer_step")
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.state.global_step + 1)
        self.losses.end_step(grad_norm)
        self.skipped_in_a_row = 0

    def _skip(self, window: list[dict[str, Any]]) -> None:
        """Leave weights, schedule and average as they are; too many such steps in a row end the run."""
        self.losses.drop_step()
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        images = [int(image_id) for batch in window for image_id in batch["labels"].fields["image_id"]]
        logger.warning("step %d skipped: loss or gradient is not finite; images %s", self.state.global_step, images)
        if self.skipped_in_a_row >= max(self.args.max_skipped_steps, 1):
            raise RuntimeError(
                f"{self.skipped_in_a_row} steps in a row had a non-finite loss or gradient, lastly on images {images}; "
                "look at their annotations, or lower learning_rate"
            )

    def _count_step(self, window: list[dict[str, Any]]) -> None:
        self.state.global_step += 1
        self.steps_in_epoch += 1
        self.state.epoch = self.epoch + self.steps_in_epoch / self.steps_per_epoch
        self.stopwatch.steps += 1
        images = sum(len(batch["pixel_values"]) for batch in window)
        self.stopwatch.images += images * self.accelerator.num_processes

    # ------------------------------------------------------------------------------------------------ between steps

    def _log_evaluate_save(self, epoch_finished: bool = False) -> None:
        if self.control.should_log or self.state.global_step == self.state.max_steps:
            self._log_training()
        improved = self._evaluate_and_track() if self.control.should_evaluate else False
        if self.control.should_save or (improved and self.args.save_strategy == SaveStrategy.BEST):
            self.saver.save(epoch_finished)

    def _log_training(self) -> None:
        steps = self.losses.steps
        logs = self.losses.read(self.accelerator)
        if not logs:
            return
        self._loss_sum, self._loss_steps = self._loss_sum + logs["loss"] * steps, self._loss_steps + steps
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        logs["learning_rate"] = max(rates.values())
        logs["skipped_steps"] = self.skipped_steps
        logs |= self.stopwatch.read(self.accelerator.device, self.state.max_steps - self.state.global_step)
        self.log(logs)

    def log(self, logs: dict[str, float]) -> None:
        """Give a log event to the callbacks and to `state.log_history`."""
        logs = {**logs, "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.fire("on_log", logs=logs)

    def _evaluate_and_track(self) -> bool:
        """Evaluate; returns whether a score is the best so far, which `best/` then holds."""
        self.saver.wait()
        started = time.perf_counter()
        metrics = self.evaluate()
        improved = self.best.update(metrics, self.state.epoch, self.state.global_step)
        if improved:
            self.state.best_metric, self.state.best_global_step = self.best.score, self.best.step
            self.state.best_model_checkpoint = str(self.run.best)
            self._save_weights(self.run.best, average=self.best.source == "ema", metrics=metrics)
            self.best_weights = weights_of(self.run.best)
        self.stopwatch.paused += time.perf_counter() - started
        return improved

    def _save_weights(self, path: Path, average: bool, metrics: dict[str, float] | None = None) -> None:
        with self.ema.swap() if average else contextlib.nullcontext():
            save_pretrained(self, path, metrics)

    def _finish(self, runtime: float) -> TrainOutput:
        self.saver.wait()
        self._save_weights(self.run.last, average=self.ema is not None)
        self.model = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        takes_best = self.args.load_best_model_at_end and has_best(self)
        if takes_best:
            merge_adapters(self.model)
            load_weights(self.model, self.run.best)
            score = f"{self.args.metric_for_best_model} {self.best.score:.4f}"
            told = f"the best: {self.best.source} weights of step {self.best.step}, {score}"
        elif self.ema is not None:
            self.ema.put_in_place()
            told = f"the average at step {self.state.global_step}"
        else:
            told = f"the weights of step {self.state.global_step}"
        merge_adapters(self.model)
        logger.info("the model in memory is %s", told)
        metrics = {"train_runtime": runtime, "train_skipped_steps": self.skipped_steps}
        if self.test_dataset is not None:
            metrics |= self._test(self.run.best if takes_best else self.run.last)
        self.fire("on_train_end")
        return TrainOutput(self.state.global_step, self._loss_sum / max(self._loss_steps, 1), metrics)

    def _test(self, folder: Path) -> dict[str, float]:
        """Evaluate the test split by the model in memory, which `folder` holds; its card then tells the scores."""
        metrics = self.evaluate(self.test_dataset, metric_key_prefix="test")
        save_pretrained(self, folder)
        return metrics

    def save_model(self, output_dir: str | None = None) -> None:
        """Write the model in memory as a `from_pretrained` folder with its image processor; default: `last/`."""
        save_pretrained(self, Path(output_dir) if output_dir else self.run.last)

    def push_to_hub(self, commit_message: str = "End of training", blocking: bool = True) -> str | None:
        """Upload the model in memory, with image processor and model card, to `hub_model_id`.

        Args:
            commit_message: of the commit.
            blocking: wait, and raise what goes wrong; else upload in the background and report it.

        Returns:
            The address of the commit on the main process when blocking, else None.
        """
        folder = self.run.root / ".del-push"  # of a kind that an interrupted run leaves to be removed
        save_pretrained(self, folder)
        if not self.accelerator.is_main_process:
            return None
        self.fire("on_push_begin")
        try:
            if blocking:
                return self.hub.push(folder, commit_message)
            return self.hub.submit(folder, commit_message)
        finally:
            shutil.rmtree(folder)

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, eval_dataset: Dataset | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """COCO metrics of the weights that the arguments name: `eval_map`…, and `eval_ema_map`… for the average.

        Outside of training the model in memory is evaluated, under the plain names.

        Args:
            eval_dataset: default: the one given at construction.
            metric_key_prefix: first part of each name.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("evaluate() needs an eval_dataset, here or at construction")
        check_split(self.model, metric_key_prefix, dataset)
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        for prefix in self.args.evaluated_prefixes if self._in_training else ("",):
            folder = self._eval_folder(prefix, metric_key_prefix)
            with self.ema.swap() if prefix else contextlib.nullcontext():
                scores = self._score(dataset, folder)
            metrics |= {f"{metric_key_prefix}_{prefix}{name}": value for name, value in scores.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.fire("on_evaluate", metrics=metrics)
        return metrics

    def _eval_folder(self, prefix: str, metric_key_prefix: str) -> Path | None:
        """Where an evaluation of a run leaves its tables and curves: `eval/<step>/ema`, `eval/<step>/raw`."""
        if not self._in_training:
            return None
        weights = "ema" if prefix else "raw"
        return self.run.root / metric_key_prefix / str(self.state.global_step) / weights

    def _score(self, dataset: Dataset, folder: Path | None) -> dict[str, float]:
        evaluator, losses = self.create_evaluator(dataset), EvalLossMeter() if self.args.eval_loss else None
        for image_ids, found in detections(self, dataset, losses):
            evaluator.update(image_ids, found)
        scores = score(self, dataset, evaluator, folder)
        return scores if losses is None else scores | losses.read(self.accelerator)

    def predict(self, dataset: Dataset, metric_key_prefix: str = "test") -> PredictionOutput:
        """Detections of every image of a data set by the model in memory, and the COCO metrics they give.

        Returns:
            predictions: a dict per image, in the order of the data: `image_id`, `scores` (n,), `labels` (n,), `boxes`
                (n, 4) xyxy in pixels, on the CPU; `masks` as run-lengths, or `keypoints`, of such a model.
        """
        check_split(self.model, metric_key_prefix, dataset)
        evaluator, found = self.create_evaluator(dataset), []
        for image_ids, batch in detections(self, dataset):
            evaluator.update(image_ids, batch)
            for image_id, each in zip(image_ids, batch, strict=True):
                found.append({"image_id": image_id} | {name: _on_host(value) for name, value in each.items()})
        by_id = {each["image_id"]: each for each in gather_object(found)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in score(self, dataset, evaluator).items()}
        self.fire("on_predict", metrics=metrics)
        return PredictionOutput([by_id[image_id] for image_id in dataset["image_id"]], metrics)


def _on_host(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _processor_for(model: RFDETRForObjectDetection, square: bool) -> RFDETRImageProcessor:
    side = model.config.resolution
    if square:
        return RFDETRImageProcessor(size={"height": side, "width": side})
    size = {"shortest_edge": side, "longest_edge": MAX_SIZE}
    return RFDETRImageProcessor(size=size, do_pad=True, size_divisor=model.config.size_divisor)
