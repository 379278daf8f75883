"""Which weights have been the best so far."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

_OF_COCO = {"map", "mar", "precision", "recall", "f1"}
_KEPT = ("score", "source", "step", "smoothed")


@dataclass
class BestModel:
    """The best score so far and whose it is; ties keep the earlier one, and the raw weights before the average.

    Scores that say nothing (`is_score`) choose nothing.

    Args:
        metric: name without prefix; with "ema_" only the average competes.
        greater_is_better: direction of the metric; default: the one that its name says, see `larger_wins`.
        skip_epochs: evaluations of the first so many epochs choose nothing (the smoothed scores are kept up all the
            same).
        smooth_alpha: scores are smoothed by `s = alpha * s + (1 - alpha) * score`, from the first score on.
    """

    metric: str
    greater_is_better: bool | None = None
    skip_epochs: float = 0.0
    smooth_alpha: float = 0.0
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
        for source, score in candidate_scores(metrics, self.metric).items():
            if not is_score(self.metric, score):
                continue
            previous = self.smoothed.get(source, score)
            smoothed = self.smoothed[source] = self.smooth_alpha * previous + (1 - self.smooth_alpha) * score
            beats = self.score is None or (smoothed > self.score if self.greater_is_better else smoothed < self.score)
            if beats and not is_skipped(epoch, self.skip_epochs):
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


def larger_wins(metric: str) -> bool:
    """Whether a larger value of a metric is a better one: of all but losses, which have "loss" in their name."""
    return "loss" not in metric.split("_")


def is_score(metric: str, value: float) -> bool:
    """Whether a value says how good weights are: one that is not finite does not, nor -1, COCO's "without objects"."""
    return math.isfinite(value) and not (value == -1 and _OF_COCO & set(metric.split("_")))


def is_skipped(epoch: float, skip_epochs: float) -> bool:
    """Whether an evaluation after `epoch` epochs belongs to the first `skip_epochs`, its last evaluation included."""
    return 0 < skip_epochs and epoch <= skip_epochs


def candidate_scores(metrics: dict[str, float], metric: str) -> dict[str, float]:
    """The evaluated values of a metric by source, raw weights first: {"raw": eval_map, "ema": eval_ema_map}."""
    raw = "eval_" + metric.removeprefix("eval_")
    # "ema_" stands before the score, behind the name of the data set where there are several.
    average = next((name for name in metrics if "_ema_" in name and name.replace("_ema_", "_", 1) == raw), "")
    names = {"ema": raw} if "_ema_" in raw else {"raw": raw, "ema": average}
    return {source: metrics[name] for source, name in names.items() if name in metrics}
