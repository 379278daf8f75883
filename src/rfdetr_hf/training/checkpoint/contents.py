"""What a run writes and reads back: checkpoints to resume from, and plain model folders."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_callback import ExportableState

from ...hub.model_card import CardFacts, hub_dataset_id, hub_model_id, write_model_card
from ...models.image_processing_rfdetr import RFDETRImageProcessor
from .directory import atomic_directory, checkpoint_path, rng_state, rotate, set_rng_state, temporary_path
from ..console import no_transformers_bars
from ..finetuning import adapter_state, plain_state, unmerged_state
from ..meters import mean_state
from ..state import AVERAGE, check_same_run, epoch_to_go_on_with, had_stopped
from .sharded import part_of, saved_tensors, whole_state, write_state

if TYPE_CHECKING:
    from ..trainer import RFDETRTrainer

logger = logging.getLogger("rfdetr_hf")

MODEL, SCHEDULER = "model.safetensors", "scheduler.pt"
TRAINER_STATE, PROGRESS, RANKS, SCALER = "trainer_state.json", "progress.pt", "rank_states.pt", "scaler.pt"
ADAPTERS = "adapters.safetensors"


@contextmanager
def shared_directory(path: Path, accelerator: Accelerator) -> Iterator[Path]:
    """`atomic_directory` for all processes at once: the main one makes it, all write into it, the main one commits it.

    The directory has to be on a file system that all processes see.
    """
    if accelerator.is_main_process:
        with atomic_directory(path) as folder:
            accelerator.wait_for_everyone()
            yield folder
            accelerator.wait_for_everyone()
    else:
        accelerator.wait_for_everyone()
        yield temporary_path(path)
        accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()


def save_checkpoint(trainer: "RFDETRTrainer", epoch_finished: bool = False, due: bool = False) -> None:
    """Write `checkpoint-<step>/`, everything that an exact resume needs, in one atomic move. All processes call it.

    Args:
        trainer: in training.
        epoch_finished: whether all of the epoch, its evaluation too, is done.
        due: whether the latest step's logging, evaluation and saving are still to be done.
    """
    contents = checkpoint_contents(trainer, epoch_finished, due)
    with shared_directory(checkpoint_path(trainer.run.root, trainer.state.global_step), trainer.accelerator) as folder:
        trainer.strategy.save_optimizer(folder)
        if contents is not None:
            write_contents(folder, contents)
    if contents is not None:
        rotate(trainer.run.root, trainer.args.save_total_limit)
    trainer.accelerator.wait_for_everyone()


class Contents(NamedTuple):
    """A checkpoint but for the optimizer's state.

    Attributes:
        skeleton: the model, without memory for weights.
        weights: what `model.safetensors` holds; the live tensors where they are whole.
        image_processor: of the model.
        card: what the model card tells.
        files: further files by name: texts, tensors of safetensors files, and what `torch.save` writes.
    """

    skeleton: PreTrainedModel
    weights: dict[str, Tensor]
    image_processor: RFDETRImageProcessor
    card: CardFacts
    files: dict[str, Any]


def checkpoint_contents(trainer: "RFDETRTrainer", epoch_finished: bool, due: bool) -> Contents | None:
    """What the main process writes; None on the others. All call it, with the arguments of `save_checkpoint`."""
    is_main = trainer.accelerator.is_main_process
    ranks = gather_object([{"generators": rng_state(), "losses": trainer.losses.state_dict()}])
    tensors = saved_tensors(trainer.model)
    weights = whole_state(tensors, keep=is_main)
    average = whole_state(tensors, trainer.ema.state_dict(), keep=is_main) if trainer.ema is not None else {}
    if not is_main:
        return None
    files = _state_files(trainer) | {PROGRESS: _progress(trainer, epoch_finished, due), RANKS: ranks}
    files |= {name: state for name, state in ((ADAPTERS, adapter_state(weights)), (AVERAGE, average)) if state}
    plain = plain_state(trainer.model, weights)
    return Contents(_skeleton(trainer), plain, trainer.image_processor, _card_facts(trainer, None), files)


def write_contents(folder: Path, contents: Contents) -> None:
    """Write a checkpoint but for the optimizer's state into a folder."""
    _write_model(folder, contents.skeleton, contents.weights, contents.image_processor)
    write_model_card(folder, contents.card)
    for name, content in contents.files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        elif name.endswith(".safetensors"):
            save_file(content, folder / name, metadata={"format": "pt"})
        else:
            torch.save(content, folder / name)


def _state_files(trainer: "RFDETRTrainer") -> dict[str, Any]:
    callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, ExportableState)]
    trainer.state.stateful_callbacks = {type(c).__name__: c.state() for c in callbacks}
    # Its own `save_to_json` sorts the names, and so the columns of a resumed `metrics.csv`.
    files = {TRAINER_STATE: json.dumps(dataclasses.asdict(trainer.state), indent=2)}
    files[SCHEDULER] = trainer.scheduler.state_dict()
    if trainer.accelerator.scaler is not None:
        files[SCALER] = trainer.accelerator.scaler.state_dict()
    return files


def _progress(trainer: "RFDETRTrainer", epoch_finished: bool, due: bool) -> dict[str, Any]:
    return trainer.identity | {
        "due": trainer.control.state()["args"] if due else {},
        "epoch": trainer.epoch,
        "steps_in_epoch": trainer.steps_in_epoch,
        "epoch_finished": epoch_finished,
        "epoch_stopped": trainer.control.should_epoch_stop,
        "stopped": trainer.control.should_training_stop and trainer.state.global_step < trainer.state.max_steps,
        "skipped_steps": trainer.skipped_steps,
        "skipped_in_a_row": trainer.skipped_in_a_row,
        "best": trainer.best.state_dict(),
        "best_weights": trainer.best_weights,
        "ema_updates": trainer.ema.num_updates if trainer.ema is not None else 0,
    }


