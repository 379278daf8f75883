"""A look at every image and box of a split before the first step, so that a broken file does not end a night's run."""

import logging
import os
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from ..choices import counted, printable
from .errors import DetectionDataError, Problems
from .scan import Scan, scan_pictures
from .schema import (
    category_ids,
    class_names,
    has_keypoints,
    has_masks,
    keypoint_schema,
    labelled_images,
    unchunked,
    value_range,
)
from .shards.counts import Counts
from .shards.dataset import ShardedDataset

logger = logging.getLogger(__name__)
# Its functions are made at import, where type checkers do not see them.
pc: Any = pyarrow.compute

LARGE = 200_000
_EXAMPLES = 3
_NEEDED = ("image", "image_id", "width", "height", "objects")
# COCO's limits of small and medium objects, as areas in pixels.
_SMALL, _MEDIUM = 32**2, 96**2


@dataclass(frozen=True)
class AuditReport:
    """What is in a split. Printed, it is a table.

    Attributes:
        split: its name.
        decoded: whether the pixels were decoded, or only the headers read.
        num_images: images.
        num_empty_images: images without objects.
        num_boxes: boxes, crowds left out.
        num_crowds: boxes of crowds.
        boxes_per_class: name -> boxes, crowds left out.
        images_per_class: name -> images with such a box.
        category_ids: original id of each class.
        small, medium, large: boxes by area, with COCO's limits 32² and 96².
        max_boxes: boxes of the fullest image, crowds left out.
        max_boxes_image_id: that image; None of shards.
        polygon_masks, rle_masks: objects with a mask of each form, crowds included; None without masks.
        keypoint_objects: objects with a labelled keypoint; None without keypoints.
        value_range: of pictures with more than 8 bits, what becomes 0 to 255; None without such.
        labelled_keypoints: class -> keypoint -> how often it is labelled, hidden ones included.
        labelled_images: class -> images in which it is labelled completely; None where all classes are in all images,
            and of shards.
        counted: whether somebody has counted the objects; where not, as in shards without an index, all numbers of them
            are 0.
    """

    split: str
    decoded: bool
    num_images: int
    num_empty_images: int
    num_boxes: int
    num_crowds: int
    boxes_per_class: dict[str, int]
    images_per_class: dict[str, int]
    category_ids: list[int]
    small: int
    medium: int
    large: int
    max_boxes: int
    max_boxes_image_id: int | None
    polygon_masks: int | None = None
    rle_masks: int | None = None
    keypoint_objects: int | None = None
    labelled_keypoints: dict[str, dict[str, int]] | None = None
    value_range: tuple[float, float] | None = None
    labelled_images: dict[str, int] | None = None
    counted: bool = True

    def __str__(self) -> str:
        checked = "decoded" if self.decoded else "headers read"
        if self.num_images and self.max_boxes_image_id is None:
            checked = "not opened, counted by the index"
        images = counted(self.num_images, "image")
        if not self.counted:
            names = ", ".join(map(printable, self.boxes_per_class))
            return f"{self.split}: {images}, not opened; their objects are not counted; classes: {names}"
        width = max([4, *(len(name) for name in self.boxes_per_class)])
        which = "" if self.max_boxes_image_id is None else f" (id {self.max_boxes_image_id})"
        fullest = f", at most {self.max_boxes} in an image{which}" if self.num_boxes else ""
        deep = ""
        if self.value_range is not None:
            deep = f", more than 8 bits: {self.value_range[0]:g} to {self.value_range[1]:g} become 0 to 255"
        lines = [
            f"{self.split}: {images} ({checked}), {self.num_empty_images} without objects{deep}",
            f"{counted(self.num_boxes, 'box')}{fullest}, {counted(self.num_crowds, 'crowd')}; "
            f"{self.small} small, {self.medium} medium, {self.large} large",
            f"{'label':>5}  {'category id':>11}  {'name':<{width}}  {'boxes':>9}  {'images':>9}"
            + (f"  {'labelled in':>11}" if self.labelled_images else ""),
        ]
        for label, (name, boxes) in enumerate(self.boxes_per_class.items()):
            original, images = self.category_ids[label], self.images_per_class[name]
            known = f"  {self.labelled_images[name]:>11}" if self.labelled_images else ""
            lines.append(f"{label:>5}  {original:>11}  {name:<{width}}  {boxes:>9}  {images:>9}{known}")
        if self.polygon_masks is not None:
            lines.append(f"masks: {self.polygon_masks} of polygons, {self.rle_masks} run-length encoded")
        if self.labelled_keypoints is not None:
            lines.append(f"{counted(self.keypoint_objects or 0, 'object')} with keypoints; labelled:")
            for name, counts in self.labelled_keypoints.items():
                lines.append(f"  {name}: " + ", ".join(f"{point} {count}" for point, count in counts.items()))
        return "\n".join(map(printable, lines))


