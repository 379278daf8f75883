"""The pictures of a run and its report, beside which a failure to draw them is a line of the log."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from PIL import Image

from ..arguments.metric_names import competing_names
from ..data.audit import ObjectCounts, count_objects
from ..data.schema import class_names
from ..drawing import draw_batch, mosaic
from ..evaluation.evaluator import CocoEvaluator
from ..evaluation.plots import draw_labels_and_detections, save_labels, save_plots
from ..evaluation.report import evaluation_part, folder_of
from ..hub.curves import save_curves
from ..hub.model_card import CardFacts
from .checkpoint.lock import LockLost
from .checkpoint.run_directory import OF_THE_BEST, RunDirectory
from .checkpoint.weights import MODEL, checksum_of_model
from .record import SPLITS
from .report import RunFacts, evaluation_of, run_page
from .state import RunState

logger = logging.getLogger(__name__)

_BATCH_IMAGES, _BATCH_COLUMNS = 16, 4
_WORST_IMAGES = 8


class Scored(NamedTuple):
    """One pass over an evaluation set.

    Attributes:
        folder: eval/<step>/<weights>.
        evaluator: with all detections, after `gather`.
        dataset: that was evaluated.
    """

    folder: Path
    evaluator: CocoEvaluator
    dataset: Dataset


class RunPictures:
    """Draws into the folder of a run. No random number is drawn, so the training has the same bits without it.

    Args:
        directory: of the run.
        is_main: whether this process draws.
        plots: whether there are pictures; without them the report has tables and sentences.
    """

    def __init__(self, directory: RunDirectory, is_main: bool, plots: bool = True) -> None:
        self.root, self._lock = directory.root, directory.lock
        self.is_main, self.plots = is_main, plots
        self.images: dict[str, int] = {}
        self.counts: dict[str, ObjectCounts] = {}
        self._samples: list[Image.Image] = []  # of the first training batches

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """Where to write a file that then takes the place of an earlier one; a failure costs this file alone."""
        path = self.root / name
        temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
        self._lock.check(before_writing=True)
        try:
            yield temporary
            if temporary.exists():
                self._lock.check(before_writing=True)
                os.replace(temporary, path)
        except LockLost:
            temporary.unlink(missing_ok=True)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the training
            logger.warning("%s is not written: %s: %s", path, type(error).__name__, error)
            temporary.unlink(missing_ok=True)

    def labels(self, splits: Mapping[str, Dataset]) -> None:
        """Draw labels.jpg, of the training split, and count the objects of all splits for the report."""
        if not self.is_main:
            return
        with self._replacing("labels.jpg") as path:
            for split, dataset in splits.items():
                name = SPLITS.get(split, split.removesuffix("_dataset"))
                self.images[name], self.counts[name] = len(dataset), count_objects(dataset)
            if self.plots and len(self.counts["train"].centres):  # an index has no places of objects
                save_labels(self.counts["train"], path)

    def batch(self, step: int, window: Sequence[Mapping[str, Any]], dataset: Dataset, scale: float | None) -> None:
        """Draw train_batch.jpg: the images of the first steps, all augmentation applied, at the scale of their step.

        Args:
            step: steps that are done; from a later one on there is nothing to draw.
            window: the micro-batches of this one.
            dataset: of the training.
            scale: share of the sides that the step resizes to, None for all.
        """
        self._samples = self._samples if step else []
        first = len(self._samples)
        if not (self.is_main and self.plots and window) or step and not 0 < first < _BATCH_IMAGES:
            return
        with self._replacing("train_batch.jpg") as path:
            self._samples += draw_window(window, dataset, scale, _BATCH_IMAGES - len(self._samples))
            grid(self._samples).save(path, quality=88)

    def evaluated(self, scored: Sequence[Scored], improved: bool, card: CardFacts, state: RunState) -> None:
        """Draw what an evaluation found; where `best/` is new, show how good it is at the top of the run.

        Args:
            scored: the passes of the evaluation.
            improved: whether one of them chose the weights that `best/` holds now.
            card: what is known of the run.
            state: of the run.
        """
        if not self.is_main:
            return
        shown = _of_the_best(scored, state) if improved or state.best.source is None else None
        for each in scored if self.plots else ():
            if each is shown:
                continue
            with self._replacing(str(each.folder.relative_to(self.root) / "curves")):
                for iou_type, analysis in each.evaluator.analyses.items():
                    save_plots(analysis, folder_of(each.folder, iou_type, each.evaluator.analyses))
        self.course(card)
        if shown is None:
            return
        part: list[str] = []
        with self._replacing(str(shown.folder.relative_to(self.root) / "pictures")):
            dataset = shown.dataset if self.plots else None
            part = evaluation_part(shown.evaluator, shown.folder, dataset, _WORST_IMAGES, self.plots)
        if self.plots and len(shown.dataset):
            with self._replacing("val_labels.jpg") as labels, self._replacing("val_pred.jpg") as found:
                analysis = list(shown.evaluator.analyses.values())[-1]  # masks or keypoints, where there are any
                pictures = draw_labels_and_detections(analysis, shown.dataset)
                for picture, path in zip(pictures, (labels, found), strict=True):
                    picture.save(path, quality=88)
            for name in OF_THE_BEST:
                if name.endswith(".png") and (shown.folder / name).is_file():
                    with self._replacing(name) as path:
                        shutil.copyfile(shown.folder / name, path)
        self.report(card, state, part or ["<p>What this evaluation found could not be drawn; see train.log.</p>"])

    def course(self, card: CardFacts) -> None:
        """Draw results.png: losses, AP and learning rate."""
        if self.is_main and self.plots:
            with self._replacing("results.png") as path:
                save_curves(card.log_history, path)

    def report(
        self, card: CardFacts, state: RunState, evaluation: Sequence[str] | None = None, is_over: bool = False
    ) -> None:
        """Write report.html.

        Args:
            card: what is known of the run.
            state: of the run.
            evaluation: what it says of the best model; default: as it stands there.
            is_over: whether the training is.
        """
        if not self.is_main:
            return
        with self._replacing("report.html") as path:
            kept = evaluation_of(self.root / "report.html") if evaluation is None else list(evaluation)
            # The checksum of a large model takes a while: once, at the end, or where the file may be another's.
            there = checksum_of_model(self.root / "best") if is_over else state.best_weights
            holds_best = there is not None and there == state.best_weights and (self.root / "best" / MODEL).is_file()
            facts = RunFacts(card, state, self.images, self.counts, self.root, is_over, self.plots, holds_best)
            path.write_text(run_page(facts, kept), encoding="utf-8")


def draw_window(
    window: Sequence[Mapping[str, Any]], dataset: Dataset, scale: float | None, room: int
) -> list[Image.Image]:
    """The first `room` images of micro-batches with their objects, at a share `scale` of their sides."""
    drawn: list[Image.Image] = []
    for batch in window:
        left = room - len(drawn)
        if left > 0:
            pixels, targets = batch["pixel_values"][:left].cpu(), batch["labels"].to("cpu").unpack()[:left]
            drawn += draw_batch(pixels, targets, class_names(dataset), scale or 1.0)
    return drawn


def grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows of four."""
    return mosaic(pictures, min(_BATCH_COLUMNS, len(pictures)))


def _of_the_best(scored: Sequence[Scored], state: RunState) -> Scored | None:
    """The pass that chose the best weights; the last one where none did yet."""
    source, names = state.best.source, competing_names(state.best.metric)
    passes = [each for each in scored if source is None or each.folder.name == source]
    splits = [each.folder.parents[1].name.removeprefix("eval").lstrip("_") for each in passes]  # of eval_<split>/<step>
    named = [(len(split), each) for split, each in zip(splits, passes, strict=True) if names[0].startswith(f"{split}_")]
    if any(length for length, _ in named):
        return max(named, key=lambda pair: pair[0])[1]
    return passes[-1] if source is None and passes else next(iter(passes), None)
