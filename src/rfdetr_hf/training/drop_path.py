"""The drop-path rate over the course of a run."""

from dataclasses import dataclass

from ..choices import DROP_PATH_MODES, DROP_PATH_SCHEDULES


@dataclass(frozen=True)
class DropPathSchedule:
    """Drop-path rate of each optimizer step `s = 0 … total_steps - 1`; afterwards it stays at its last value.

    * `"standard"`: `rate` throughout.
    * `"early"`: `rate` for `s < cutoff_steps`, then 0. Linear: from `rate` at the first step to 0 at step `cutoff_steps
      - 1`.
    * `"late"`: 0 for `s < cutoff_steps`, then `rate`. Linear: from 0 at step `cutoff_steps` to `rate` at the last step.
      The official trainer has no such ramp; it mirrors the early one.

    The rates are those of the official trainer, with its epochs counted in optimizer steps. The value goes to the last
    block of the backbone; the model spreads it over the others.

    Args:
        rate: highest probability to drop a residual branch, in [0, 1).
        total_steps: optimizer steps of the run.
        mode: `"standard"`, `"early"` or `"late"`.
        schedule: `"constant"` or `"linear"`; linear needs a mode with a cutoff.
        cutoff_steps: the step that separates the two phases, in [0, total_steps].

    Raises:
        ValueError: an argument is out of range.
    """

    rate: float
    total_steps: int
    mode: str = "standard"
    schedule: str = "constant"
    cutoff_steps: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"The drop-path rate must lie in [0, 1), not {self.rate}.")
        if self.total_steps < 1:
            raise ValueError(f"The drop-path schedule needs at least 1 step, not {self.total_steps}.")
        if self.mode not in DROP_PATH_MODES:
            raise ValueError(f"Drop-path mode {self.mode!r} is unknown; use one of {', '.join(DROP_PATH_MODES)}.")
        if self.schedule not in DROP_PATH_SCHEDULES:
            choices = ", ".join(DROP_PATH_SCHEDULES)
            raise ValueError(f"Drop-path schedule {self.schedule!r} is unknown; use one of {choices}.")
        if self.mode == "standard" and self.schedule == "linear":
            raise ValueError("Drop-path mode 'standard' is constant; use mode 'early' or 'late' for a linear schedule.")
        if not 0 <= self.cutoff_steps <= self.total_steps:
            raise ValueError(
                f"The drop-path cutoff must lie within the run's {self.total_steps} steps, not at {self.cutoff_steps}."
            )

    @property
    def is_idle(self) -> bool:
        """Whether there is a rate, and no step has it."""
        never = {"early": 0, "late": self.total_steps}.get(self.mode)
        return self.rate > 0 and self.cutoff_steps == never

    def at(self, step: int) -> float:
        """The rate of an optimizer step, counted from 0."""
        step = min(step, self.total_steps - 1)
        if self.mode == "standard":
            return self.rate
        if (step < self.cutoff_steps) != (self.mode == "early"):
            return 0.0
        if self.schedule == "constant":
            return self.rate
        if self.mode == "early":
            return self.rate * (1.0 - _progress(step, 0, self.cutoff_steps - 1, alone=0.0))
        return self.rate * _progress(step, self.cutoff_steps, self.total_steps - 1, alone=1.0)


def _progress(step: int, first: int, last: int, alone: float) -> float:
    """Share of the way from `first` to `last`; `alone` where they are the same step."""
    return (step - first) / (last - first) if last > first else alone