def audit_dataset(
    dataset: Dataset,
    *,
    split: str | None = None,
    decode: bool = True,
    num_threads: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> AuditReport:
    """Check every image of a split against its annotation, and count what there is.

    Files that an earlier audit found sound, and whose size and time of change are the same, are not opened again. Of a
    split of more than 200,000 images so many are looked at, evenly spaced.

    JPEG files are decoded at an eighth of their size in grey: that finds every truncated file in about a third of the
    time of a full decode. Threads help, since Pillow decodes without the interpreter lock.

    Args:
        dataset: a split in the schema of `load_detection_dataset`.
        split: name for messages; the data set's own by default.
        decode: decode the pixels. Without it only headers are read, much faster: that finds missing files and wrong
            sizes, but not truncated files.
        num_threads: images checked at a time; the number of CPUs, at most 16, by default.
        cache_dir: folder of what earlier audits saw; default: in the cache of `datasets`. "" keeps nothing.

    Raises:
        DetectionDataError: images are missing, damaged, truncated, or have another size than their annotation says;
            names up to ten files.
    """
    name = split or str(dataset.split or "data set")
    missing = [column for column in _NEEDED if column not in dataset.column_names]
    if missing:
        raise DetectionDataError(
            f"{name}: columns {missing} are missing; pass the data set through load_detection_dataset"
        )
    if isinstance(dataset, ShardedDataset):  # what is broken in it, its rows say when they are read
        return count_split(dataset, name)
    report = count_split(dataset, name, decode)
    scan = scan_pictures(dataset, decode=decode, sample=LARGE, num_threads=num_threads, cache_dir=cache_dir)
    raise_faults(name, scan)
    if scan.is_sample:
        logger.warning("%s: %d of %d pictures were looked at, evenly spaced", name, len(scan.rows), scan.total)
    if beyond := [os.path.basename(picture.name) for picture in scan.pictures if picture.beyond]:
        low, high = report.value_range or (0, 0)
        logger.warning(
            "%s: %s values beyond %g to %g, which are cut off, such as %s", name,
            counted(len(beyond), "picture", "has"), low, high, ", ".join(sorted(beyond)[:_EXAMPLES]),
        )  # fmt: skip
    return report


def raise_faults(split: str, scan: Scan) -> None:
    """Name the pictures of a split that cannot be used.

    Raises:
        DetectionDataError: there are some.
    """
    problems = Problems(split)
    for picture in scan.pictures:
        if picture.fault:
            problems.add(picture.fault)
    problems.raise_if_any()


class ObjectCounts(NamedTuple):
    """Which objects a split has, crowds left out.

    Attributes:
        names: of the classes.
        per_class: (K,) objects of each class.
        centres: (n, 2) x and y of the box centres as shares of width and height of their image.
        sizes: (n, 2) width and height of the boxes, likewise.
    """

    names: list[str]
    per_class: np.ndarray
    centres: np.ndarray
    sizes: np.ndarray


def count_objects(dataset: Dataset) -> ObjectCounts:
    """Classes, centres and sizes of a split's objects; reads no image."""
    names = class_names(dataset)
    if isinstance(dataset, ShardedDataset):
        per_class = np.zeros(len(names), np.int64) if dataset.counts is None else np.array(dataset.counts.objects)
        return ObjectCounts(names, per_class, np.zeros((0, 2)), np.zeros((0, 2)))
    columns = cast(pa.Table, dataset.select_columns(["width", "height", "objects"]).with_format("arrow")[:])
    objects = unchunked(columns["objects"])
    category, boxes, crowd = (pc.list_flatten(pc.struct_field(objects, f)) for f in ("category", "bbox", "iscrowd"))
    single = ~crowd.to_numpy(zero_copy_only=False).astype(bool)
    category = category.to_numpy(zero_copy_only=False)[single]
    counts = pc.list_value_length(pc.struct_field(objects, "category")).to_numpy(zero_copy_only=False).astype(np.int64)
    frame = np.stack([columns[side].to_numpy() for side in ("width", "height")], axis=1).repeat(counts, axis=0)[single]
    boxes = pc.list_flatten(boxes).to_numpy(zero_copy_only=False).reshape(-1, 4)[single]  # (n, 4) x, y, w, h
    per_class = np.bincount(category.astype(np.int64), minlength=len(names))
    return ObjectCounts(names, per_class, (boxes[:, :2] + boxes[:, 2:] / 2) / frame, boxes[:, 2:] / frame)


def count_split(dataset: Dataset, split: str, decoded: bool = False) -> AuditReport:
    """What the annotations of a split say; no image is opened.

    Args:
        dataset: a split in the schema of `load_detection_dataset`.
        split: its name.
        decoded: what the report says of the images.
    """
    names = class_names(dataset)
    if isinstance(dataset, ShardedDataset):
        return _report_of_counts(dataset, split)
    columns = dataset.select_columns(["image_id", "objects"]).with_format("arrow")[:]
    objects = unchunked(columns["objects"])
    fields = {field: pc.struct_field(objects, field) for field in ("category", "area", "iscrowd")}
    counts = pc.list_value_length(fields["category"]).to_numpy(zero_copy_only=False).astype(np.int64)
    category, area, crowd = (pc.list_flatten(fields[f]).to_numpy(zero_copy_only=False) for f in fields)
    crowd, area = crowd.astype(bool), area.astype(np.float64)
    if np.isnan(area).any():  # null stands for the area of the box
        boxes = pc.struct_field(objects, "bbox")
        sides = pc.list_flatten(pc.list_flatten(boxes)).to_numpy(zero_copy_only=False).reshape(-1, 4)
        area = np.where(np.isnan(area), sides[:, 2] * sides[:, 3], area)
    row = np.repeat(np.arange(len(dataset)), counts)
    seen = np.unique(np.stack([category[~crowd], row[~crowd]]), axis=1)[0]
    masks: dict[str, Any] = {}
    if has_masks(dataset):
        column = pc.list_flatten(pc.struct_field(objects, "segmentation"))
        masks = {
            f"{n[:-1] if n == 'polygons' else n}_masks": len(column) - pc.struct_field(column, n).null_count
            for n in ("polygons", "rle")
        }
    known = labelled_images(dataset)
    single = np.bincount(row[~crowd], minlength=len(counts))
    area, fullest = area[~crowd], int(single.argmax()) if len(counts) else 0
    return AuditReport(
        split=split,
        decoded=decoded,
        num_images=len(dataset),
        num_empty_images=int((counts == 0).sum()),
        num_boxes=int((~crowd).sum()),
        num_crowds=int(crowd.sum()),
        boxes_per_class=dict(zip(names, np.bincount(category[~crowd], minlength=len(names)).tolist(), strict=True)),
        images_per_class=dict(zip(names, np.bincount(seen, minlength=len(names)).tolist(), strict=True)),
        category_ids=category_ids(dataset),
        small=int((area < _SMALL).sum()),
        medium=int(((area >= _SMALL) & (area < _MEDIUM)).sum()),
        large=int((area >= _MEDIUM).sum()),
        max_boxes=int(single.max(initial=0)),
        max_boxes_image_id=columns["image_id"][fullest].as_py() if len(counts) else None,
        value_range=value_range(dataset),
        labelled_images=None if known is None else dict(zip(names, known.tolist(), strict=True)),
        **masks,
        **(_count_keypoints(objects, category, dataset) if has_keypoints(dataset) else {}),
    )


def _report_of_counts(dataset: ShardedDataset, split: str) -> AuditReport:
    """What the index of shards says; zeros where nobody has counted."""
    counts, names = dataset.counts, class_names(dataset)
    if counts is None:
        counts = Counts(images=len(dataset), objects=[0] * len(names), images_with=[0] * len(names))
    masks = {"polygon_masks": counts.polygons, "rle_masks": counts.rle} if has_masks(dataset) else {}
    keypoints: dict[str, Any] = {}
    if has_keypoints(dataset) and counts.labelled:
        pairs = zip(names, keypoint_schema(dataset).classes, counts.labelled, strict=True)
        labelled = {name: dict(zip(each.names, found, strict=False)) for name, each, found in pairs if each.names}
        keypoints = {"keypoint_objects": counts.with_keypoints, "labelled_keypoints": labelled}
    return AuditReport(
        split, False, counts.images, counts.background, counts.boxes, counts.crowds,
        dict(zip(names, counts.objects, strict=True)), dict(zip(names, counts.images_with, strict=True)),
        category_ids(dataset), counts.small, counts.medium, counts.large, counts.max_objects, None,
        **masks, **keypoints, counted=dataset.counts is not None,
    )  # fmt: skip


def _count_keypoints(objects: pa.StructArray, category: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    schema = keypoint_schema(dataset)
    flat = pc.list_flatten(pc.list_flatten(pc.struct_field(objects, "keypoints")))
    labelled = flat.to_numpy(zero_copy_only=False).reshape(len(category), schema.num_keypoints, 3)[..., 2] > 0
    counts = {
        name: dict(zip(each.names, labelled[category == label].sum(axis=0).tolist(), strict=False))
        for label, (name, each) in enumerate(zip(class_names(dataset), schema.classes, strict=True))
        if each.names
    }
    return {"keypoint_objects": int(labelled.any(axis=1).sum()), "labelled_keypoints": counts}
