"""Experiment trackers, through the tracker classes of Accelerate."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..arguments.training import RFDETRTrainingArguments
from ..choices import install_hint
from ..data.pipeline.pixels import decode_image
from ..data.schema import has_keypoints, keypoint_schema
from ..drawing import DrawingStyle, draw_detections

Numbers = Mapping[str, float]

IN_EXTRA = ("tensorboard", "wandb", "mlflow", "trackio")
_RUN_NAME = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
_ONE_PICTURE = ("aim", "clearml")
_SCORE = 0.3
_SIDE = 480


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that Accelerate does not know, or that are not installed.

    Raises:
        ValueError: an unknown name.
        ImportError: a tracker whose package is missing; the message says how to install it.
    """
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}, or none"
            raise ValueError(f"report_to: unknown tracker {name!r}; {hint}")
        if name not in installed:
            remedy = install_hint("trackers") if name in IN_EXTRA else f"pip install {name}"
            raise ImportError(f"report_to={name} needs a package that is missing: {remedy}")


class TrackerCallback(TrainerCallback):
    """Sends what a run logs to trackers: hyper-parameters once, numbers as they come, pictures at each evaluation.

    Pictures show what the evaluated weights (the EMA weights, where both are evaluated) find on the first images of
    the evaluation split. They go to the trackers that take pictures (TensorBoard, Weights & Biases and others).

    Args:
        trackers: names that Accelerate knows, or `GeneralTracker` objects of your own.
    """

    def __init__(self, trackers: Sequence[str | GeneralTracker]) -> None:
        check_trackers([t for t in trackers if isinstance(t, str)])
        self.names = list(trackers)
        self.trackers: list[GeneralTracker] = []
        self._found: dict[int, Mapping[str, Any]] = {}
        self._data: Any = None

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        config = {name: v for name, v in model.config.to_dict().items() if name not in ("id2label", "label2id")}
        values = flatten({**args.to_dict(), "model": config})
        self.trackers = [_started(each, args, state.global_step) for each in self.names]
        for tracker in self.trackers:
            tracker.store_init_configuration(values)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Numbers | None = None, **kwargs: Any
    ) -> None:
        for tracker in self.trackers:
            tracker.log(_grouped(logs or {}), step=state.global_step)

    def on_prediction_step(
        self,
        args: RFDETRTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        image_ids: Sequence[int] = (),
        detections: Sequence[Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        if not self.trackers:
            return
        self._data = eval_dataloader.dataset.dataset
        for image_id, each in zip(image_ids, detections, strict=True):
            # A second pass over the images, with the EMA weights, replaces what the first has found.
            if image_id in self._found or len(self._found) < args.report_images:
                self._found[image_id] = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in each.items()}

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        takers = [tracker for tracker in self.trackers if hasattr(tracker, "log_images")]
        if takers and self._found:
            pictures = _pictures(self._data, self._found, model.config)
            for tracker in takers:
                _log_pictures(tracker, pictures, state.global_step)
        self._found, self._data = {}, None

    def on_predict(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._found, self._data = {}, None

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let the trackers write what they hold back, and end; of a run that failed, too."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


def _started(tracker: str | GeneralTracker, args: RFDETRTrainingArguments, step: int) -> GeneralTracker:
    if isinstance(tracker, GeneralTracker):
        return tracker
    tracker_class = LOGGER_TYPE_TO_CLASS[tracker]
    run_name = args.run_name or Path(args.output_dir).resolve().name
    options: dict[str, Any] = {_RUN_NAME[tracker]: run_name} if tracker in _RUN_NAME else {}
    # What a killed run has written past the checkpoint that this one goes on from, or before any, is not shown.
    options |= {"purge_step": step + 1 if step else 0} if tracker == "tensorboard" else {}
    options |= cast(dict[str, Any], args.tracker_kwargs or {}).get(tracker, {})
    if tracker_class.requires_logging_directory:
        # The name of a tracker with files is that of their folder.
        started = tracker_class(run_name, str(Path(args.output_dir) / "runs"), **options)
    else:
        started = tracker_class(args.project, **options)
    started.start()
    return started


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested values as one level, "outer/inner" -> value, with nothing but numbers, booleans and strings."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _grouped(logs: Mapping[str, float]) -> dict[str, float]:
    """Names as trackers group them: `train/loss`, `eval/map`, `test/map`."""
    grouped = {}
    for name, value in logs.items():
        split, _, rest = name.partition("_")
        known = rest and split in ("eval", "test", "validation")
        grouped[f"{split}/{rest}" if known else f"train/{name}"] = value
    return grouped


def _log_pictures(tracker: Any, pictures: list[np.ndarray], step: int) -> None:
    name = "eval/predictions"
    if tracker.name == "tensorboard":
        tracker.log_images({name: np.stack(pictures)}, step=step, dataformats="NHWC")
    elif tracker.name in _ONE_PICTURE:
        tracker.log_images({f"{name}/{i}": picture for i, picture in enumerate(pictures)}, step=step)
    else:
        tracker.log_images({name: pictures}, step=step)


def _pictures(data: Any, found: Mapping[int, Mapping[str, Any]], config: Any) -> list[np.ndarray]:
    """One square picture for each image, all of one size."""
    # The trainer leaves the configuration of the model in memory unchanged, so the data may know more.
    schema = keypoint_schema(data).to_dict() if has_keypoints(data) else config.keypoint_schema
    style = DrawingStyle(schema=schema)
    positions = {image_id: i for i, image_id in enumerate(data["image_id"])}
    pictures = []
    for image_id, detections in found.items():
        picture = draw_detections(decode_image(data[positions[image_id]]), detections, config.id2label, _SCORE, style)
        picture.thumbnail((_SIDE, _SIDE))
        canvas = Image.new("RGB", (_SIDE, _SIDE))
        canvas.paste(picture, ((_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2))
        pictures.append(np.asarray(canvas))
    return pictures
