"""`report.html`: what a run was, and how good its best model is, on one page without a network."""

import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ..arguments.metric_names import competing_names, without_raw
from ..choices import counted
from ..data.audit import ObjectCounts
from ..evaluation.page import page, picture, table, text
from ..evaluation.report import AP_IS
from ..hub.model_card import FRAMEWORKS, CardFacts
from .state import RunState
from .status import time_left

# What the page says of the best model stands between these; no escaped text can hold them.
_BEGIN, _END = "<!-- best model -->", "<!-- end of best model -->"
_KEPT = re.compile(re.escape(_BEGIN) + r"\n(.*)\n" + re.escape(_END), re.DOTALL)
_SCORES = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "mar_100": "AR"}


class RunFacts(NamedTuple):
    """What the report is made from.

    Attributes:
        card: of the model card.
        state: of the run.
        images: number of images by split.
        counts: objects by split.
        root: the run folder.
        is_over: whether the training is.
        plots: whether pictures of the folder are shown.
        holds_best: whether `best/` is there and holds the best model.
    """

    card: CardFacts
    state: RunState
    images: Mapping[str, int]
    counts: Mapping[str, ObjectCounts]
    root: Path
    is_over: bool
    plots: bool
    holds_best: bool


def evaluation_of(path: Path) -> list[str]:
    """What an earlier report says of the best model; nothing where there is none."""
    if not path.is_file():
        return []
    found = _KEPT.search(path.read_text(encoding="utf-8"))
    return [found[1]] if found else []


def run_page(facts: RunFacts, evaluation: Sequence[str]) -> str:
    """The complete page.

    Args:
        facts: of the run.
        evaluation: HTML about the best model, as `evaluation_part` gives it.
    """
    root, card = facts.root, facts.card
    body = [f"<p class='lead'>{' '.join(text(sentence) for sentence in _summary(facts))}</p>"]
    body.append(f"<p class='note'>{AP_IS}</p>")
    if scores := _scores_table(facts):
        body.append(table(scores, "slim"))
    course = _picture(facts, "results.png", "Losses, AP and learning rate by step.", "wide chart")
    body += ["<h2>Course of the training</h2>", course]
    body += [_BEGIN, *(evaluation or ["<p>No evaluation chose a best model.</p>"]), _END]
    if facts.plots and (root / "val_pred.jpg").is_file():
        body.append("<h2>Labels and detections</h2>")
        body.append(_picture(facts, "val_labels.jpg", "Validation images with their labels."))
        body.append(_picture(facts, "val_pred.jpg", "The same with what the best model finds."))
    labels = _picture(facts, "labels.jpg", "Labels of the training split.", "wide chart")
    body += ["<h2>Data</h2>", _data_table(facts), labels]
    body.append(_picture(facts, "train_batch.jpg", "Images of the first steps as the model sees them."))
    body += ["<h2>Use the model</h2>", *_usage(facts)]
    arguments: Any = yaml.safe_load((root / "args.yaml").read_text(encoding="utf-8"))
    rows = [["argument", "value"], *([name, str(value)] for name, value in arguments.items())]
    body.append(f"<h2>Arguments</h2><details><summary>{len(rows) - 1} arguments, as args.yaml has them</summary>")
    body.append(table(rows, "texts") + "</details>")
    versions = [[name, version(name)] for name in FRAMEWORKS] + [["Python", platform.python_version()]]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    machine = [["system", platform.platform()], ["device", device]]
    body.append("<h2>Versions</h2>" + table([["package", "version"], *versions, *machine], "texts slim"))
    return page(f"{card.name}: training report", body)


def _many(number: int, noun: str) -> str:
    """`counted` with commas: 118,287 images."""
    return counted(number, noun).replace(str(number), f"{number:,}", 1)


