"""How a run writes where it stands, and how it ends: the methods of `RFDETRTrainer` for it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from transformers import TrainerControl
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ..hub.model_card import CardFacts
from ..models.adapters import merge_adapters
from .agreement import agree_on_control, on_main
from .card import card_facts
from .checkpoint.checkpointer import Checkpointer
from .checkpoint.directory import MANIFEST
from .checkpoint.lock import LockLost
from .checkpoint.reading import CheckpointFiles
from .checkpoint.sharded import write_state
from .checkpoint.weights import MODEL
from .ema import ExponentialMovingAverage
from .evaluation_methods import EvaluationMethods
from .meters import speeds
from .parallel import Parallel
from .pictures import RunPictures
from .preemption import EXIT_CODE, Noticed, Preempted
from .status import FINISHED, PREEMPTED
from .watchdog import Watchdog

logger = logging.getLogger(__name__)

_TRAINED = "the training is complete; the scores of the test split are missing"


class EndingMethods(EvaluationMethods):
    """Checkpoints of the present step, the end before the last step and after it."""

    checkpointer: Checkpointer
    control: TrainerControl
    ema: ExponentialMovingAverage | None
    parallel: Parallel
    pictures: RunPictures
    train_dataset: Any
    watchdog: Watchdog
    _log_training: Callable[[], None]
    _evaluate_and_track: Callable[..., bool]
    _takes_best = False  # whether the model in memory is the best one, after a training

    def _fire_together(self, event: str) -> None:
        """`_fire`, after which all processes are to do what a callback of one asks for."""
        self._fire(event)
        agree_on_control(self.control, self.parallel)

    def _log_evaluate_save(self, epoch_finished: bool = False) -> None:
        """Do what the callbacks ask for, alike on all processes; an event of each may ask for more."""
        if self.control.should_log or self.state.global_step == self.state.max_steps:
            self._log_training()
            agree_on_control(self.control, self.parallel)
        improved = False
        if self.control.should_evaluate:
            improved = self._evaluate_and_track(due=not epoch_finished)
            agree_on_control(self.control, self.parallel)
        if self.control.should_save or (improved and self.args.save_strategy == SaveStrategy.BEST):
            self._announce_saved()
            if self.args.async_save:  # a callback may have heard of the checkpoint before
                agree_on_control(self.control, self.parallel)
            self._save(epoch_finished)
            if self.args.async_save:
                self.control.should_save = False
            else:
                self._fire_together("on_save")

    def _save(self, epoch_finished: bool = False, due: bool = False) -> None:
        """Write a checkpoint; `due`: the latest step's logging, evaluation and saving are still to be done."""
        self.state.mark(self.control, epoch_finished, due)
        self.state.keep_callbacks(self.callback_handler.callbacks)
        with self.watchdog.during("saving a checkpoint"):
            self.checkpointer.save(self.state, self._card())

    def _announce_saved(self) -> None:
        """Fire `on_save` for a checkpoint from the background as it would have been at its step.

        Each save, evaluation and end begins with it, so from here on no step is unsettled.
        """
        self._settle()
        saved = self.checkpointer.wait()
        if saved is None:
            return
        due, now = self.control.should_save, self.state
        self.state = saved
        try:
            self._fire("on_save")
        finally:
            self.state = now
        # A save that is due by now stays due.
        self.control.should_save = self.control.should_save or due

    def _save_and_leave(self, epoch_finished: bool = False, due: bool = False, error: Any = None) -> NoReturn:
        self._announce_saved()
        self._save(epoch_finished, due)
        self.checkpointer.wait()
        self.preemption.acted = True
        if error is not None:
            raise error
        step = self.state.global_step
        if self.accelerator.is_main_process:
            logger.warning(
                "preempted: saved step %d; exit code %d; resume_from_checkpoint=True goes on", step, EXIT_CODE
            )
        self.directory.set_status(state=PREEMPTED, step=step, last_checkpoint=f"checkpoint-{step}")
        self._leave()

    def _leave(self) -> NoReturn:
        """End all processes of a run that has saved where it stands."""
        self.directory.release()
        # A launcher ends the other processes when the first one has ended.
        self.accelerator.wait_for_everyone()
        raise Preempted

    def _leave_unprepared(self) -> NoReturn:
        """A notice came before the first step: there is nothing to save, and a scheduler may start the run again."""
        self.preemption.acted = True
        if self.accelerator.is_main_process:
            logger.warning("preempted before the first step: nothing to save; exit code %d", EXIT_CODE)
        if self.directory.status.fields:  # else the file, if any, is that of an earlier run
            self.directory.set_status(state=PREEMPTED, message="before the first step: nothing was to be saved")
        self.directory.release()
        raise Preempted

    def _finish(self, runtime: float, steps: int) -> TrainOutput:
        """What follows the last step: the models and the report, then the test split, whose failure costs none of it.

        Raises:
            Preempted: a notice ended the evaluation of the test split, and the run can be resumed for it.
            Exception: that evaluation failed.
        """
        state, self._takes_best = self.state, False
        self._announce_saved()
        state.count_seconds()
        with self.weights.averaged():
            last = self.directory.replacing(self.directory.last, state.global_step)
            self.weights.save_pretrained(last, self._card(), self.accelerator)
        # Accelerate's wrapper of `forward` comes off the model.
        self.accelerator.unwrap_model(self.parallel.wrapped, keep_fp32_wrapper=False)
        takes_best = self._takes_best = self._choose_weights()
        metrics = {"train_loss": state.loss_total / max(state.loss_steps, 1)}
        metrics |= speeds("train", runtime, steps * state.identity["images_per_step"], steps)
        metrics["train_skipped_steps"] = state.skipped_steps
        self.log(metrics)
        metrics["epoch"] = state.epoch or 0.0
        self._report()
        error: Exception | Noticed | None = None
        if self.test_dataset is not None:
            self.directory.set_status(step=state.global_step, message=f"{_TRAINED} and are being made")
            try:
                metrics |= self.evaluate(self.test_dataset, metric_key_prefix="test")
                # Once more, with the scores in the card.
                best, last = (self.directory.best, state.best.step), (self.directory.last, state.global_step)
                chosen = self.directory.replacing(*(best if takes_best else last))
                self.weights.save_pretrained(chosen, self._card(), self.accelerator)
                self._report()
            except LockLost:
                raise
            except (Exception, Noticed) as raised:  # noqa: BLE001 - raised when the training has come to its end
                error = raised
        self.preemption.listens = False  # what callbacks evaluate from here on is not cut off
        resumable = self._tell_untested(error) if error is not None else False
        logger.info("report: %s", self.directory.root / "report.html")
        self._fire("on_train_end")
        if isinstance(error, Exception):
            raise error
        if resumable:
            self.preemption.acted = True
            self._leave()
        if error is None:
            self.directory.set_status(state=FINISHED, step=state.global_step, message=None)
        return TrainOutput(state.global_step, metrics["train_loss"], metrics)

    def _choose_weights(self) -> bool:
        """Put the weights that the run gives back into the model; returns whether they are the best ones."""
        state = self.state
        if state.best.source is None and any("eval_runtime" in row for row in state.log_history):
            logger.warning(
                "no evaluation chose a best model, so there is no best/: skip_best_epochs=%s leaves out all, or their "
                "scores are NaN, or -1 for want of objects", self.args.skip_best_epochs,
            )  # fmt: skip
        takes_best = self.args.load_best_model_at_end and self.validation.holds_best(state)
        if takes_best:
            merge_adapters(self.model)
            # The one file that was compared with the state: others may be a user's.
            write_state(self.model, CheckpointFiles(self.directory.best).take_tensors(MODEL))
            score = f"{state.best.metric} {state.best.score:.4f}"
            whose = "EMA" if state.best.source == "ema" else "raw"
            source = f"the best: {whose} weights of step {state.best.step}, {score}"
        elif self.ema is not None:
            self.ema.put_in_place()
            source = f"the EMA weights of step {state.global_step}"
        else:
            source = f"the weights of step {state.global_step}"
        merge_adapters(self.model)
        logger.info("the model in memory is %s", source)
        return takes_best

    def _report(self) -> None:
        """Draw the course and write report.html, of a training that is over."""
        with self.watchdog.during("drawing"):
            self.pictures.course(self._card())
            self.pictures.report(self._card(), self.state, is_over=True)

    def _tell_untested(self, error: Exception | Noticed) -> bool:
        """Say in log and status why there are no test scores; returns whether a resumed run would make them."""
        step, noticed = self.state.global_step, isinstance(error, Noticed)
        end = self.directory.checkpoint(step)
        # Without a checkpoint of its end, whoever started the run again would lose it.
        resumable = noticed and on_main(lambda: (end / MANIFEST).is_file(), self.accelerator)
        why = "ended by a notice" if noticed else f"{type(error).__name__}: {error}"
        remedy = "resume for them" if resumable else "score the model in best/ or last/"
        message = f"{_TRAINED} ({why}); {remedy}"
        if self.accelerator.is_main_process:
            logger.error("%s", message)
        fields = {"last_checkpoint": end.name} if resumable else {}
        self.directory.set_status(state=PREEMPTED if resumable else FINISHED, step=step, message=message, **fields)
        return resumable

    def _card(self, metrics: Mapping[str, float] | None = None) -> CardFacts:
        """What the model card of the present weights says; without metrics, those of the weights' step."""
        args, state = self.args, self.state
        step = state.best_global_step if self._takes_best and not self._in_training else state.global_step
        given = args, self.directory, self.hub.repo_id, self.weights, self.train_dataset
        return card_facts(*given, state, step, metrics)
