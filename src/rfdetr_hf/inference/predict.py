"""Detect objects on images and write what was found: pictures, JSON, COCO, YOLO, crops."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from operator import length_hint
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm.auto import tqdm

from ..arguments.predict import PredictArguments
from ..choices import counted
from ..data.pipeline.pixels import set_max_image_pixels
from ..decoding import PILLOW
from ..drawing import DrawingStyle, draw_detections
from ..evaluation.run import Detector, Found
from ..models.thresholds import class_thresholds
from ..options import message_text
from .detector import above, load_detector, naming
from .images import NamedImage, find_images
from .results import ResultFiles, as_records, keypoints_of_classes, writing
from .views import with_views


class Predicted(NamedTuple):
    """What `predict` did.

    Attributes:
        images: number of images that were looked at.
        skipped: for each image or file that could not be read, or not to its end, or on which the model failed, its
            name and the reason.
    """

    images: int
    skipped: list[str]


def predict(
    args: PredictArguments, images: Iterable[NamedImage] | None = None, say: Callable[[str], None] = tqdm.write
) -> Predicted:
    """Detect on all images and write what `args.formats` names into `args.output_dir`, as it is found.

    A file that cannot be read, or on which the model fails, is left out; `args.strict` makes it an error. So it does of
    one with several pages or frames, of which else the first is taken, with a warning.

    Args:
        args: what to do.
        images: default: what `args.images` names.
        say: takes a line for each image, for each file that is left out, and for each file that is written. In a
            terminal a progress bar stands in place of the lines of the images.

    Raises:
        ValueError: no images are named, none can be used, one cannot be used (`strict`), the model fails on a plain
            image too, a threshold is for an unknown class, or views are asked for of a model that gives more than
            boxes.
        FileNotFoundError: an image or the model is not there.
        FileExistsError: an output folder that was named has files and `overwrite` is not set, or a picture would
            replace its source.
    """
    if images is None and not args.images:
        raise ValueError("--images is missing: name image files, video files or folders")
    output, skipped = _output_folder(args, say), list[str]()

    def tell(text: str) -> None:
        say(message_text(text))

    def skip(message: str) -> None:
        skipped.append(message)
        tell(f"skipped {message}")

    def find(value_range: Sequence[float] | None = None, decoder: str = PILLOW) -> Iterator[NamedImage]:
        if images is not None:
            return iter(images)
        dropped, warn = (None, None) if args.strict else (skip, tell)
        return find_images(args.images, args.every, dropped, value_range, args.split, decoder, warn)

    if args.max_image_pixels is not None:
        set_max_image_pixels(args.max_image_pixels)
    items = find()  # names a missing file before the model is read
    plain = load_detector(args.model_name_or_path, args.device, bf16=args.bf16)
    if images is None and (plain.value_range or plain.image_decoder != PILLOW):
        items = find(plain.value_range, plain.image_decoder)
    config: Any = plain.model.config
    if args.task not in (None, plain.model.task):
        raise ValueError(f"--task {args.task}: {args.model_name_or_path} holds a model for {plain.model.task}")
    detect = with_views(plain, args, args.batch_size)
    by_class: Any = args.thresholds or {}
    thresholds = class_thresholds(by_class, config, args.threshold)
    if detect is plain:  # Boxes of several views are fused before they are cut.
        plain.thresholds = thresholds
    with naming(f"{args.model_name_or_path}, config.json", args.model_name_or_path):
        style = DrawingStyle(config.keypoint_schema, args.keypoint_threshold, args.ellipses)
        keypoints = keypoints_of_classes(config)
    output.mkdir(parents=True, exist_ok=True)
    files = ResultFiles(output, args.formats, config.id2label, keypoints, args.keypoint_threshold)
    # Where somebody looks on, a bar stands in place of a line for each image.
    piped, total = not (sys.stdout.isatty() and sys.stderr.isatty()), length_hint(items) or None
    objects, first, names = 0, list[Image.Image](), config.id2label
    with files, tqdm(total=total, unit=" images", dynamic_ncols=True, disable=piped) as bar:
        while batch := list(islice(items, args.batch_size)):
            for item, found in _detect(detect, batch, args.model_name_or_path, None if args.strict else skip):
                found, where = above(found, thresholds), f"{item.source}"
                records = as_records(found, names, -1.0)
                files.add(item, found, records)
                objects += len(records)
                first += [item.image] if len(first) < args.batch_size else []
                if "pictures" in args.formats:
                    where = _draw(item, output, draw_detections(item.image, found, names, -1.0, style), files.count)
                bar.update()
                if piped:
                    tell(f"{where}: {counted(len(records), 'object')}")
    _sum_up(files, skipped, tell)
    if not objects and files.count:
        plain.thresholds = [-1.0] * len(thresholds)
        tell(_why_nothing(detect(first), names, args))
    return Predicted(files.count, skipped)


def _sum_up(files: ResultFiles, skipped: Sequence[str], tell: Callable[[str], None]) -> None:
    """Say what is written and what was left out.

    Raises:
        ValueError: all was.
    """
    for path in files.paths:
        tell(f"{path}: {counted(files.count, 'image')}")
    if skipped and not files.count:
        raise ValueError(
            f"none of the images can be used; {counted(len(skipped), 'file', 'was')} skipped, the first is {skipped[0]}"
        )
    if skipped:
        tell(f"skipped or not complete: {counted(len(skipped), 'file')}; see above")


def _why_nothing(found: Sequence[Found], names: Mapping[int, str], args: PredictArguments) -> str:
    """What to say where no score is above its threshold; `found`: all detections of some images."""
    scores = [
        (float(score), int(label))
        for each in found
        for score, label in zip(each["scores"], each["labels"], strict=True)
    ]
    if not scores:
        return "nothing is found: the model gives no detection"
    score, label = max(scores)
    option = "--threshold" if args.thresholds is None else "--threshold or --thresholds"
    where = f" on the first {counted(len(found), 'image')}" if len(found) > 1 else ""
    return (
        f"no object is above its threshold: the highest score{where} is {score:.3g} ({names[label]}); "
        f"a lower {option} shows more"
    )


def _output_folder(args: PredictArguments, say: Callable[[str], None]) -> Path:
    """The folder that is named; where none is named, the first of predictions, predictions-2, … without files."""
    output = Path(args.output_dir)
    if args.overwrite or not output.is_dir() or not any(output.iterdir()):
        return output
    if args.output_dir != PredictArguments.output_dir:
        raise FileExistsError(f"--output_dir {output} has files: choose another, or replace them with --overwrite true")
    others = (Path(f"{output}-{n}") for n in count(2))
    free = next(each for each in others if not (any(each.iterdir()) if each.is_dir() else os.path.lexists(each)))
    say(f"{output} has files: what is found goes to {free}")
    return free


def _detect(
    detect: Detector, batch: Sequence[NamedImage], model: str, skip: Callable[[str], None] | None
) -> Iterator[tuple[NamedImage, Found]]:
    """The images of a batch with their detections; after a failure one by one, without those that fail alone.

    Raises:
        ValueError: an image fails and `skip` is None, or a plain image fails too, so that it is the model that does.
    """
    message = ""
    try:
        where = ", ".join([f"{batch[0].source}", *(f"{name} {number}" for name, number in batch[0].place.items())])
        with naming(f"{model} fails on {where}", model):
            found = detect([item.image for item in batch])
    except ImportError:
        raise
    except Exception as error:  # whatever a model raises; with the traceback goes the memory that it holds
        if len(batch) == 1 and skip is None:
            raise
        message = str(error)
    if not message:
        yield from zip(batch, found, strict=True)
    elif len(batch) > 1:
        for item in batch:
            yield from _detect(detect, [item], model, skip)
    elif skip is not None:
        with naming(f"{message}; on a plain image too", message):
            detect([Image.new("RGB", (64, 64))])
        skip(message)


def _draw(item: NamedImage, output: Path, picture: Any, count: int) -> str:
    where = output / f"{item.name}.png"
    if where.is_symlink() or os.path.realpath(where) == os.path.realpath(item.source):
        raise FileExistsError(f"--output_dir {output}: the picture would replace its source {os.path.realpath(where)}")
    with writing(where, count - 1):
        where.parent.mkdir(parents=True, exist_ok=True)
        picture.save(where)
    return str(where)
