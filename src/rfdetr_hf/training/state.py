"""Where a run stands: all of it but weights and the states of its parts. And which run may go on from a checkpoint."""

import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from ..arguments.training import RFDETRTrainingArguments
from ..choices import counted
from ..data.pipeline.order import ORDER, ORDERS
from .best import RULE, BestModel, is_skipped
from .ema import initial_share

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of what a checkpoint holds; a checkpoint without one has the first. Earlier ones are read as well."""

# What the optimizer's state holds, so that another value would have no effect.
_OF_THE_OPTIMIZER = (
    "learning_rate", "learning_rate_encoder", "layer_decay", "component_decay", "weight_decay", "param_groups",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
# What pictures look like to the model; a checkpoint without them has the defaults.
_OF_THE_PIXELS = {"image_decoder": "pillow"}
OF_THE_PLACE = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "hub_token", "ddp_timeout", "derived")
# What a run finds out by itself under `per_device_train_batch_size: auto`.
OF_THE_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size")
_OF_THE_BEST = ("metric_for_best_model", "greater_is_better", "smooth_alpha")  # as `RULE`
_OF_THE_BEST_MODEL = ("best_metric", "best_global_step", "best_model_checkpoint", "best_weights")
_OF_A_STATE = ("args", "attributes")
_OF_A_METRIC = ("metric", "greater_is_better")  # arguments of callbacks
_OF_STOPPING = ("early_stopping_patience", "early_stopping_threshold", "metric_for_best_model", "greater_is_better")
_OF_THE_DATA = (
    ("num_images", "training images", "resume with the same data"),
    ("image_ids", "image ids (as a checksum)", "resume with the same data in the same order, shards with the same "
     "shard_window"),
    ("annotations", "sizes, boxes and labels of the training images (as a checksum)",
     "the annotations have changed since: resume with those of the checkpoint, or start a new run from its weights "
     "with model_name_or_path"),
    ("seed", "as its seed", "resume with the same seed, which orders the data"),
    ("images_per_step", "images in an optimizer step",
     "resume with the same product of batch size, accumulation and number of processes"),
    ("steps_per_epoch", "steps in an epoch", "resume with the same gradient_accumulation_steps"),
)  # fmt: skip
_KEPT = ("due", "steps_in_epoch", "epoch_finished", "epoch_stopped", "stopped", "skipped_steps", "skipped_in_a_row",
         "best_weights")  # fmt: skip
_RESTORED = ("epoch", "global_step", "log_history", "best_metric", "best_global_step", "best_model_checkpoint",
             "stateful_callbacks")  # fmt: skip


class TooManySkipped(RuntimeError):
    """Steps in a row had a loss or gradient that is not finite; all processes find out, maybe not at once."""


@dataclass
class RunState(TrainerState):
    """All that a run is besides weights. Callbacks get it as their `TrainerState`, whose fields it has.

    Attributes:
        steps_per_epoch: optimizer steps of an epoch.
        epochs_done: complete epochs; `epoch` is the same with a fraction.
        steps_in_epoch: optimizer steps taken of the present epoch.
        epoch_finished: whether all of the epoch, its evaluation too, is done; of the latest checkpoint.
        epoch_stopped: whether a callback has ended the epoch.
        stopped: whether a callback has ended the run before its last step.
        due: what of logging, evaluating and saving the latest step still asks for, as flags of `TrainerControl`.
        skipped_steps: steps whose loss or gradient was not finite.
        skipped_in_a_row: the latest of them without a good one between.
        order: version of the order of samples (`data.pipeline.order`), for all of the run.
        best: the best weights so far.
        best_weights: checksum of the weights in `best/`.
        identity: what a run that goes on from this one must have in common with it.
        seconds: that the run has trained up to its latest checkpoint or its end, over all its parts; None where an
            earlier checkpoint does not tell.
        objects_in_epoch: objects of the steps of this epoch that were taken since start or resume; not in checkpoints.
        loss_total, loss_steps: sum of the logged losses over the steps since start or resume; not in checkpoints.
    """

    stateful_callbacks: Any = None
    steps_per_epoch: int = 0
    epochs_done: int = 0
    steps_in_epoch: int = 0
    epoch_finished: bool = False
    epoch_stopped: bool = False
    stopped: bool = False
    due: dict[str, bool] = field(default_factory=dict)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    order: int = ORDER
    best: BestModel = field(default_factory=lambda: BestModel("map"))
    best_weights: str | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = 0.0
    objects_in_epoch: float | None = None
    loss_total: float = 0.0
    loss_steps: int = 0
    _counted: float | None = None  # up to when `seconds` are counted

    def begin(
        self,
        args: RFDETRTrainingArguments,
        image_ids: Sequence[int] | str,
        *,
        annotations: str,
        num_images: int | None = None,
        steps_per_epoch: int,
        images_per_step: int,
        strategy: str,
        world_size: int,
    ) -> None:
        """Plan the run that the arguments describe.

        Args:
            args: of the run.
            image_ids: of the training images in their order, or a checksum that stands for them.
            annotations: what `data.fingerprint.annotation_hash` says of the training images.
            num_images: of the training; may be left out beside image ids.
            steps_per_epoch: optimizer steps.
            images_per_step: on all processes.
            strategy: how the model is spread over them.
            world_size: processes.

        Raises:
            ValueError: the run is too short for what the arguments ask for, and `max_steps` has not cut it.
        """
        self.steps_per_epoch = steps_per_epoch
        self.max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
        self.num_train_epochs = math.ceil(self.max_steps / steps_per_epoch)
        self._check_length(args)
        updates = self.max_steps // args.ema_update_interval
        left = initial_share(args.ema_decay, args.ema_tau, updates)
        if args.use_ema and updates and not args.is_official and left > 0.5:  # the official one starts with a copy
            logger.warning(
                "after the %s of the run %.0f%% of the EMA weights, which best/ and last/ hold, are the initial "
                "ones: lower ema_decay, set ema_tau above 0, or set use_ema to False",
                counted(self.max_steps, "step"), 100 * left,
            )  # fmt: skip
        self.compute_steps(args, self.max_steps)
        self._expect_best(args)
        checksum = image_ids
        if not isinstance(image_ids, str):
            checksum = hashlib.sha256(np.asarray(image_ids, dtype=np.int64).tobytes()).hexdigest()
        self.identity = {
            "strategy": strategy,
            "world_size": world_size,
            "seed": args.seed,
            "steps_per_epoch": steps_per_epoch,
            "images_per_step": images_per_step,
            "num_images": len(image_ids) if num_images is None else num_images,
            "image_ids": checksum,
            "annotations": annotations,
            "arguments": json.loads(args.to_json_string()),  # as a checkpoint gives them back
        }

    def _check_length(self, args: RFDETRTrainingArguments) -> None:
        """Refuse a run that is too short for its options; where `max_steps` cuts it, as in a trial, warn."""
        epochs, wrong = self.max_steps / self.steps_per_epoch, list[str]()
        length, unit = (self.max_steps, "step") if args.eval_strategy == "steps" else (epochs, "epoch")
        if args.use_ema and args.ema_update_interval > self.max_steps:
            wrong.append(
                f"ema_update_interval={args.ema_update_interval} is above the {counted(self.max_steps, 'step')} of the "
                "run: the EMA weights would stay the initial ones; lower it, or set use_ema to False"
            )
        if args.eval_strategy != "no" and args.eval_delay > length:
            wrong.append(
                f"eval_delay={args.eval_delay:g} is above the {counted(length, unit)} of the run: there would be no "
                "evaluation; lower it, or set eval_strategy to 'no'"
            )
        for message in wrong:
            if self.max_steps >= args.num_train_epochs * self.steps_per_epoch:
                raise ValueError(message)
            logger.warning("%s", message)

    def _expect_best(self, args: RFDETRTrainingArguments) -> None:
        """Warn where no evaluation of the run can choose a best model, whatever its scores are."""
        if args.eval_strategy == "no":
            return
        epochs = self.max_steps / self.steps_per_epoch  # after the last step there is an evaluation
        if is_skipped(epochs, args.skip_best_epochs):
            length = f"{counted(self.max_steps, 'step')} ({counted(round(epochs, 2), 'epoch')})"
            logger.warning(
                "skip_best_epochs=%g leaves out every evaluation of a run of %s: there will be no best/, last/ alone; "
                "lower it, or train longer", args.skip_best_epochs, length,
            )  # fmt: skip

    def fresh(self) -> "RunState":
        """The state of a run that has not begun, with the same rule of the best model."""
        made = RunState(
            is_local_process_zero=self.is_local_process_zero, is_world_process_zero=self.is_world_process_zero,
            best=self.best,
        )  # fmt: skip
        made._forget_best()
        return made

    def count_seconds(self) -> None:
        """Add the time since the last call to `seconds`; the first call begins to count."""
        now = time.perf_counter()
        if self.seconds is not None and self._counted is not None:
            self.seconds += now - self._counted
        self._counted = now

    @property
    def steps_left_in_epoch(self) -> int:
        """Optimizer steps until the epoch, or the run, ends."""
        return min(self.steps_per_epoch - self.steps_in_epoch, self.max_steps - self.global_step)

    def count_step(self, objects: float | None = None) -> None:
        """One more optimizer step is done, be it a skipped one; `objects`: that its images had."""
        self.objects_in_epoch = objects if self.objects_in_epoch is None else self.objects_in_epoch + (objects or 0)
        self.global_step += 1
        self.steps_in_epoch += 1
        self.epoch = self.epochs_done + self.steps_in_epoch / self.steps_per_epoch

    def end_epoch(self) -> None:
        """Go to the start of the next epoch."""
        if self.objects_in_epoch == 0 and self.is_world_process_zero:
            logger.warning(
                "the images of epoch %d, to step %d, had no object: all of them trained as background; look at the "
                "augmentation, or at the transform of the data set", self.epochs_done + 1, self.global_step,
            )  # fmt: skip
        self.objects_in_epoch = None
        self.epochs_done, self.steps_in_epoch = self.epochs_done + 1, 0

    def skip_step(self, step: int, image_ids: Sequence[int], limit: int) -> None:
        """Count a step that reached no weights.

        Args:
            step: its number, from 0.
            image_ids: of this process.
            limit: see below.

        Raises:
            TooManySkipped: it is the last of `limit` in a row.
        """
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        # Log lines and metrics.csv count from 1.
        logger.warning("step %d skipped: loss or gradient is not finite; images %s", step + 1, image_ids)
        if self.skipped_in_a_row >= max(limit, 1):
            raise TooManySkipped(
                f"{counted(self.skipped_in_a_row, 'step')} in a row had a non-finite loss or gradient, lastly on "
                f"images {image_ids}; look at their annotations, or lower learning_rate"
            )

    def mark(self, control: TrainerControl, epoch_finished: bool, due: bool) -> None:
        """Note what the callbacks asked for, before a checkpoint; `due`: it is still to be done."""
        self.count_seconds()
        self.epoch_finished, self.epoch_stopped = epoch_finished, control.should_epoch_stop
        self.stopped = control.should_training_stop and self.global_step < self.max_steps
        self.due = control.state()["args"] if due else {}

    def snapshot(self) -> "RunState":
        """A copy of the present state, for a checkpoint that is complete later."""
        kept = copy.copy(self)
        kept.log_history = list(self.log_history)
        return kept

    def before_evaluation(self, callbacks: Sequence[TrainerCallback]) -> Callable[[], None]:
        """Note where the run stands; what is returned goes back there, for an evaluation that is repeated."""
        self.keep_callbacks(callbacks)
        history, best = list(self.log_history), copy.deepcopy(self.best.state_dict())
        stateful = copy.deepcopy(self.stateful_callbacks)
        kept = {name: getattr(self, name) for name in _OF_THE_BEST_MODEL}

        def go_back() -> None:
            for name, value in kept.items():
                setattr(self, name, value)
            self.best.load_state_dict(best)
            self.log_history, self.stateful_callbacks = history, stateful
            self.restore_callbacks(callbacks)

        return go_back

    # ------------------------------------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The position, the counts, the best and the identity."""
        kept = {name: getattr(self, name) for name in _KEPT}
        versions = {"format": FORMAT, "order": self.order, "epoch": self.epochs_done, "best": self.best.state_dict()}
        return self.identity | versions | kept | {"seconds": self.seconds}

    def callback_state(self) -> dict[str, Any]:
        """The fields of `TrainerState`, as Transformers writes them."""
        return {each.name: getattr(self, each.name) for each in fields(TrainerState)}

    def load_state_dict(self, progress: Mapping[str, Any], callback_state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` and `callback_state` gave, within the present plan.

        An epoch that `max_steps` had cut short goes on where a larger `max_steps` allows it. A run that a callback had
        ended stays ended, unless the rules of stopping have changed.
        """
        for name in _RESTORED:
            setattr(self, name, callback_state[name])
        for name in _KEPT:
            setattr(self, name, progress[name])
        self.seconds = progress.get("seconds")
        before, now = progress["arguments"], self.identity["arguments"]
        if "metric" in progress["best"]:  # else of an earlier version: the arguments tell
            rules = [[best.get(name) for name in RULE] for best in (self.best.state_dict(), progress["best"])]
        else:
            rules = [[values.get(name) for name in _OF_THE_BEST] for values in (now, before)]
        if rules[0] == rules[1]:
            self.best.load_state_dict(progress["best"])
        else:
            self._forget_best()
            logger.warning(
                "the best model is chosen by %s now, before by %s: the comparison starts with the next evaluation",
                *(", ".join(f"{n}={v}" for n, v in zip(_OF_THE_BEST, rule, strict=True)) for rule in rules),
            )
        self.identity["data"] = progress.get("data")
        self.order = progress.get("order", 1)
        self.epochs_done = progress["epoch"]
        cut_short = self.steps_in_epoch < progress["steps_per_epoch"] and not self.epoch_stopped
        if self.epoch_finished and not (cut_short and self.global_step < self.max_steps):
            self.end_epoch()
        self.stopped = self.stopped and all(before.get(name) == now.get(name) for name in _OF_STOPPING)

    def _forget_best(self) -> None:
        for name in _OF_THE_BEST_MODEL:
            setattr(self, name, None)
        self.best.load_state_dict({"score": None, "source": None, "step": None, "smoothed": {}})

    def compare_data(self, found: Mapping[str, str]) -> None:
        """Name the splits whose images or annotations are others than those that a checkpoint knows.

        Args:
            found: what `data.fingerprint.data_hash` says of the splits of this run.
        """
        before, self.identity["data"] = self.identity.get("data") or {}, dict(found)
        if before.get("kind") != found["kind"]:
            return  # there is none, or the other one does not compare
        changed = [name for name in found if name != "kind" and before.get(name, found[name]) != found[name]]
        if changed:
            logger.warning(
                "images or annotations have changed since the checkpoint was written: %s; the run goes on with them as "
                "they are now", ", ".join(changed),
            )  # fmt: skip
        if any(name not in ("train", "test") for name in changed) and self.best.source is not None:
            logger.warning("the comparison for the best model starts again, with the present evaluation data")
            self._forget_best()

    def keep_callbacks(self, callbacks: Iterable[TrainerCallback]) -> None:
        """Take in the states of the callbacks that have one; several of a class keep a list, as in Transformers.

        Raises:
            TypeError: a state is none that a checkpoint can hold.
        """
        kept: dict[str, Any] = {}
        for callback in callbacks:
            if isinstance(callback, ExportableState):
                name, state = type(callback).__name__, callback.state()
                if not isinstance(state, Mapping) or not all(isinstance(state.get(n), Mapping) for n in _OF_A_STATE):
                    raise TypeError(f"{name}.state() must return {{'args': {{…}}, 'attributes': {{…}}}}, not {state!r}")
                try:
                    json.dumps(state)
                except (TypeError, ValueError) as error:
                    raise TypeError(
                        f"{name}.state() holds what JSON cannot: {error}; give numbers and texts"
                    ) from error
                kept.setdefault(name, []).append(state)
        self.stateful_callbacks = {name: states if len(states) > 1 else states[0] for name, states in kept.items()}

    def restore_callbacks(self, callbacks: Iterable[TrainerCallback]) -> None:
        """Give the callbacks back what `keep_callbacks` took: of one class by their arguments, else in their order.

        A callback that looks at another metric than before begins afresh, and is named. What no callback takes is
        named, and so is a state without its arguments, as earlier versions wrote them.
        """
        kept = self.stateful_callbacks.items()
        left = {name: [states] if isinstance(states, Mapping) else [*states] for name, states in kept}
        for callback, before, now in _with_states(callbacks, left):
            if "args" not in before:
                logger.warning(
                    "the checkpoint has a state of %s without its arguments: the attributes are restored, and nothing "
                    "says whether they suit the present arguments", type(callback).__name__,
                )  # fmt: skip
            given = _plain(before.get("args", {}))
            changed = [n for n in _OF_A_METRIC if n in now and given.get(n, now[n]) != now[n]]
            if changed:
                logger.warning(
                    "%s begins afresh: %s now, and in the checkpoint %s", type(callback).__name__,
                    *(", ".join(f"{n}={of[n]}" for n in changed) for of in (now, given)),
                )  # fmt: skip
            for name, value in before["attributes"].items() if not changed else ():
                setattr(callback, name, value)
        for name, states in left.items():
            if states:
                logger.warning("the checkpoint has a state of %s, and this run has no such callback", name)

    def check_same_run(self, folder: Path, written: Mapping[str, Any]) -> None:
        """Compare a checkpoint's `state_dict` with this run; log which other arguments have changed.

        Raises:
            ValueError: its format, the data, their order, the step or the optimizer's settings are others.
        """
        ours = self.identity
        if written.get("format", 1) > FORMAT or written.get("order", 1) not in ORDERS:
            raise ValueError(
                f"{folder} has format {written.get('format', 1)} and sample order {written.get('order', 1)}, this "
                f"version resumes formats up to {FORMAT} and orders up to {ORDER}; resume with the version that "
                "wrote it, or start a new run from its model.safetensors"
            )
        for name, meaning, remedy in _OF_THE_DATA:
            if written.get(name, ours[name]) != ours[name]:  # earlier checkpoints hold no checksum of annotations
                raise ValueError(
                    f"{folder} was written with {written[name]} {meaning}, this run has {ours[name]}; {remedy}"
                )
        self._check_arguments(folder, written["arguments"])
        before, now = written.get("augmentation"), ours.get("augmentation")
        if before != now:
            logger.warning("augmentation, given in Python: %s when %s was written, %s now", before, folder.name, now)
        if written["world_size"] != ours["world_size"]:
            logger.warning(
                "%s was written by %d processes and is resumed by %d: random numbers will differ",
                folder, written["world_size"], ours["world_size"],
            )  # fmt: skip

    def _check_arguments(self, folder: Path, written: Mapping[str, Any]) -> None:
        ours = self.identity["arguments"]
        changed = {
            name: f"{name} {before} -> {ours[name]}"
            for name, before in written.items()
            if name in ours and name not in OF_THE_PLACE and ours[name] != before
        }
        for name in _OF_THE_OPTIMIZER:
            if name in changed:
                raise ValueError(
                    f"{folder} was written with {name}={written[name]}, which its optimizer keeps, and this run has "
                    f"{ours[name]}; set it back, or start a new run from these weights with model_name_or_path"
                )
        for name, usual in _OF_THE_PIXELS.items():
            before = written.get(name, usual)
            if before != ours[name]:
                raise ValueError(
                    f"{folder} was written with {name}={before}, whose pixels its model knows, and this run has "
                    f"{ours[name]}; set {name}={before}, or start a new run from these weights with "
                    "model_name_or_path"
                )
        if changed:
            logger.warning("arguments changed since %s was written: %s", folder.name, ", ".join(changed.values()))


def _plain(value: Any) -> Any:
    """Arguments by which states are compared: tuples as lists and keys as texts, as earlier versions wrote them."""
    return json.loads(json.dumps(value, default=str))


def _with_states(
    callbacks: Iterable[TrainerCallback], left: Mapping[str, list[Any]]
) -> list[tuple[TrainerCallback, Mapping[str, Any], Mapping[str, Any]]]:
    """Callbacks with the state that is theirs and their present arguments; `left` loses these states.

    Of several states of a class a callback takes the one that was written with its arguments. What is left goes to the
    others in the order of both.
    """
    found: dict[int, Any] = {}
    stateful = [each for each in callbacks if isinstance(each, ExportableState) and left.get(type(each).__name__)]
    present = [_plain(each.state().get("args", {})) for each in stateful]
    for by_arguments in (True, False):
        for n, (callback, now) in enumerate(zip(stateful, present, strict=True)):
            states = left[type(callback).__name__]
            fitting = (i for i, each in enumerate(states) if not by_arguments or _plain(each.get("args")) == now)
            if n not in found and (at := next(fitting, None)) is not None:
                found[n] = states.pop(at)
    return [(stateful[n], found[n], present[n]) for n in sorted(found)]
