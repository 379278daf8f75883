"""What the numbers of a class say, in a sentence for whoever can change the data or the training."""

import numpy as np

from ..choices import counted
from .analysis import DetectionAnalysis
from .error_types import KINDS
from .metrics import highest_rejected

_FEW = 20  # objects, below which a score says little
_SMALL = 32**2  # COCO's limit in pixels
_SHARE = 0.15  # of a class's objects, from which an error is worth a sentence
_LOOSE = 0.35  # of AP75 below AP50
_AGAINST = {
    "localisation": "their boxes overlap objects too little; train longer, or check how tightly boxes are drawn.",
    "duplicate": "objects are found twice; train longer, or raise its threshold.",
    "background": "look for objects without a label, add images without it, or raise its threshold.",
}


def class_advice(analysis: DetectionAnalysis) -> list[str]:
    """For each class the error that costs it most and what helps, at the best score threshold.

    Args:
        analysis: of one IoU type.
    """
    evaluation, matrix = analysis.evaluation, analysis.confusion
    truths, matches, names = evaluation.truths, evaluation.matches, evaluation.class_names
    above = matches.score > highest_rejected(analysis.threshold)
    right, kinds = matches.correct & above, analysis.errors.kind
    found = np.zeros(len(truths.category), dtype=bool)
    found[matches.truth[right]] = True
    lines = []
    for k, row in enumerate(analysis.per_class()):
        objects = row["objects"]
        if not objects:
            lines.append("No object in this split, so nothing is known of it.")
            continue
        missed = (truths.category == k) & ~truths.ignored & ~found
        others = np.delete(np.arange(len(names)), k)
        taken, rival = max(((int(matrix[k, j]), j) for j in others), default=(0, k))
        costs = {"missed": int(matrix[k, -1]), "taken": taken, "alone": int(matrix[-1, k])}
        worst = max(costs, key=costs.__getitem__)
        share = f"{costs[worst]} of {objects}"
        if row["best_threshold"] is None:
            text = "No detection of it is right: train longer, or check its labels."
        elif costs[worst] < _SHARE * objects:
            loose = row["map_75"] < row["map_50"] - _LOOSE
            text = "Found, but its boxes are loose: check how tightly they are drawn." if loose else "Good."
        elif worst == "missed":
            small = (truths.box[missed, 2:].prod(axis=1) < _SMALL).mean() > 0.5 if missed.any() else False
            help_ = "most of them are small: try a larger resolution, or tiles" if small else (
                "add images of it like the missed ones, or lower its threshold"
            )  # fmt: skip
            text = f"{share} are missed; {help_}."
        elif worst == "taken":
            text = f"{share} are taken for {names[rival]}: check the labels of both, and add images of them."
        else:
            mine = kinds[above & matches.wrong & (matches.category == k)]
            kind = KINDS[np.bincount(mine, minlength=len(KINDS)).argmax()]
            beside = f"{counted(costs[worst], 'wrong detection')} beside {counted(objects, 'object')}"
            text = f"{beside}, most of the type {kind}: " + _AGAINST.get(kind, _AGAINST["background"])
        few = f"Only {counted(objects, 'object')}: the scores are uncertain. " if objects < _FEW else ""
        lines.append(few + text)
    return lines
