"""What scores are called, in logs and in `metric_for_best_model`."""

import re
from collections.abc import Sequence

from ..choices import VARIANTS
from ..tasks import TASKS

RAW = "_raw_"


def without_raw(name: str) -> str:
    """The name of a score without the "raw_" of raw weights, which may stand behind the name of a data set."""
    return f"_{name}".replace(RAW, "_", 1)[1:]


def competing_names(metric: str) -> list[str]:
    """The scores that `metric_for_best_model` names, without "eval_"; those of raw weights first."""
    names = [name.strip().removeprefix("eval_") for name in metric.split(",")]
    return sorted(names, key=lambda name: name == without_raw(name))


def present_metric(metric: str, sets: Sequence[str] = ()) -> str:
    """The present name of a metric that is named as before "ema_" left the names of scores; others as they are.

    Args:
        metric: one name.
        sets: names of the evaluation sets where there are several.
    """
    starts = [f"{name}_" for name in sets if metric.removeprefix("eval_").startswith(f"{name}_")]
    start = max(starts, key=len, default="")  # one name may begin with another
    start = "eval_" * metric.startswith("eval_") + start
    return start + metric.removeprefix(start).removeprefix("ema_")


def usual_metric(model: str | None) -> str | None:
    """What chooses the best model of a variant, whose name begins with its task; None for what is no variant."""
    if model not in VARIANTS:
        return None
    start = str(model).partition("-")[0]
    task = next((task for task in TASKS.values() if task.name.startswith(start)), TASKS["detection"])
    return task.best_metric


def larger_wins(metric: str) -> bool:
    """Whether a larger value of a metric is a better one: of all but losses, which have "loss" in their name."""
    return "loss" not in re.split("[_,]", metric)
