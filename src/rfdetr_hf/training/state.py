"""Whether a checkpoint belongs to the run that would go on from it."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint.directory import CheckpointError, checksum

if TYPE_CHECKING:
    from .trainer import RFDETRTrainer

logger = logging.getLogger("rfdetr_hf")

AVERAGE = "ema.safetensors"
# What the optimizer's state holds, so that another value would have no effect.
_OF_THE_OPTIMIZER = (
    "learning_rate", "learning_rate_encoder", "layer_decay", "component_decay", "weight_decay", "param_groups",
    "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
_OF_THE_PLACE = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "hub_token", "ddp_timeout")


def identity(trainer: "RFDETRTrainer") -> dict[str, Any]:
    """What a run that goes on from a checkpoint must have in common with the one that wrote it."""
    sampler = trainer.train_loader.batch_sampler
    image_ids = np.asarray(trainer.train_dataset["image_id"], dtype=np.int64)
    return {
        "strategy": trainer.strategy.name,
        "world_size": trainer.accelerator.num_processes,
        "seed": trainer.args.seed,
        "steps_per_epoch": trainer.steps_per_epoch,
        "images_per_step": sampler.window_size,
        "num_images": len(image_ids),
        "image_ids": hashlib.sha256(image_ids.tobytes()).hexdigest(),
        "arguments": trainer.args.to_dict(),
    }


def check_same_run(trainer: "RFDETRTrainer", folder: Path, written: Mapping[str, Any]) -> None:
    """Compare a checkpoint's identity with the run's; log what else of the arguments has changed.

    Args:
        trainer: built, with nothing loaded yet.
        folder: the checkpoint.
        written: `identity` of the run that wrote it.

    Raises:
        ValueError: the data, its order, the step, the optimizer's settings or the average are others.
    """
    ours = trainer.identity
    _check_data(folder, written, ours)
    _check_arguments(folder, written["arguments"], ours["arguments"])
    if trainer.ema is not None and not (folder / AVERAGE).exists():
        raise ValueError(f"use_ema=True, but {folder} holds no {AVERAGE}; resume with use_ema=False")
    if written["strategy"] != ours["strategy"] and "zero" in written["strategy"] + ours["strategy"]:
        raise ValueError(
            f"{folder} was written under {written['strategy']}, this run is {ours['strategy']}: DeepSpeed's files fit "
            "the same stage and number of processes only; launch as before, or start a new run from its "
            "model.safetensors"
        )
    if written["world_size"] != ours["world_size"]:
        logger.warning(
            "%s was written by %d processes and is resumed by %d: random numbers will differ",
            folder, written["world_size"], ours["world_size"],
        )  # fmt: skip


def _check_data(folder: Path, written: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, meaning, remedy in (
        ("num_images", "training images", "resume with the same data"),
        ("image_ids", "image ids (as a checksum)", "resume with the same data in the same order"),
        ("seed", "as its seed", "resume with the same seed, which orders the data"),
        ("images_per_step", "images in an optimizer step",
         "resume with the same product of batch size, accumulation and number of processes"),
        ("steps_per_epoch", "steps in an epoch", "resume with the same gradient_accumulation_steps"),
    ):  # fmt: skip
        before, now = written[name], ours[name]
        if before != now:
            raise ValueError(f"{folder} was written with {before} {meaning}, this run has {now}; {remedy}")


def _check_arguments(folder: Path, written: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    changed = {k: (v, ours[k]) for k, v in written.items() if k in ours and k not in _OF_THE_PLACE and ours[k] != v}
    for name in _OF_THE_OPTIMIZER:
        if name in changed:
            before, now = changed[name]
            raise ValueError(
                f"{folder} was written with {name}={before}, which its optimizer keeps, and this run has {now}; set it "
                "back, or start a new run from these weights with model_name_or_path"
            )
    if changed:
        told = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
        logger.warning("arguments changed since %s was written: %s", folder.name, told)


def epoch_to_go_on_with(progress: Mapping[str, Any], global_step: int, max_steps: int) -> tuple[int, int]:
    """The epoch, and the steps of it that are done, of a run that resumes.

    An epoch that `max_steps` had cut short goes on where a larger `max_steps` allows it.
    """
    epoch, steps = progress["epoch"], progress["steps_in_epoch"]
    cut_short = steps < progress["steps_per_epoch"] and not progress["epoch_stopped"]
    if progress["epoch_finished"] and not (cut_short and global_step < max_steps):
        return epoch + 1, 0
    return epoch, steps


def had_stopped(progress: Mapping[str, Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a callback had ended the run, by rules that still hold."""
    rules = ("early_stopping_patience", "early_stopping_threshold", "metric_for_best_model")
    return progress["stopped"] and all(progress["arguments"][name] == arguments[name] for name in rules)


def weights_of(folder: Path) -> str | None:
    """The checksum of a model folder's weights, None where there is no whole folder."""
    try:
        return checksum(folder, "model.safetensors")
    except CheckpointError:
        return None


def forget_lost_best(trainer: "RFDETRTrainer") -> None:
    """A checkpoint from elsewhere knows of a best model that is not here, and could not be loaded in the end."""
    best, state = trainer.best, trainer.state
    if best.source is None or trainer.run.best.is_dir():
        return
    logger.warning(
        "the best model so far (step %d, %s %.4f) is not in %s; the best of what follows will be kept",
        best.step, trainer.args.metric_for_best_model, best.score, trainer.run.root,
    )  # fmt: skip
    best.score = best.source = best.step = None
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def has_best(trainer: "RFDETRTrainer") -> bool:
    """Whether there is a best model and `best/` still is that one."""
    if trainer.best.source is None:
        return False
    same = weights_of(trainer.run.best) == trainer.best_weights
    if not same:
        logger.warning(
            "%s holds other weights than the best of this run (step %d): a run that went on from a later checkpoint "
            "wrote them; they are left as they are",
            trainer.run.best, trainer.best.step,
        )  # fmt: skip
    return same
