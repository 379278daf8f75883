"""The course of a run as a picture."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

_LOSSES = ("loss", "eval_loss", "eval_raw_loss")
_SCORES = tuple(
    f"eval_{weights}{task}{name}"
    for task in ("", "segm_", "keypoint_")
    for weights in ("", "raw_")
    for name in ("map", "map_50")
)


def save_curves(log_history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """Draw loss and mAP over the steps.

    Args:
        log_history: rows with `step` and what was logged.
        path: of the PNG file.

    Returns:
        Whether there is a picture: not without matplotlib, and not of a run with fewer than two points.
    """
    lines = {
        name: [(row["step"], row[name]) for row in log_history if row.get(name, -1) >= 0]
        for name in (*_LOSSES, *_SCORES)
    }
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines or find_spec("matplotlib") is None:
        return False
    # Not pyplot, which would choose a window system and keep the figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, title, names in zip(figure.subplots(1, 2), ("loss", "mAP"), (_LOSSES, _SCORES), strict=True):
        for name in names:
            if name in lines:
                steps, values = zip(*lines[name], strict=True)
                axes.plot(steps, values, label=name.removeprefix("eval_"))
        axes.set(title=title, xlabel="step")
        axes.grid(color="#e6e9ee")
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    return True
