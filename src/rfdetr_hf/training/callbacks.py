"""What listens to the loop: the progress line, the CSV of metrics, early stopping. All are `TrainerCallback`s."""

import csv
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import DefaultFlowCallback, ExportableState

from ..arguments.metric_names import larger_wins
from ..hub.push import HubCallback, HubUploader
from .best import candidate_scores, is_score, is_skipped
from .checkpoint.run_directory import RunDirectory
from .console import shows_bars
from .meters import is_timing
from .status import RUNNING, RunStatus, time_left
from .trackers import TrackerCallback

logger = logging.getLogger(__name__)

Numbers = dict[str, float]

_STATUS_INTERVAL = 2.0
CONSOLE_SCORES = ("_map", "_map_50", "_map_75", "_mar_100")


class _Bar(tqdm):
    """A progress bar that ends when its terminal, or the program behind a pipe, does."""

    def display(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().display(*args, **kwargs)
        except OSError:
            self.disable = True

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            self.disable = True


class ProgressCallback(TrainerCallback):
    """A progress bar where somebody sees it, and one line for each log event, see `log_line`."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.prediction_bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            hidden = args.disable_tqdm or not shows_bars()
            self.bar = _Bar(total=state.max_steps, initial=state.global_step, dynamic_ncols=True, disable=hidden)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or args.disable_tqdm or eval_dataloader is None or not shows_bars():
            return
        if self.prediction_bar is None:
            self.prediction_bar = _Bar(total=len(eval_dataloader), desc="evaluating", leave=False, dynamic_ncols=True)
        self.prediction_bar.update(1)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Numbers | None = None, **kwargs: Any
    ) -> None:
        if self.prediction_bar is not None:
            self.prediction_bar.close()
            self.prediction_bar = None

    on_predict = on_evaluate

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Numbers | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            logger.info(log_line(state, logs, model.loss_function.weight_dict))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the bars, of a run that failed, too."""
        for bar in (self.bar, self.prediction_bar):
            if bar is not None:
                bar.close()
        self.bar = self.prediction_bar = None


def log_line(state: TrainerState, logs: dict[str, float], weights: Mapping[str, float]) -> str:
    """One readable line of a log event: loss and speed of a training, or the main scores of an evaluation.

    `loss` is that of the latest step, `avg` the mean since the last line. `avg` is the sum of the terms behind it: each
    with its weight, over all supervised layers.

    Args:
        state: of the run.
        logs: of the event.
        weights: of each loss term, by its name in `logs`.
    """
    head = f"step {state.global_step}/{state.max_steps} epoch {logs.get('epoch', state.epoch or 0):.2f}"
    if is_timing("train_runtime", logs):
        if not logs["train_steps_per_second"]:
            return f"{head} | end, without a step"
        speed = f"{logs['train_samples_per_second']:.1f} img/s, evaluations included"
        return f"{head} | end after {time_left(logs['train_runtime'])} | mean loss {logs['train_loss']:.4f} | {speed}"
    if not is_timing("eta", logs):  # an evaluation, or what a user logs
        shown = {k: v for k, v in logs.items() if k.endswith(CONSOLE_SCORES) and isinstance(v, (int, float))}
        return head + " | " + " ".join(f"{k} {v:.4f}" for k, v in shown.items())
    terms: dict[str, float] = {}
    for name, weight in weights.items():
        if name in logs:
            term = re.sub(r"_(\d+|enc)$", "", name.removeprefix("loss_"))
            terms[term] = terms.get(term, 0.0) + weight * logs[name]
    rest = logs["loss"] - sum(terms.values())
    if abs(rest) > 1e-3 * max(1.0, abs(logs["loss"])):  # of a loss of the user's own
        terms["other"] = rest
    parts = [
        f"loss {logs['loss_now']:.4g} avg {logs['loss']:.4g} = {' + '.join(f'{k} {v:.3g}' for k, v in terms.items())}",
        f"grad {logs['grad_norm']:.3g}",
        f"lr {logs['learning_rate']:.2e}",
        f"{logs['images_per_second']:.1f} img/s",
        f"data wait {100 * logs['data_wait']:.0f}%",
    ]
    parts += [f"{logs['memory_gb']:.1f} GB"] if "memory_gb" in logs else []
    parts += [f"skipped {logs['skipped_steps']:.0f}"] if logs.get("skipped_steps") else []
    return " | ".join([head, *parts, f"ETA {time_left(logs['eta'])}"])


def concerns(callbacks: Sequence[TrainerCallback], event: str) -> bool:
    """Whether some callback does anything at an event beyond counting steps, for which a step must be settled."""
    idle = {getattr(kind, event, None) for kind in (TrainerCallback, DefaultFlowCallback, ProgressCallback)}
    return any(getattr(getattr(each, event, None), "__func__", None) not in idle for each in callbacks)


class StatusCallback(TrainerCallback):
    """Keeps `status.json` up to date while a run trains.

    Args:
        status: of the run.
    """

    def __init__(self, status: RunStatus) -> None:
        self.status = status
        self._written = 0.0

    def _write(self, state: TrainerState, now: bool = True, **fields: Any) -> None:
        running = state.is_world_process_zero and self.status.fields.get("state") == RUNNING
        if running and (now or time.monotonic() - self._written >= _STATUS_INTERVAL):
            self._written = time.monotonic()
            fields |= {"step": state.global_step, "max_steps": state.max_steps, "score": state.best_metric}
            self.status.write(epoch=state.epoch, **fields)

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self._write(state, metric=state.best.metric)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Numbers | None = None,
        **kwargs: Any,
    ) -> None:
        self._write(state, now=False, **({"eta_seconds": logs["eta"]} if logs and is_timing("eta", logs) else {}))

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._write(state, last_checkpoint=f"checkpoint-{state.global_step}")