def load_checkpoint(trainer: "RFDETRTrainer", folder: Path) -> None:
    """Take up the run as `save_checkpoint` left it.

    Raises:
        ValueError: the checkpoint belongs to another run; see `check_same_run`.
    """
    progress = torch.load(folder / PROGRESS, weights_only=True)
    check_same_run(trainer, folder, progress)
    trainer.strategy.load_optimizer(folder)
    load_weights(trainer.model, folder)
    if trainer.ema is not None:
        average, tensors = load_file(folder / AVERAGE), saved_tensors(trainer.model)
        parts = {name: part_of(tensors[name], value) if name in tensors else value for name, value in average.items()}
        trainer.ema.load_state_dict(parts, progress["ema_updates"])
    trainer.scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(torch.load(folder / SCALER, weights_only=True))
    for name in ("skipped_steps", "skipped_in_a_row", "due", "best_weights"):
        setattr(trainer, name, progress[name])
    trainer.best.load_state_dict(progress["best"])
    _load_state(trainer, folder)
    trainer.epoch, trainer.steps_in_epoch = epoch_to_go_on_with(
        progress, trainer.state.global_step, trainer.state.max_steps
    )
    trainer.had_stopped = had_stopped(progress, trainer.args.to_dict())
    _load_ranks(trainer, torch.load(folder / RANKS, weights_only=True))
    logger.info("resumed from %s at step %d", folder, trainer.state.global_step)


def _load_ranks(trainer: "RFDETRTrainer", ranks: list[dict[str, Any]]) -> None:
    """What each process has of its own. Another number of processes starts with the mean loss and its own seeds."""
    accelerator = trainer.accelerator
    if len(ranks) == accelerator.num_processes:
        mine = ranks[accelerator.process_index]
        set_rng_state(mine["generators"])
        trainer.losses.load_state_dict(mine["losses"], accelerator.device)
    else:
        trainer.losses.load_state_dict(mean_state([rank["losses"] for rank in ranks]), accelerator.device)


def _load_state(trainer: "RFDETRTrainer", folder: Path) -> None:
    saved = TrainerState.load_from_json(str(folder / TRAINER_STATE))
    for field in ("epoch", "global_step", "log_history", "best_metric", "best_global_step", "best_model_checkpoint"):
        setattr(trainer.state, field, getattr(saved, field))
    for listener in trainer.callback_handler.callbacks:
        state = saved.stateful_callbacks.get(type(listener).__name__)
        if isinstance(listener, ExportableState) and state is not None:
            for name, value in state["attributes"].items():
                setattr(listener, name, value)


def save_pretrained(trainer: "RFDETRTrainer", path: Path, metrics: dict[str, float] | None = None) -> None:
    """Write the model's present weights as a `from_pretrained` folder with image processor and model card."""
    is_main = trainer.accelerator.is_main_process
    weights = whole_state(saved_tensors(trainer.model), keep=is_main)
    if is_main:
        with atomic_directory(path) as folder:
            _write_model(folder, _skeleton(trainer), plain_state(trainer.model, weights), trainer.image_processor)
            write_model_card(folder, _card_facts(trainer, metrics))
    trainer.accelerator.wait_for_everyone()


def _card_facts(trainer: "RFDETRTrainer", metrics: dict[str, float] | None) -> CardFacts:
    """What the model card of the present weights tells; without metrics, those of the step that the weights are of."""
    history, state = trainer.state.log_history, trainer.state
    if metrics is None:
        holds_best = trainer.args.load_best_model_at_end and not trainer._in_training and state.best_global_step
        step = state.best_global_step if holds_best else state.global_step
        metrics = next((row for row in reversed(history) if row["step"] == step and "eval_runtime" in row), {})
        metrics = metrics | next((row for row in reversed(history) if "test_runtime" in row), {})
    on_hub = trainer.args.push_to_hub or trainer.args.hub_model_id is not None
    return CardFacts(
        name=trainer.hub.repo_id.rpartition("/")[2] if on_hub else trainer.run.root.resolve().name,
        model_class=trainer.model_class.__name__,
        config=trainer.model.config,
        parameters=sum(parameter.numel() for parameter in saved_tensors(trainer.model).values()),
        metrics=metrics,
        training_arguments=trainer.args.to_dict(),
        log_history=list(history),
        dataset=hub_dataset_id(trainer.train_dataset),
        base_model=hub_model_id(trainer.model.config._name_or_path),
        model_id=trainer.hub.repo_id if on_hub else "PATH_OR_ID",
    )


def _skeleton(trainer: "RFDETRTrainer") -> PreTrainedModel:
    # FSDP2 gives the model a class of another name, which `save_pretrained` would not know how to write.
    with torch.device("meta"):
        return trainer.model_class(trainer.model.config).to(trainer.model.dtype)


def _write_model(
    folder: Path, skeleton: PreTrainedModel, weights: dict[str, Tensor], image_processor: RFDETRImageProcessor
) -> None:
    with no_transformers_bars():
        skeleton.save_pretrained(folder, state_dict=weights)
    image_processor.save_pretrained(folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights of a model folder or checkpoint into a model of the same configuration, sharded or not."""
    state = load_file(folder / MODEL)
    if (folder / ADAPTERS).exists():
        state = unmerged_state(state, load_file(folder / ADAPTERS))
    write_state(model, state)
