"""The one door to data: `load_detection_dataset`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, NamedSplit

from ..tasks import TaskName
from .annotations import BoxFormat, MissingMasks, ReadOptions
from .errors import DetectionDataError
from .formats import coco, hub, shapes, yolo
from .keypoints import KeypointSchema
from .splits import SPLIT_NAMES, choose_splits

# Asked in this order; the last one takes everything.
FORMATS = (shapes, coco, yolo, hub)


def load_detection_dataset(
    name_or_path: str | os.PathLike[str] | Dataset | DatasetDict,
    *,
    task: TaskName = "detection",
    name: str | None = None,
    revision: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    image_dir: str | Mapping[str, str] | None = None,
    label_dir: str | None = None,
    train_split: str | None = None,
    validation_split: str | float | None = None,
    test_split: str | None = None,
    split_seed: int = 0,
    class_names: Sequence[str] | None = None,
    bbox_format: BoxFormat = "xywh",
    missing_masks: MissingMasks = "error",
    keypoint_schema: KeypointSchema | Mapping[str, Any] | None = None,
    **load_options: Any,
) -> DatasetDict:
    """Load a detection data set from anywhere: rows of an image and its `objects`, named as on the Hub.

    Labels are contiguous, 0-based, and the same on all splits: the categories of the training split, by ascending id.
    Boxes that reach out of their image are clamped, and those of which nothing is left are dropped; both are counted in
    the log. Crowds and images without objects stay. Images are referenced, not copied.

    Args:
        name_or_path: one of

            * a Hub id, a builder of `datasets` such as "imagefolder", or a local folder that `datasets.load_dataset`
              or `datasets.load_from_disk` reads, with ``objects`` as in CPPE-5; or such a data set in memory;
            * a Roboflow COCO export: folders train, valid, test, each with ``_annotations.coco.json``;
            * a folder in COCO's own layout, ``annotations/*.json`` and image folders, or one COCO file;
            * a YOLO data set, as a data.yaml or a folder with one: rows of boxes, polygons or boxes with keypoints, in
              the layouts of Ultralytics and of Roboflow's exports;
            * "synthetic-shapes", which is generated (options: see `make_shapes_splits`).
        task: "segmentation" brings masks (``objects.segmentation``), "keypoints" keypoints (``objects.keypoints`` and
            `keypoint_schema`); "detection" leaves both out.
        name: configuration of a Hub data set.
        revision: git revision of a Hub data set.
        data_files: as for `datasets.load_dataset`; for a COCO layout {split: annotation file}.
        image_dir: the image folder of a COCO layout where it is not found by itself, for all splits or {split: folder}.
        label_dir: what the folders of YOLO rows are called, "labels" by default: it stands in the place of the last
            folder "images" of an image's path.
        train_split: what the source calls its training split, if not something like "train" or "train2017".
        validation_split: likewise; or a share between 0 and 1 of the training images to hold out, always the same ones
            for a `split_seed`. None takes the one that the source has, if any.
        test_split: like `train_split`.
        split_seed: seed of the held-out share.
        class_names: the label table to use instead of the training split's, for instance a model's; with it the
            training split may be missing. Gives names to categories that are plain integers 0, 1, 2….
        bbox_format: how the boxes of a `datasets` source are written, "xywh" or "xyxy", in pixels.
        missing_masks: with task "segmentation", what an object without a mask is: an "error", or its "box" is its mask.
        keypoint_schema: with task "keypoints", their names, skeletons, mirror pairs and sigmas for each label, where
            the source does not name them or others are better; or such a schema as a dict.
        load_options: further options of `datasets.load_dataset` or `make_shapes_splits`.

    Returns:
        The splits train, validation and test, as far as there are any.

    Raises:
        DetectionDataError: the source is not found or not understood, a split is missing, or annotations are broken;
            up to ten faults with file, annotation id, field and remedy.
        TypeError: an option that this kind of source does not have.
    """
    if isinstance(keypoint_schema, Mapping):
        keypoint_schema = KeypointSchema.from_dict(keypoint_schema)
    load = {"name": name, "revision": revision, "data_files": data_files, **load_options}
    load = {key: value for key, value in load.items() if value is not None}
    options = ReadOptions(
        task, missing_masks, keypoint_schema, class_names, bbox_format, image_dir, label_dir, load
    )  # fmt: skip
    root = name_or_path
    if not isinstance(root, (Dataset, DatasetDict)):
        root = os.path.expanduser(os.fspath(root))
    found, reader = next((found, each) for each in FORMATS if (found := each.find(root, options)) is not None)
    share = None if isinstance(validation_split, str) else validation_split
    named = (train_split, validation_split if isinstance(validation_split, str) else None, test_split)
    chosen = choose_splits(list(found.splits), found.source, *named, need_train=class_names is None)
    if share is not None:
        chosen.pop("validation", None)
    if not chosen:
        raise DetectionDataError(
            f"{found.source}: no split for training, validation or test among {list(found.splits)}"
        )
    splits = reader.read(found, {ours: found.splits[theirs] for ours, theirs in chosen.items()}, options)
    splits = splits if share is None else hold_out(splits, share, split_seed)
    return DatasetDict({name: splits[name] for name in SPLIT_NAMES if name in splits})


def hold_out(splits: Mapping[str, Dataset], share: float, seed: int) -> dict[str, Dataset]:
    """Move a share of the training images to a validation split; the same images for a seed, order kept.

    Raises:
        ValueError: the share is not between 0 and 1, or leaves one of the two without images.
        DetectionDataError: there is no training split.
    """
    if "train" not in splits:
        raise DetectionDataError(f"validation_split={share} holds out training images, but there is no training split")
    total = len(splits["train"])
    count = round(total * share)
    if not 0 < share < 1 or not 0 < count < total:
        raise ValueError(
            f"validation_split={share} of {total} training images: give a share between 0 and 1 that leaves both"
        )
    order = np.random.default_rng(seed).permutation(total)
    parts = {"train": np.sort(order[count:]), "validation": np.sort(order[:count])}
    held = {name: splits["train"].select(rows) for name, rows in parts.items()}
    for name, part in held.items():
        part.info.splits, part._split = None, NamedSplit(name)
    return {**splits, **held}
