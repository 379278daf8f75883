"""Which weights have been the best so far."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arguments.metric_names import competing_names, is_coco_score, larger_wins, without_raw

_KEPT = ("score", "source", "step", "smoothed")
RULE = ("metric", "greater_is_better", "smooth_alpha")
"""What scores are compared by; of another rule they do not compare."""


@dataclass
class BestModel:
    """The best score so far and whose it is; ties keep the earlier one, and the raw weights before the EMA weights.

    What is no score (`is_score`) chooses nothing.

    Args:
        metric: name of the score, such as "map" or "raw_map"; "map,raw_map" lets EMA and raw weights compete.
        greater_is_better: direction of the metric; default: the one that its name says, see `larger_wins`.
        skip_epochs: evaluations of the first so many epochs choose nothing (the smoothed scores are kept up all the
            same).
        smooth_alpha: scores are smoothed by `s = alpha * s + (1 - alpha) * score`, from the first score on.
        smooth_ema: whether the scores of EMA weights are smoothed too; rfdetr smooths those of raw weights alone.
        use_ema: whether plain names are of EMA weights; the trainer sets it.
    """

    metric: str
    greater_is_better: bool | None = None
    skip_epochs: float = 0.0
    smooth_alpha: float = 0.0
    smooth_ema: bool = True
    use_ema: bool = True
    score: float | None = None
    source: str | None = None
    step: int | None = None
    smoothed: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.greater_is_better is None:
            self.greater_is_better = larger_wins(self.metric)

    def update(self, metrics: dict[str, float], epoch: float, step: int) -> bool:
        """Take an evaluation's metrics. Returns whether one of its scores is the best so far."""
        improved = False
        for source, score in candidate_scores(metrics, self.metric, self.use_ema).items():
            if not is_score(score, self.metric):
                continue
            previous = self.smoothed.get(source, score)
            alpha = self.smooth_alpha if self.smooth_ema or source == "raw" else 0.0
            smoothed = self.smoothed[source] = alpha * previous + (1 - alpha) * score
            beats = self.score is None or (smoothed > self.score if self.greater_is_better else smoothed < self.score)
            if beats and not is_skipped(epoch, self.skip_epochs):
                self.score, self.source, self.step = smoothed, source, step
                improved = True
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next evaluation depends on, and the rule of the comparison."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key in (*RULE, *_KEPT)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict()`, of the same rule."""
        for key in _KEPT:
            setattr(self, key, state[key])


def is_score(value: float, metric: str) -> bool:
    """Whether the value of a metric is a score: not NaN, infinite, or the -1 by which COCO's scores say: no objects."""
    return math.isfinite(value) and (value != -1 or not is_coco_score(metric))


def is_skipped(epoch: float, skip_epochs: float) -> bool:
    """Whether an evaluation after `epoch` epochs belongs to the first `skip_epochs`, its last evaluation included."""
    return 0 < skip_epochs and epoch <= skip_epochs


def candidate_scores(metrics: Mapping[str, float], metric: str, use_ema: bool = True) -> dict[str, float]:
    """The evaluated values of a metric by their weights, raw ones first: {"raw": eval_raw_map, "ema": eval_map}.

    Args:
        metrics: of an evaluation.
        metric: name of one score, or of that of the EMA weights and that of the raw ones with a comma between.
        use_ema: whether plain names are of EMA weights.
    """
    found = {}
    for name in competing_names(metric):
        # A score of the user's may have "raw_" in its name too, but not beside the same name without.
        of_raw = not use_ema or name != without_raw(name) and f"eval_{without_raw(name)}" in metrics
        if f"eval_{name}" in metrics:
            found["raw" if of_raw else "ema"] = metrics[f"eval_{name}"]
    return found
