"""COCO's evaluation behind one function: pycocotools, or a compiled package that gives the same bits."""

import contextlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from .detections import Detections
from .ground_truth import Truths, make_coco, silenced, truth_arrays

BACKENDS = ("pycocotools", "ultrafast", "auto")
IOU_TYPES = ("bbox", "segm", "keypoints")

COCO_PERSON_SIGMAS = tuple(Params("keypoints").kpt_oks_sigmas.tolist())


class Matches(NamedTuple):
    """What COCO's matching decided at IoU .5 for all areas and the largest limit of detections.

    The rows are ordered by category, then image, then rank, which is the order that COCO accumulates in. Detections
    beyond the limit of their image and category are not among them.

    Attributes:
        row: (n,) position in the table of detections.
        image: (n,) position of the image.
        category: (n,) position of the category.
        score: (n,) float64.
        truth: (n,) index into `Truths`, or -1 where nothing was matched.
        ignored: (n,) bool; neither right nor wrong: matched to a crowd or another ignored object, or out of range.
    """

    row: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: true positives."""
        return (self.truth >= 0) & ~self.ignored

    @property
    def wrong(self) -> np.ndarray:
        """(n,) bool: false positives."""
        return (self.truth < 0) & ~self.ignored


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: COCO's arrays and the matching they rest on.

    Attributes:
        iou_type: "bbox", "segm" or "keypoints".
        precision: (IoU, recall, category, area, limit) float64, -1 where undefined.
        recall: (IoU, category, area, limit).
        scores: like `precision`.
        iou_thresholds: .50 to .95.
        areas: names of the area ranges, "all" first.
        limits: detections per image and category, ascending.
        category_ids: sorted.
        ground_truth: the `COCO` in use.
        sigmas: of the keypoints; None for other types.
        detections: the table that was scored.
        truths: the objects of the evaluated images.
        matches: at IoU .5.
    """

    iou_type: str
    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    iou_thresholds: np.ndarray
    areas: tuple[str, ...]
    limits: tuple[int, ...]
    category_ids: tuple[int, ...]
    ground_truth: COCO
    sigmas: np.ndarray | None
    detections: Detections
    truths: Truths
    matches: Matches

    @property
    def class_names(self) -> list[str]:
        """Names of the categories."""
        return [self.ground_truth.cats[category]["name"] for category in self.category_ids]


def fast_backend_installed() -> bool:
    """Whether the extra `fast-eval` is there."""
    return importlib.util.find_spec("ultrafast_pycocotools") is not None


def evaluate(
    ground_truth: COCO,
    detections: Detections,
    image_ids: np.ndarray,
    evaluated: np.ndarray,
    *,
    iou_type: str = "bbox",
    limits: Sequence[int] = (1, 10, 100),
    sigmas: Sequence[float] | None = None,
    backend: str = "pycocotools",
) -> Evaluation:
    """COCO's evaluation of a table of detections.

    The area of a detection, which says whether an unmatched one counts in a range of areas, is that of its box for
    "bbox", of its mask for "segm" and of the box around its keypoints for "keypoints": what pycocotools makes of
    result files that hold just that.

    Args:
        ground_truth: annotation ids are positive.
        detections: ordered by image; labels are category ids.
        image_ids: sorted ids of all images of the ground truth, which `detections.rows["image"]` counts.
        evaluated: (len(image_ids),) bool; other images are left out.
        iou_type: "bbox", "segm" or "keypoints".
        limits: detections per image and category; for keypoints COCO's standard is (20,).
        sigmas: one per keypoint; for "keypoints" alone.
        backend: "pycocotools", "ultrafast" (extra `fast-eval`), or "auto" for the second where it is installed.

    Raises:
        ValueError: unknown `iou_type` or `backend`.
        ImportError: the backend is not installed.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type {iou_type!r}: it must be one of {', '.join(IOU_TYPES)}.")
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: it must be one of {', '.join(BACKENDS)}.")
    fast = backend == "ultrafast" or (backend == "auto" and fast_backend_installed())
    start = _start_ultrafast if fast else _start_pycocotools
    with silenced():
        run = start(ground_truth, detections, image_ids, iou_type)
        run.params.imgIds = image_ids[evaluated].tolist()
        run.params.maxDets = sorted(limits)
        if iou_type == "keypoints":
            run.params.kpt_oks_sigmas = np.asarray(sigmas, dtype=np.float64)
        with _empty_arrays_allowed():
            run.evaluate()
            run.accumulate()
    truths = truth_arrays(ground_truth, image_ids, evaluated, iou_type)
    columns = _columns_ultrafast(run) if fast else _columns_pycocotools(run)
    return Evaluation(
        iou_type=iou_type,
        precision=run.eval["precision"],
        recall=run.eval["recall"],
        scores=run.eval["scores"],
        iou_thresholds=run.params.iouThrs,
        areas=tuple(run.params.areaRngLbl),
        limits=tuple(run.params.maxDets),
        category_ids=tuple(run.params.catIds),
        ground_truth=ground_truth,
        sigmas=np.asarray(sigmas, dtype=np.float64) if iou_type == "keypoints" else None,
        detections=detections,
        truths=truths,
        matches=_matches(columns, detections, truths, run.params.catIds),
    )


def records(detections: Detections, ground_truth: COCO, image_ids: np.ndarray, iou_type: str) -> list[dict[str, Any]]:
    """What pycocotools' `loadRes` makes of the detections, less a polygon for each box that no score reads."""
    rows = detections.rows
    fields = [image_ids[rows["image"]].tolist(), rows["label"].tolist(), rows["score"].tolist()]
    if iou_type == "segm":
        shapes = [{"segmentation": rle} for rle in run_lengths(detections, ground_truth, image_ids)]
        # One by one: pycocotools 2.0.11 under numpy 2 cannot take 256 masks or more at once.
        areas = [int(mask_utils.area(shape["segmentation"])) for shape in shapes]
    elif iou_type == "keypoints":
        points = detections.keypoints.astype(np.float64)
        corners = [points[..., :2].min(axis=1), points[..., :2].max(axis=1)]
        areas = np.prod(corners[1] - corners[0], axis=1).tolist()
        shapes = [{"keypoints": each} for each in points.reshape(len(points), 3 * points.shape[1]).tolist()]
    else:
        boxes = detections.boxes_xywh
        areas = (boxes[:, 2] * boxes[:, 3]).tolist()
        shapes = [{"bbox": box} for box in boxes.tolist()]
    return [
        {"id": n, "image_id": image, "category_id": label, "score": score, "area": area, "iscrowd": 0, **shape}
        for n, (image, label, score, area, shape) in enumerate(zip(*fields, areas, shapes, strict=True), start=1)
    ]


