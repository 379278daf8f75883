"""The truth of a data set as pycocotools wants it, and as flat arrays."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from pycocotools.coco import COCO

from ..data import schema
from ..values import as_integer, is_number, shown
from .detection_table import first_few

_LARGEST_AREA = 1e10  # of COCO's area range "all"


def coco_ground_truth(dataset: Dataset, class_names: Sequence[str] | None = None) -> COCO:
    """The annotations of a data set as a pycocotools `COCO`; images are not decoded.

    Crowds stay, areas are those of the annotations (width x height where there is none), and a category id is the
    contiguous label. Annotations are numbered from 1, because pycocotools takes a match with id 0 for no match.
    Segmentations and keypoints come along where the data set has them, names and sigmas of keypoints as "keypoints" and
    "sigmas" of the categories, and for images in which not all classes are
    labelled LVIS' fields: `neg_category_ids`, and `not_exhaustive_category_ids`.

    Args:
        dataset: Has the columns of `rfdetr_hf.data.schema`: `image_id`, `width`, `height` and `objects`, of which
            `bbox` and `category` are needed; `area`, `iscrowd`, `segmentation` (polygons or RLE per object),
            `keypoints` (x, y, v triples in a row per object) and `num_keypoints` are optional.
        class_names: Names by label; default those of the `ClassLabel` feature of `category`.

    Raises:
        ValueError: A column is missing, an image id is no integer or appears twice, a label has no name, or the
            class names are not known, or no list.
    """
    if isinstance(class_names, (str, Mapping)):
        raise ValueError(f"class_names {shown(class_names)}: give a list of names, one for each label from 0")
    names = list(class_names) if class_names is not None else schema.class_names(dataset)
    images, annotations = [], []
    for row in _annotation_rows(dataset):
        size = {side: row[side] for side in ("width", "height")}
        if not all(is_number(each) and math.isfinite(each) and each == int(each) for each in size.values()):
            raise ValueError(f"Image {row['image_id']}: {size} are no whole numbers of pixels; correct the columns")
        size = {side: int(each) for side, each in size.items()}
        images.append({"id": row["image_id"], **size, **schema.lvis_labels(row)})
        annotations.extend(_annotations(row, len(names)))
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    ids = [image["id"] for image in images]
    if len({type(image_id) for image_id in ids} | {int}) > 1 and not all(isinstance(each, str) for each in ids):
        raise ValueError("Column image_id must hold integers, or texts; give the images numbers, e.g. their row index.")
    if len(set(ids)) < len(ids):
        raise ValueError(f"image_id appears more than once: {first_few(repeated(ids))}.")
    categories: list[dict[str, Any]] = [{"id": label, "name": name} for label, name in enumerate(names)]
    described = schema.schema_of_keypoints(dataset.features["objects"].get("keypoints"))
    for category, points in zip(categories, described.classes if described else (), strict=False):
        category |= {"keypoints": list(points.names), "sigmas": list(points.sigmas)}
    return make_coco(images, annotations, categories)


class Truths(NamedTuple):
    """The annotations of some images as arrays, sorted by annotation id.

    Attributes:
        id: (m,) annotation ids.
        image: (m,) positions of the images.
        category: (m,) positions of the categories among the sorted category ids.
        box: (m, 4) float64 x, y, width, height.
        ignored: (m,) bool; crowds and, for keypoints, objects without any: neither to be found nor missed.
    """

    id: np.ndarray
    image: np.ndarray
    category: np.ndarray
    box: np.ndarray
    ignored: np.ndarray


def truth_arrays(coco: COCO, image_ids: np.ndarray, evaluated: np.ndarray, iou_type: str) -> Truths:
    """The annotations of the evaluated images.

    Args:
        coco: the ground truth.
        image_ids: sorted ids of all its images.
        evaluated: (len(image_ids),) bool.
        iou_type: "bbox", "segm" or "keypoints".
    """
    position = {image_id: i for i, image_id in enumerate(image_ids.tolist()) if evaluated[i]}
    category = {category_id: k for k, category_id in enumerate(sorted(coco.cats))}
    kept = [coco.anns[i] for i in sorted(coco.anns)]
    kept = [a for a in kept if a["image_id"] in position and a["category_id"] in category]
    ignored = [
        bool(a.get("iscrowd", 0))
        or (iou_type == "keypoints" and a.get("num_keypoints", 0) == 0)
        or not 0 <= a["area"] <= _LARGEST_AREA
        for a in kept
    ]
    return Truths(
        np.array([annotation["id"] for annotation in kept], dtype=np.int64),
        np.array([position[annotation["image_id"]] for annotation in kept], dtype=np.int32),
        np.array([category[annotation["category_id"]] for annotation in kept], dtype=np.int32),
        np.array([annotation["bbox"] for annotation in kept], dtype=np.float64).reshape(-1, 4),
        np.array(ignored, dtype=bool),
    )


def id_array(ids: Iterable[int | str]) -> np.ndarray:
    """The ids sorted, exact whatever they are: int64, or objects where they are texts or larger.

    Raises:
        ValueError: some are texts and some are numbers.
    """
    listed = list(ids)
    if len({isinstance(each, str) for each in listed}) > 1:
        raise ValueError(f"image ids must be all integers or all texts; see {first_few(map(str, listed), 4)}.")
    fits = all(not isinstance(each, str) and -(2**63) <= each < 2**63 for each in listed)
    return np.array(sorted(listed), dtype=np.int64 if fits else object)  # type: ignore[type-var]


def renumbered(coco: COCO, image_ids: np.ndarray) -> COCO:
    """The same truth with the positions of the images among `image_ids` for ids."""
    content: Any = coco.dataset
    position = {image_id: i for i, image_id in enumerate(image_ids.tolist())}
    images = [{**image, "id": position[image["id"]]} for image in content["images"]]
    annotations = [
        {**each, "image_id": position[each["image_id"]]}
        for each in content["annotations"]
        if each["image_id"] in position
    ]
    return make_coco(images, annotations, content["categories"])


def make_coco(images: Sequence[Any], annotations: Sequence[Any], categories: Sequence[Any]) -> COCO:
    """An indexed `COCO` of these records."""
    with silenced():
        coco: Any = COCO()
        coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        coco.createIndex()
    return coco


def silenced() -> contextlib.AbstractContextManager:
    """pycocotools prints its progress; nobody asked."""
    return contextlib.redirect_stdout(io.StringIO())


def repeated(ids: Sequence[Any]) -> list[Any]:
    """The ids that occur more than once."""
    return [image_id for image_id, count in Counter(ids).items() if count > 1]


class Unlabelled(NamedTuple):
    """What evaluation leaves out because images do not label all classes.

    Attributes:
        truth: with a crowd over the complete image for each class of which not all objects are marked in it.
        kept: (n,) bool, the detections that are looked at: of classes that are labelled, or marked, in their image.
        crowds: the first annotation id of such a crowd; those of objects are below.
    """

    truth: COCO
    kept: np.ndarray
    crowds: int


def leave_out_unlabelled(coco: COCO, image: np.ndarray, category: np.ndarray, image_ids: np.ndarray) -> Unlabelled:
    """Prepare the rule of LVIS (A. Gupta, P. Dollár, R. Girshick, LVIS, CVPR 2019, section 3) for COCO's evaluation.

    A detection of a class that is neither in the image nor in its `neg_category_ids` is not looked at. One of a class
    in `not_exhaustive_category_ids` that matches no object counts neither as right nor as wrong: it matches a crowd
    that covers the complete image. Images without these fields are labelled completely.

    Args:
        coco: the ground truth.
        image: (n,) positions of the detections' images among `image_ids`.
        category: (n,) category ids of the detections.
        image_ids: sorted ids of the images.
    """
    content: Any = coco.dataset
    fields = ("neg_category_ids", "not_exhaustive_category_ids")
    partly = {each["id"]: each for each in content["images"] if any(each.get(field) is not None for field in fields)}
    first = max(coco.anns, default=0) + 1
    if not partly:
        return Unlabelled(coco, np.ones(len(image), bool), first)
    present: dict[Any, set[int]] = {image_id: set() for image_id in partly}
    for annotation in content["annotations"]:
        if annotation["image_id"] in present:
            present[annotation["image_id"]].add(annotation["category_id"])
    complete = np.array([image_id not in partly for image_id in image_ids.tolist()], dtype=bool)
    numbers = {category_id: k for k, category_id in enumerate(sorted(coco.cats))}
    looked_at, crowds = [], []
    for position in np.flatnonzero(~complete).tolist():
        own = partly[image_ids[position]]
        classes = {*(own.get(fields[0]) or ()), *present[own["id"]]}
        looked_at += [position * len(numbers) + numbers[each] for each in classes if each in numbers]
        for each in own.get(fields[1]) or ():
            crowds.append(_crowd_over(own, each, first + len(crowds), content["annotations"][:1]))
    codes = image.astype(np.int64) * len(numbers) + np.array([numbers[c] for c in category.tolist()], np.int64)
    kept = complete[image] | np.isin(codes, looked_at)
    annotations = [*content["annotations"], *crowds]
    return Unlabelled(make_coco(content["images"], annotations, content["categories"]), kept, first)


def _crowd_over(image: Mapping[str, Any], category: int, number: int, like: Sequence[Mapping[str, Any]]) -> dict:
    """A crowd that any detection in an image lies in, with the fields of another annotation."""
    width, height = image["width"], image["height"]
    crowd: dict[str, Any] = {
        "id": number, "image_id": image["id"], "category_id": category, "iscrowd": 1, "area": width * height,
        # Boxes may reach out of their image.
        "bbox": [-width, -height, 3 * width, 3 * height],
        "segmentation": {"size": [height, width], "counts": [0, width * height]},
    }  # fmt: skip
    if like and "keypoints" in like[0]:
        # Of an object without keypoints COCO compares the box.
        crowd |= {"keypoints": [0] * len(like[0]["keypoints"]), "num_keypoints": 0}
    return crowd


def _annotation_rows(dataset: Dataset) -> Iterator[Any]:
    columns = ["image_id", "width", "height", "objects"]
    missing = sorted(set(columns) - set(dataset.column_names))
    if missing:
        raise ValueError(f"The data set has no column {', '.join(missing)}; load it with load_detection_dataset.")
    columns += [name for name in ("labelled_classes",) if name in dataset.column_names]
    # Without a format there is no user transform either, which might need the image.
    yield from dataset.select_columns(columns).with_format(None)


def _annotations(row: Mapping[str, Any], num_classes: int) -> Iterator[dict[str, Any]]:
    objects = row["objects"]
    count = len(objects["bbox"])
    optional = {name: objects.get(name) or [None] * count for name in ("area", "iscrowd", "segmentation", "keypoints")}
    for i, (box, label) in enumerate(zip(objects["bbox"], objects["category"], strict=True)):
        if as_integer(label) is None or not 0 <= label < num_classes:
            raise ValueError(f"Image {row['image_id']}: category {shown(label)} is none of the {num_classes} classes.")
        area, crowd, segmentation, points = (optional[name][i] for name in optional)
        numbers = [*(box or ()), *([] if area is None else [area])]
        if len(box or ()) != 4 or not all(is_number(each) and math.isfinite(each) for each in numbers):
            raise ValueError(
                f"Image {row['image_id']}: objects.bbox {shown(box)} with objects.area {shown(area)} must be x, y, "
                "width, height and an area in pixels, finite numbers; correct the object, or delete it"
            )
        annotation = {
            "image_id": row["image_id"],
            "category_id": label,
            "bbox": [float(value) for value in box],
            "area": float(box[2] * box[3] if area is None else area),
            "iscrowd": int(bool(crowd)),
        }
        if segmentation:
            annotation["segmentation"] = schema.coco_segmentation(segmentation, int(row["height"]), int(row["width"]))
        if points is not None:
            annotation |= {"keypoints": [float(p) for p in points], "num_keypoints": sum(v > 0 for v in points[2::3])}
        yield annotation
