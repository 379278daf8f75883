"""What a run writes and reads back: checkpoints to resume from, and plain model folders."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from ..hub.model_card import write_model_card
from .checkpointing import atomic_directory, checkpoint_path, rng_state, rotate, set_rng_state

if TYPE_CHECKING:
    from .trainer import RFDETRTrainer

logger = logging.getLogger("rfdetr_hf")

MODEL, AVERAGE, OPTIMIZER, SCHEDULER = "model.safetensors", "ema.safetensors", "optimizer.pt", "scheduler.pt"
TRAINER_STATE, PROGRESS, RNG, SCALER = "trainer_state.json", "progress.pt", "rng_state.pt", "scaler.pt"


def save_checkpoint(trainer: "RFDETRTrainer", epoch_finished: bool) -> None:
    """Write `checkpoint-<step>/`, everything that an exact resume needs, in one atomic move."""
    generators = gather_object([rng_state()])
    if trainer.accelerator.is_main_process:
        callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, ExportableState)]
        trainer.state.stateful_callbacks = {type(c).__name__: c.state() for c in [*callbacks, trainer.control]}
        with atomic_directory(checkpoint_path(trainer.run.root, trainer.state.global_step)) as folder:
            _write_model(trainer, folder)
            if trainer.ema is not None:
                save_file(trainer.ema.state_dict(), folder / AVERAGE, metadata={"format": "pt"})
            torch.save(trainer.optimizer.state_dict(), folder / OPTIMIZER)
            torch.save(trainer.scheduler.state_dict(), folder / SCHEDULER)
            if trainer.accelerator.scaler is not None:
                torch.save(trainer.accelerator.scaler.state_dict(), folder / SCALER)
            torch.save(_progress(trainer, epoch_finished), folder / PROGRESS)
            torch.save(generators, folder / RNG)
            trainer.state.save_to_json(str(folder / TRAINER_STATE))
        rotate(trainer.run.root, trainer.args.save_total_limit)
    trainer.accelerator.wait_for_everyone()


def _progress(trainer: "RFDETRTrainer", epoch_finished: bool) -> dict[str, Any]:
    return {
        "epoch": trainer.epoch + 1 if epoch_finished else trainer.epoch,
        "steps_in_epoch": 0 if epoch_finished else trainer.steps_in_epoch,
        "steps_per_epoch": trainer.steps_per_epoch,
        "skipped_steps": trainer.skipped_steps,
        "skipped_in_a_row": trainer.skipped_in_a_row,
        "losses": trainer.losses.state_dict(),
        "best": trainer.best.state_dict(),
        "ema_updates": trainer.ema.num_updates if trainer.ema is not None else 0,
        "world_size": trainer.accelerator.num_processes,
    }


def load_checkpoint(trainer: "RFDETRTrainer", folder: Path) -> None:
    """Take up the run as `save_checkpoint` left it.

    Raises:
        ValueError: the checkpoint belongs to a run of another shape (EMA, steps of an epoch).
    """
    progress = torch.load(folder / PROGRESS, weights_only=True)
    _check_same_run(trainer, folder, progress)
    load_weights(trainer.model, folder)
    if trainer.ema is not None:
        trainer.ema.load_state_dict(load_file(folder / AVERAGE), progress["ema_updates"])
    trainer.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
    trainer.scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(torch.load(folder / SCALER, weights_only=True))
    for name in ("epoch", "steps_in_epoch", "skipped_steps", "skipped_in_a_row"):
        setattr(trainer, name, progress[name])
    trainer.losses.load_state_dict(progress["losses"], trainer.accelerator.device)
    trainer.best.load_state_dict(progress["best"])
    _load_state(trainer, folder)
    generators = torch.load(folder / RNG, weights_only=True)
    if progress["world_size"] == trainer.accelerator.num_processes:
        set_rng_state(generators[trainer.accelerator.process_index])
    logger.info("resumed from %s at step %d", folder, trainer.state.global_step)


def _check_same_run(trainer: "RFDETRTrainer", folder: Path, progress: dict[str, Any]) -> None:
    if trainer.ema is not None and not (folder / AVERAGE).exists():
        raise ValueError(f"use_ema=True, but {folder} holds no {AVERAGE}; resume with use_ema=False")
    if progress["steps_per_epoch"] != trainer.steps_per_epoch:
        raise ValueError(
            f"{folder} was written with {progress['steps_per_epoch']} steps an epoch, this run has "
            f"{trainer.steps_per_epoch}; resume with the same data, batch size, accumulation and number of processes"
        )
    if progress["world_size"] != trainer.accelerator.num_processes:
        logger.warning(
            "%s was written by %d processes and is resumed by %d: random numbers will differ",
            folder, progress["world_size"], trainer.accelerator.num_processes,
        )  # fmt: skip


def _load_state(trainer: "RFDETRTrainer", folder: Path) -> None:
    saved = TrainerState.load_from_json(str(folder / TRAINER_STATE))
    for field in ("epoch", "global_step", "log_history", "best_metric", "best_global_step", "best_model_checkpoint"):
        setattr(trainer.state, field, getattr(saved, field))
    for listener in [*trainer.callback_handler.callbacks, trainer.control]:
        state = saved.stateful_callbacks.get(type(listener).__name__)
        if isinstance(listener, ExportableState) and state is not None:
            for name, value in state["attributes"].items():
                setattr(listener, name, value)
    trainer.control.should_training_stop = False


def save_pretrained(trainer: "RFDETRTrainer", path: Path, metrics: dict[str, float] | None = None) -> None:
    """Write the model's present weights as a `from_pretrained` folder with image processor and model card."""
    if trainer.accelerator.is_main_process:
        with atomic_directory(path) as folder:
            _write_model(trainer, folder)
            write_model_card(folder, path.name, trainer.model.config, metrics or {}, trainer.args.to_dict())
    trainer.accelerator.wait_for_everyone()


def _write_model(trainer: "RFDETRTrainer", folder: Path) -> None:
    trainer.model.save_pretrained(folder)
    trainer.image_processor.save_pretrained(folder)


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Put the weights of a model folder into a model of the same configuration."""
    model.load_state_dict(load_file(folder / MODEL))
