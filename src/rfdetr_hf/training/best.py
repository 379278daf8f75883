"""Which weights have been the best so far."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

_KEPT = ("score", "source", "step", "smoothed")


@dataclass
class BestModel:
    """The best score so far and whose it is; ties keep the earlier one, and the raw weights before the average.

    Args:
        metric: name without prefix; with "ema_" only the average competes.
        greater_is_better: direction of the metric.
        skip_epochs: evaluations before this epoch choose nothing (the smoothed scores are kept up all the same).
        smooth_alpha: scores are smoothed by `s = alpha * s + (1 - alpha) * score`, from the first score on.
    """

    metric: str
    greater_is_better: bool = True
    skip_epochs: float = 0.0
    smooth_alpha: float = 0.0
    score: float | None = None
    source: str | None = None
    step: int | None = None
    smoothed: dict[str, float] = field(default_factory=dict)

    def update(self, metrics: dict[str, float], epoch: float, step: int) -> bool:
        """Take an evaluation's metrics. Returns whether one of its scores is the best so far."""
        improved = False
        for source, score in candidate_scores(metrics, self.metric).items():
            if math.isnan(score):
                continue
            previous = self.smoothed.get(source, score)
            self.smoothed[source] = self.smooth_alpha * previous + (1 - self.smooth_alpha) * score
            smoothed, sign = self.smoothed[source], 1 if self.greater_is_better else -1
            if epoch >= self.skip_epochs and (self.score is None or sign * smoothed > sign * self.score):
                self.score, self.source, self.step = smoothed, source, step
                improved = True
        return improved

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next evaluation depends on."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key in _KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict()`."""
        for key in _KEPT:
            setattr(self, key, state[key])


def candidate_scores(metrics: dict[str, float], metric: str) -> dict[str, float]:
    """The evaluated values of a metric by source, raw weights first: {"raw": eval_map, "ema": eval_ema_map}."""
    metric = metric.removeprefix("eval_")
    if metric.startswith("ema_"):
        names = {"ema": f"eval_{metric}"}
    else:
        names = {"raw": f"eval_{metric}", "ema": f"eval_ema_{metric}"}
    return {source: metrics[name] for source, name in names.items() if name in metrics}
