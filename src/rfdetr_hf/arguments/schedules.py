"""What the options of a learning-rate schedule mean to it."""

from inspect import signature
from typing import Any

from ..choices import METRIC_DRIVEN_SCHEDULES, OWN_SCHEDULES, SCHEDULES

_OF_ALL = ("optimizer", "num_warmup_steps", "num_training_steps")  # given to each by the run


def encoder_rate(args: Any) -> float:
    """The encoder's rate; where none is given, the published proportion: 1.5 times `args.learning_rate`."""
    # Without the rounding error: 1e-4 gives 1.5e-4 to the last bit.
    return args.learning_rate_encoder or float(f"{1.5 * args.learning_rate:.12g}")


def check_schedule_options(kind: str, args: Any) -> None:
    """Whether the schedule `kind` is known and the other options of `args` mean something to it.

    Raises:
        ValueError: no; the message names the option.
    """
    choices = ", ".join(SCHEDULES)
    if kind in METRIC_DRIVEN_SCHEDULES:
        raise ValueError(f"lr_scheduler_type={kind!r} follows a metric instead of the step; use one of {choices}.")
    if kind not in SCHEDULES:
        raise ValueError(f"lr_scheduler_type={kind!r} is unknown; use one of {choices}.")
    if args.lr_scheduler_kwargs and kind in OWN_SCHEDULES:
        raise ValueError(f"lr_scheduler_kwargs does not apply to lr_scheduler_type={kind!r}; remove it.")
    if kind not in OWN_SCHEDULES:
        from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

        functions: Any = TYPE_TO_SCHEDULER_FUNCTION
        given, options = args.lr_scheduler_kwargs or {}, signature(functions[kind]).parameters
        options = {name: each for name, each in options.items() if name not in _OF_ALL}
        needed = [name for name, each in options.items() if each.default is each.empty]
        if missing := [name for name in needed if name not in given]:
            example = ", ".join(f'"{name}": …' for name in missing)
            raise ValueError(f"lr_scheduler_type={kind!r} needs lr_scheduler_kwargs={{{example}}}.")
        if unknown := ", ".join(repr(name) for name in given if name not in options):
            raise ValueError(
                f"lr_scheduler_kwargs has {unknown}, and lr_scheduler_type={kind!r} takes {', '.join(options)}."
            )
    if args.min_lr_ratio and kind != "cosine":
        ratio = args.min_lr_ratio
        raise ValueError(
            f"min_lr_ratio={ratio} applies to lr_scheduler_type='cosine' only, not to {kind!r}; remove it."
        )
    if kind == "step" and args.lr_drop_epochs is None:
        raise ValueError("lr_scheduler_type='step' needs lr_drop_epochs, the epoch of the drop.")
