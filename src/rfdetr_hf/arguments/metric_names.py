"""What scores are called, in logs and in `metric_for_best_model`."""

import re
from collections.abc import Sequence

RAW = "_raw_"
# The end of the names of COCO's scores, which are in [0, 1], or -1 for want of objects.
_COCO_SCORE = re.compile(
    r"(^|_)((map|mar)(_at)?(_\d+|_small|_medium|_large)*(_at_\d+)?(_class_.+)?|precision|recall|f1|score_threshold)$",
    re.DOTALL,
)


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
    start = _start(metric, sets)
    return start + metric.removeprefix(start).removeprefix("ema_")


def _start(metric: str, sets: Sequence[str]) -> str:
    """The "eval_" of a name and that of its evaluation set."""
    starts = [f"{name}_" for name in sets if metric.removeprefix("eval_").startswith(f"{name}_")]
    return "eval_" * metric.startswith("eval_") + max(starts, key=len, default="")  # one name may begin with another


def is_coco_score(metric: str) -> bool:
    """Whether a metric, or one of two with a comma between, is by its name a score that COCO's evaluation gives."""
    return any(_COCO_SCORE.search(name.strip()) for name in metric.split(","))


def larger_wins(metric: str, sets: Sequence[str] = ()) -> bool:
    """Whether a larger value of a metric is a better one: of all but losses.

    A loss has a name that ends with "loss" ("logloss"), or that word in it ("loss_bbox"). The names of evaluation sets
    and of classes say nothing: "hair_loss_map" and "map_class_weight_loss" are scores.

    Args:
        metric: one name, or two with a comma between.
        sets: names of the evaluation sets where there are several.
    """
    names = [name.strip() for name in metric.split(",")]
    own = [name.removeprefix(_start(name, sets)).lower() for name in names]
    return all(is_coco_score(name) or not re.search("loss$|(?<![a-z])loss(?![a-z])", name) for name in own)