def _summary(facts: RunFacts) -> list[str]:
    card, state, config = facts.card, facts.state, facts.card.config
    objects = int(facts.counts["train"].per_class.sum()) if "train" in facts.counts else 0
    start = f"fine-tuned from {card.base_model}" if card.base_model else "trained"
    lines = [
        f"An RF-DETR model for {card.task.title}, {card.parameters / 1e6:.1f} million parameters, input "
        f"{config.resolution} × {config.resolution}, {start} on "
        f"{_many(facts.images.get('train', 0), 'image')} with {_many(objects, 'object')} of "
        f"{_many(config.num_labels or 0, 'class')}."
    ]
    done = f"step {state.global_step:,} of {state.max_steps:,} (epoch {state.epoch or 0:.1f})"
    took = f" and took {time_left(state.seconds)} (h:mm:ss)" if state.seconds is not None else ""
    lines.append(f"The training ended at {done}{took}." if facts.is_over else f"The training is at {done}.")
    if state.skipped_steps:
        lines.append(f"{counted(state.skipped_steps, 'step', 'was')} skipped, since loss or gradient was not finite.")
    best = state.best
    if best.source is not None:
        weights = {"ema": "EMA", "raw": "raw"}[best.source]
        scores, so_far = _scores(facts, "eval"), "" if facts.is_over else " so far"
        shown = [f"{_SCORES[n]} {scores[n]:.3f}" for n in ("map", "map_50") if n in scores]
        if without_raw(competing_names(best.metric)[0]) != "map" or not shown:
            shown.insert(0, f"{best.metric} {best.score:.3f}")
        where = "in" if facts.holds_best else "no longer in"
        lines.append(
            f"The best model{so_far}, {where} best/, has the {weights} weights of step {best.step:,}: "
            f"{' and '.join(shown)} on the validation images."
        )
    test = _scores(facts, "test")
    if "map" in test:
        images = _many(facts.images["test"], "image") if "test" in facts.images else "images"
        lines.append(f"On the {images} of the test split its AP is {test['map']:.3f}.")
    return lines


def _scores(facts: RunFacts, prefix: str) -> dict[str, float]:
    """COCO's scores of the best model: on the validation images ("eval", "eval_<name>") or on the test images."""
    best, found = facts.state.best, {}
    for row in facts.card.log_history:
        if f"{prefix}_runtime" not in row:
            continue
        if prefix == "test" or row["step"] == best.step:
            beside = facts.card.training_arguments.get("use_ema", True) and best.source == "raw"
            start = f"{prefix}_raw_" if prefix != "test" and beside else f"{prefix}_"
            found |= {n.removeprefix(start): v for n, v in row.items() if n.startswith(start) and v >= 0}
    return found


def _scores_table(facts: RunFacts) -> list[list[str]]:
    sets = {name.removeprefix("eval_"): name for name in facts.images if name.startswith("eval_")}
    prefixes = (sets or {"validation": "eval"}) | {"test": "test"}
    columns = {name: _scores(facts, prefix) for name, prefix in prefixes.items()}
    columns = {name: scores for name, scores in columns.items() if scores}
    starts = {"bbox": "", "segm": "segm_", "keypoints": "keypoint_"}
    rows = [
        [f"{title} ({iou_type})" if iou_type != "bbox" else title,
         *(f"{scores[start + name]:.3f}" if start + name in scores else "-" for scores in columns.values())]
        for iou_type in facts.card.task.iou_types
        for start in (starts[iou_type],)
        for name, title in _SCORES.items()
        if any(start + name in scores for scores in columns.values())
    ]  # fmt: skip
    return [["best model", *columns], *rows] if rows else []


def _data_table(facts: RunFacts) -> str:
    if not facts.counts:
        return ""
    head = ["class", *(f"{name} ({_many(facts.images[name], 'image')})" for name in facts.counts)]
    names = next(iter(facts.counts.values())).names
    rows = [[name, *(f"{c.per_class[k]:,}" for c in facts.counts.values())] for k, name in enumerate(names)]
    return table([head, *rows], "wide")


def _picture(facts: RunFacts, name: str, caption: str, kind: str = "") -> str:
    path = facts.root / name
    return picture(path, f"{caption} ({name})", kind) if facts.plots and path.is_file() else ""


def _usage(facts: RunFacts) -> list[str]:
    folder = facts.root.resolve() / ("best" if facts.holds_best else "last")
    python = (
        "from PIL import Image\nfrom rfdetr_hf import load_detector\n\n"
        f"detect = load_detector({str(folder)!r}, threshold=0.5)\n"
        "found = detect([Image.open('image.jpg')])[0]  # scores, labels, boxes in pixels"
    )
    record = shlex.quote(str(facts.root.resolve() / "args.yaml"))
    shell = (
        f"rfdetr-hf predict {shlex.quote(str(folder))} image.jpg\n"
        f"rfdetr-hf fit --config {record} --output_dir OTHER   # repeats the training"
    )
    return [f"<pre>{text(python)}</pre>", f"<pre>{text(shell)}</pre>"]
