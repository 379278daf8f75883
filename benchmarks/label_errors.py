"""How many of planted label errors stand first: the ranking of `data audit --model` beside cleanlab's.

Images, objects and detections are made up: detectors of three qualities, ten seeds each, a tenth of the images with one
error each (a box left out, a class changed, a box moved). Both rankings get the same labels and detections. Printed is
the precision at k, k being the number of images with errors, of images by their worst error.

    python benchmarks/label_errors.py --cleanlab path/to/python    # of an environment with cleanlab
"""

import argparse
import json
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rfdetr_hf.data.label_errors import Annotated, Detected, rank_label_errors

CLEANLAB = """
import json, sys
import numpy as np
from cleanlab.object_detection.rank import get_label_quality_scores
scores = []
for case in json.load(sys.stdin):
    labels = [{"bboxes": np.array(b, float).reshape(-1, 4), "labels": np.array(l, int)} for b, l in case["labels"]]
    predictions = []
    for image in case["detections"]:
        found = np.empty(len(image), dtype=object)
        for k, rows in enumerate(image):
            found[k] = np.array(rows, np.float32).reshape(-1, 5)
        predictions.append(found)
    scores.append(get_label_quality_scores(labels, predictions, verbose=False).tolist())
print(json.dumps(scores))
"""
WIDTH, HEIGHT, CLASSES = 640, 480, 5


class Detector(NamedTuple):
    """Share of the objects that it finds, Beta of their confidence, jitter of boxes, confusions and false alarms."""

    recall: float
    confidence: tuple[float, float]
    jitter: float
    confused: float
    alarms: float


DETECTORS = {
    "strong": Detector(0.97, (14, 2), 0.02, 0.01, 0.3),
    "usual": Detector(0.9, (6, 4), 0.04, 0.04, 1.0),
    "weak": Detector(0.75, (3, 4), 0.08, 0.1, 2.0),
}
KINDS = ("overlooked", "swapped", "badly located")


class Case(NamedTuple):
    """Labels with planted errors, what a detector finds, and the images with errors."""

    annotated: list[Annotated]
    detected: list[Detected]
    planted: dict[int, str]


def make_case(
    detector: Detector, seed: int, images: int = 300, share: float = 0.1, kinds: Sequence[str] = KINDS
) -> Case:
    """Images of one to eight objects."""
    rng = np.random.default_rng(seed)
    annotated, detected = [], []
    for _ in range(images):
        count = int(rng.integers(1, 9))
        sides = np.exp(rng.normal(np.log(80), 0.5, (count, 2))).clip(16, 300)
        low = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sides).clip(1)
        boxes, labels = np.concatenate([low, low + sides], axis=1), rng.integers(0, CLASSES, count)
        annotated.append(Annotated(boxes, labels, np.zeros(count, bool)))
        detected.append(_detect(detector, boxes, labels, rng))
    planted = {}
    for image in rng.permutation(images)[: int(share * images)].tolist():
        planted[image] = str(rng.choice(list(kinds)))
        annotated[image] = _spoil(annotated[image], planted[image], rng)
    return Case(annotated, detected, planted)


def _detect(detector: Detector, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Detected:
    rows = []
    for box, label in zip(boxes, labels.tolist(), strict=True):
        side = np.tile(box[2:] - box[:2], 2)
        moved = box + rng.normal(0, detector.jitter, 4) * side
        if rng.random() < detector.recall:
            found = int(rng.integers(CLASSES)) if rng.random() < detector.confused else label
            rows.append((*moved, found, rng.beta(*detector.confidence)))
            other = int(rng.integers(CLASSES))
            if other != found:
                rows.append((*moved, other, rng.beta(1, 8)))
    for _ in range(rng.poisson(detector.alarms)):
        side = np.exp(rng.normal(np.log(60), 0.5, 2)).clip(16, 200)
        low = rng.uniform(0, 1, 2) * (np.array([WIDTH, HEIGHT]) - side)
        rows.append((*low, *(low + side), int(rng.integers(CLASSES)), rng.beta(1, 4)))
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detected(table[:, :4], table[:, 4].astype(np.int64), table[:, 5])


def _spoil(given: Annotated, kind: str, rng: np.random.Generator) -> Annotated:
    boxes, labels, at = given.boxes.copy(), given.labels.copy(), int(rng.integers(len(given.labels)))
    if kind == "overlooked":
        keep = np.arange(len(labels)) != at
        return Annotated(boxes[keep], labels[keep], given.crowds[keep])
    if kind == "swapped":
        labels[at] = (labels[at] + int(rng.integers(1, CLASSES))) % CLASSES
    if kind == "badly located":
        side = boxes[at, 2:] - boxes[at, :2]
        boxes[at] += np.tile(rng.choice([-1, 1], 2) * rng.uniform(0.25, 0.6, 2) * side, 2)
    if kind == "on nothing":
        side = np.exp(rng.normal(np.log(80), 0.5, 2)).clip(16, 300)
        low = rng.uniform(0, 1, 2) * (np.array([WIDTH, HEIGHT]) - side).clip(1)
        boxes = np.concatenate([boxes, [[*low, *(low + side)]]])
        labels = np.append(labels, rng.integers(CLASSES))
    return Annotated(boxes, labels, np.zeros(len(labels), bool))


def precision_at_k(order: Sequence[int], planted: dict[int, str]) -> float:
    """The share of images with errors among the first as many images as there are such."""
    first = list(dict.fromkeys(order))[: len(planted)]
    return sum(image in planted for image in first) / max(len(planted), 1)


def ours(case: Case) -> float:
    """Precision at k of this package's ranking."""
    return precision_at_k([image for image, _ in rank_label_errors(case.annotated, case.detected)], case.planted)


def cleanlabs(cases: Sequence[Case], python: str) -> list[float]:
    """Precision at k of cleanlab's ranking, by the Python of an environment that has it."""
    told: list[dict[str, Any]] = []
    for case in cases:
        found = []
        for each in case.detected:
            table = np.concatenate([each.boxes, each.scores[:, None]], axis=1)
            found.append([table[each.labels == label].tolist() for label in range(CLASSES)])
        told.append({"labels": [(a.boxes.tolist(), a.labels.tolist()) for a in case.annotated], "detections": found})
    done = subprocess.run([python, "-c", CLEANLAB], input=json.dumps(told), capture_output=True, text=True, check=True)
    orders = [np.argsort(scores, kind="stable").tolist() for scores in json.loads(done.stdout)]
    return [precision_at_k(order, case.planted) for order, case in zip(orders, cases, strict=True)]


def main() -> None:
    """Print one row for each detector and kind of error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanlab", help="Python of an environment with cleanlab")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--images", type=int, default=300)
    args = parser.parse_args()
    print(f"{args.seeds} seeds, {args.images} images, a tenth with an error; precision at k, mean (least)")
    print(f"{'detector':<10}{'errors':<16}{'ours':>16}{'cleanlab':>16}")
    for name, detector in DETECTORS.items():
        for kinds in (KINDS, *((kind,) for kind in (*KINDS, "on nothing"))):
            cases = [make_case(detector, seed, args.images, kinds=kinds) for seed in range(args.seeds)]
            mine = [ours(case) for case in cases]
            row = f"{name:<10}{'all three' if len(kinds) > 1 else kinds[0]:<16}{np.mean(mine):>9.2f} ({min(mine):.2f})"
            if args.cleanlab and kinds != ("on nothing",):
                theirs = cleanlabs(cases, args.cleanlab)
                row += f"{np.mean(theirs):>9.2f} ({min(theirs):.2f})"
            print(row)


if __name__ == "__main__":
    main()