def run_lengths(detections: Detections, ground_truth: COCO, image_ids: np.ndarray) -> list[dict[str, Any]]:
    """The masks as RLE dicts with the sizes of their images."""
    sizes = {}
    for position in np.unique(detections.rows["image"]).tolist():
        image = ground_truth.imgs[int(image_ids[position])]
        sizes[position] = [image["height"], image["width"]]
    images = detections.rows["image"].tolist()
    return [{"size": sizes[i], "counts": counts} for i, counts in zip(images, detections.masks, strict=True)]


def _start_pycocotools(truth: COCO, detections: Detections, image_ids: np.ndarray, iou_type: str) -> COCOeval:
    found = records(detections, truth, image_ids, iou_type)
    return COCOeval(truth, make_coco(truth.dataset["images"], found, truth.dataset["categories"]), iou_type)


def _start_ultrafast(truth: COCO, detections: Detections, image_ids: np.ndarray, iou_type: str) -> Any:
    try:
        import ultrafast_pycocotools as ultrafast
    except ImportError as error:
        raise ImportError(
            "backend='ultrafast' needs the package ultrafast-pycocotools: pip install 'rfdetr-hf[fast-eval]'"
        ) from error
    theirs = ultrafast.COCO(truth.dataset, verbose=False)
    if iou_type == "bbox":
        rows = detections.rows
        columns = (image_ids[rows["image"]], *detections.boxes_xywh.T, rows["score"], rows["label"])
        results = theirs.loadRes(np.stack(columns, axis=1, dtype=np.float64))
    else:
        found = records(detections, truth, image_ids, iou_type)
        results = ultrafast.COCO({**truth.dataset, "annotations": found}, verbose=False)
    return ultrafast.COCOeval(theirs, results, iou_type)


def _empty_arrays_allowed() -> contextlib.AbstractContextManager:
    """pycocotools divides by the number of keypoints of an object without any, whose result it then ignores."""
    return np.errstate(divide="ignore", invalid="ignore")


def _columns_pycocotools(run: COCOeval) -> list[np.ndarray]:
    """Detection id, image id, category id, truth id (0: none) and whether it is ignored, of all rows."""
    areas, images = len(run.params.areaRng), len(run.params.imgIds)
    cells = [
        cell
        for category in range(len(run.params.catIds))
        for cell in run.evalImgs[category * areas * images : category * areas * images + images]
        if cell is not None and cell["dtIds"]
    ]
    if not cells:
        return [np.zeros(0, dtype=np.int64)] * 5
    counts = [len(cell["dtIds"]) for cell in cells]
    return [
        np.concatenate([cell["dtIds"] for cell in cells]),
        np.repeat([cell["image_id"] for cell in cells], counts),
        np.repeat([cell["category_id"] for cell in cells], counts),
        np.concatenate([cell["dtMatches"][0] for cell in cells]).astype(np.int64),
        np.concatenate([cell["dtIgnore"][0] for cell in cells]),
    ]


def _columns_ultrafast(run: Any) -> list[np.ndarray]:
    found, _ = run.per_instance(iou_thr=0.5)
    columns = [found["dt_id"], found["image_id"], found["category_id"], np.maximum(found["gt_id"], 0), found["ignore"]]
    order = np.lexsort([-found["score"], found["image_id"], found["category_id"]])
    return [column[order] for column in columns]


def _matches(columns: list[np.ndarray], detections: Detections, truths: Truths, category_ids: Sequence[int]) -> Matches:
    number, _, category, truth_id, ignored = columns
    row = number.astype(np.int64) - 1
    truth = np.searchsorted(truths.id, truth_id)
    truth[truth_id == 0] = -1
    rows = detections.rows[row]
    return Matches(
        row=row,
        image=rows["image"],
        category=np.searchsorted(category_ids, category),
        score=rows["score"].astype(np.float64),
        truth=truth,
        ignored=ignored.astype(bool),
    )