class MetricsCsvCallback(TrainerCallback):
    """Writes every log event as a row of `metrics.csv`: step, epoch, and what training and evaluation gave.

    Only what a rerun reproduces is written, so timings stay in `train.log`. A resumed run goes on from the rows that
    its checkpoint knows. Without a training there is no file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []
        self.in_run = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.in_run = state.is_world_process_zero
        if not self.in_run:
            return
        self.rows = [_row(logs) for logs in state.log_history]
        if self.rows or self.path.exists():
            self._rewrite()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Numbers | None = None, **kwargs: Any
    ) -> None:
        if not self.in_run or not logs or is_timing("train_runtime", logs):  # a run that was resumed sums up less
            return
        row = _row({"step": state.global_step, **logs})
        new_columns = not self.rows or not set(row) <= set(self._columns())
        self.rows.append(row)
        if new_columns:
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns()).writerow(row)

    def close(self) -> None:
        """The training has ended: another run may write the file."""
        self.in_run = False

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(["step", "epoch", *(key for row in self.rows for key in row)]))

    def _rewrite(self) -> None:
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns())
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)


def _row(logs: dict[str, Any]) -> dict[str, str]:
    return {key: repr(value) for key, value in logs.items() if not is_timing(key, logs)}


class EarlyStopping(TrainerCallback, ExportableState):
    """Stops the run when the metric has not improved by `threshold` in `patience` evaluations.

    A value that is no score (NaN, or COCO's -1 without objects) is no improvement.

    Args:
        metric: name of the score ("map"); of "map,raw_map" the better one counts.
        patience: evaluations.
        threshold: least improvement.
        skip_epochs: evaluations of the first so many epochs are ignored.
        greater_is_better: direction of the metric; default: the one that its name says, see `larger_wins`.
    """

    def __init__(
        self,
        metric: str,
        patience: int,
        threshold: float = 0.0,
        skip_epochs: float = 0.0,
        greater_is_better: bool | None = None,
    ) -> None:
        self.metric = metric
        self.patience = patience
        self.threshold = threshold
        self.skip_epochs = skip_epochs
        self.greater_is_better = larger_wins(metric) if greater_is_better is None else greater_is_better
        self.best: float | None = None
        self.evaluations_without_improvement = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.global_step:  # a run that begins knows nothing of an earlier one
            self.best, self.evaluations_without_improvement = None, 0

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Numbers | None = None, **kwargs: Any
    ) -> None:
        values = candidate_scores(metrics or {}, self.metric).values()
        if not values or is_skipped(state.epoch or 0.0, self.skip_epochs):
            return
        sign = 1 if self.greater_is_better else -1
        scores = [each for each in values if is_score(each, self.metric)]
        value = max(scores, key=lambda each: sign * each, default=None)
        if value is not None and (self.best is None or sign * (value - self.best) > self.threshold):
            self.best, self.evaluations_without_improvement = value, 0
        else:
            self.evaluations_without_improvement += 1
        if self.evaluations_without_improvement >= self.patience:
            best = "there was no" if self.best is None else f"no better one than {self.best:.4f}"
            logger.info("early stopping: %s %s in %d evaluations", best, self.metric, self.patience)
            control.should_training_stop = True

    def state(self) -> dict[str, dict[str, Any]]:
        names = ("metric", "patience", "threshold", "skip_epochs", "greater_is_better")
        attributes = ("best", "evaluations_without_improvement")
        return {"args": {n: getattr(self, n) for n in names}, "attributes": {n: getattr(self, n) for n in attributes}}


def own_callbacks(
    args: Any, directory: RunDirectory, hub: HubUploader, fire: Callable[[str], None]
) -> list[TrainerCallback]:
    """The callbacks that the arguments of a run ask for, in the order in which they are called.

    Args:
        args: settled for the run.
        directory: of the run.
        hub: uploads the run's models.
        fire: calls the callbacks; with "on_push_begin" before each upload.
    """
    written = MetricsCsvCallback(directory.metrics), StatusCallback(directory.status)
    ours: list[TrainerCallback] = [DefaultFlowCallback(), ProgressCallback(), *written]
    if args.early_stopping_patience is not None:
        rules = args.early_stopping_patience, args.early_stopping_threshold, args.skip_best_epochs
        ours.append(EarlyStopping(args.metric_for_best_model, *rules, args.greater_is_better))
    if args.trackers:
        ours.append(TrackerCallback(args.trackers))
    if args.push_to_hub:
        ours.append(HubCallback(hub, lambda: fire("on_push_begin"), directory.newest))
    return ours
