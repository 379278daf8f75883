"""The course of a run as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_SCORES = tuple(
    f"{weights}{task}{name}"
    for task in ("", "segm_", "keypoint_")
    for weights in ("", "raw_")
    for name in ("map", "map_50")
)


def evaluated_sets(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """What the names of scores begin with: "eval", and "eval_<name>" of each of several evaluation sets.

    One name may begin with another: longer ones stand first.
    """
    timed = {name.removesuffix("_runtime") for row in rows for name in row if name.endswith("_runtime")}
    return sorted({"eval"} | {name for name in timed if name.startswith("eval_")}, key=lambda name: (-len(name), name))


def save_curves(log_history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """Draw losses, AP and learning rate over the steps.

    Args:
        log_history: rows with `step` and what was logged.
        path: of the PNG file.

    Returns:
        Whether there is a picture: not of a run with fewer than two points.
    """
    sets = sorted(evaluated_sets(log_history))
    losses = ("loss", *(f"{each}_{weights}loss" for each in sets for weights in ("", "raw_")))
    scores = tuple(f"{each}_{name}" for each in sets for name in _SCORES)
    panels = (("loss", losses), ("AP (map) and AP50 (map_50)", scores), ("learning rate", ("learning_rate",)))
    lines = {
        name: [(row["step"], row[name]) for row in log_history if row.get(name, -1) >= 0]
        for _, names in panels
        for name in names
    }
    panels = [(title, [name for name in names if len(lines[name]) > 1]) for title, names in panels]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return False
    # Not pyplot, which would choose a window system and keep the figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(panels), 3.4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            steps, values = zip(*lines[name], strict=True)
            marker = "." if len(steps) <= 30 else None
            axes.plot(steps, values, marker=marker, label=name.removeprefix("eval_"))
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xlabel="step", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.grid(color="#e6e9ee")
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    return True
