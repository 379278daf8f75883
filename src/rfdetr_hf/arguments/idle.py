"""Options that do nothing beside others: one table for all classes of options."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from ..choices import AUGMENTATIONS, is_official

logger = logging.getLogger(__name__)


def _joins_nothing(options: Any) -> bool:
    """Whether an augmentation joins no images; one that is still the name of a file may."""
    from ..data.pipeline.presets import STRONG, read_augmentation

    value = options.augmentation
    is_read = isinstance(value, Mapping) or value in AUGMENTATIONS
    return is_read and not any(name in read_augmentation(value) for name in STRONG)


# By class: the option that decides, when the others do nothing, and the others.
#
# Not here: what methods of the trainer or callbacks of other packages read whatever else is set, such as eval_loss
# (`evaluate`), run_name, report_images and metric_for_best_model; and limits, which hold where nothing reaches them.
_TABLES: dict[str, tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...]] = {
    "RFDETRTrainingArguments": (
        ("lora_r", lambda o: not o.lora_r, ("use_dora", "lora_alpha", "lora_dropout", "lora_target_modules")),
        ("freeze_backbone", lambda o: o.freeze_backbone,
         ("freeze_encoder_blocks", "learning_rate_encoder", "layer_decay")),
        ("lr_scheduler_type", lambda o: o.lr_scheduler_type != "step", ("lr_drop_epochs",)),
        ("use_ema", lambda o: not o.use_ema, ("ema_decay", "ema_tau", "ema_update_interval", "eval_raw_weights")),
        ("drop_path", lambda o: not o.drop_path, ("drop_path_mode", "drop_path_schedule", "drop_path_cutoff_epochs")),
        ("drop_path_mode", lambda o: o.drop_path_mode == "standard", ("drop_path_schedule", "drop_path_cutoff_epochs")),
        ("augmentation", _joins_nothing, ("close_strong_augmentation_epochs",)),
        ("cache_images", lambda o: o.cache_images == "none", ("cache_images_gb",)),
        ("cache_images", lambda o: o.cache_images != "disk", ("cache_images_dir",)),
        ("dataloader_num_workers", lambda o: o.dataloader_num_workers == 0, ("dataloader_prefetch_factor",)),
        ("torch_compile", lambda o: not o.torch_compile, ("torch_compile_backend",)),
        ("eval_strategy", lambda o: o.eval_strategy == "no", ("eval_delay",)),
        ("eval_strategy", lambda o: o.eval_strategy != "steps", ("eval_steps",)),
        ("save_strategy", lambda o: o.save_strategy != "steps", ("save_steps",)),
        ("logging_strategy", lambda o: "steps" not in (o.logging_strategy, o.eval_strategy), ("logging_steps",)),
        ("early_stopping_patience", lambda o: o.early_stopping_patience is None, ("early_stopping_threshold",)),
        ("push_to_hub", lambda o: not o.push_to_hub, ("hub_strategy",)),
    ),
    "ModelArguments": (
        ("from_scratch", lambda o: not o.from_scratch, ("init_backbone_from",)),
        ("from_scratch", lambda o: o.from_scratch, ("revision", "class_init", "rename_classes")),
        ("model_name_or_path",
         lambda o: is_official(o.model_name_or_path or "") or os.path.isdir(o.model_name_or_path or ""), ("revision",)),
        ("class_init", lambda o: o.class_init != "prior", ("rename_classes",)),
    ),
    "DataArguments": (("sampling", lambda o: o.sampling != "repeat_factor", ("repeat_threshold",)),),
}  # fmt: skip


# What scripts leave set while the switch beside it goes on and off.
_OF_SWITCHES = {"eval_delay", "eval_steps", "hub_strategy", "logging_steps", "save_steps", "torch_compile_backend"}


def idle_options(cls: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """The options that ask for something and do nothing, each with the option and value that make it idle.

    What is off, none or as by default asks for nothing.

    Args:
        cls: a dataclass of options.
        given: values by name; the others are the defaults.
    """
    defaults = {each.name: each.default for each in fields(cls)}
    values, found = SimpleNamespace(**{**defaults, **given}), dict[str, str]()
    for by, applies, names in _TABLES.get(cls.__name__, ()):
        named = [name for name in names if given.get(name) and given[name] != defaults[name]]
        if named and applies(values):
            value = getattr(values, by)
            found |= {name: f"{by}={getattr(value, 'value', value)!r}" for name in named}
    return found


def refuse_idle(options: Any, is_new: bool = True) -> None:
    """Make sure that no option does nothing; of those that Transformers takes beside anything a warning says so.

    Args:
        options: to check.
        is_new: whether they were just made; else they are settled for a run, and what was said is not said again.

    Raises:
        ValueError: another one does; the message says by what.
    """
    for name, by in idle_options(type(options), vars(options)).items():
        message = f"{name}={getattr(options, name)!r} has no effect with {by}"
        if name not in _OF_SWITCHES:
            raise ValueError(f"{message}; leave one of them out")
        if is_new:
            logger.warning(message)
