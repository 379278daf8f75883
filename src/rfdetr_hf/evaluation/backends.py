"""COCO's evaluation behind one function: pycocotools, or a compiled package that gives the same bits."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from ..choices import BACKENDS, install_hint
from .detection_table import DetectionTable
from .ground_truth import Truths, leave_out_unlabelled, make_coco, renumbered, silenced, truth_arrays

IOU_TYPES = ("bbox", "segm", "keypoints")
_LARGEST_ID = 2**53  # that a float64 holds exactly

COCO_PERSON_SIGMAS = tuple(Params("keypoints").kpt_oks_sigmas.tolist())


class CocoMatches(NamedTuple):
    """What COCO's matching decided at IoU .5 for all areas and the largest limit of detections.

    The rows are ordered by category, then image, then rank, which is the order that COCO accumulates in. Detections
    beyond the limit of their image and category are not among them, nor those of classes that their image does not
    label.

    Attributes:
        row: (n,) position in the table of detections.
        image: (n,) position of the image.
        category: (n,) position of the category.
        score: (n,) float64.
        truth: (n,) index into `Truths`, or -1 where nothing was matched.
        ignored: (n,) bool; neither right nor wrong: matched to a crowd or another ignored object, out of range, or of a
            class of which not all objects are marked in the image.
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
        sigmas: (category, K) of the keypoints, 1 where a category has no such keypoint; None for other types.
        image_ids: sorted, integers or texts.
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
    image_ids: np.ndarray
    detections: DetectionTable
    truths: Truths
    matches: CocoMatches

    @property
    def class_names(self) -> list[str]:
        """Names of the categories."""
        return [self.ground_truth.cats[category]["name"] for category in self.category_ids]


def fast_backend_installed() -> bool:
    """Whether the extra `fast-eval` is there."""
    return importlib.util.find_spec("ultrafast_pycocotools") is not None


def evaluate(
    ground_truth: COCO,
    detections: DetectionTable,
    image_ids: np.ndarray,
    evaluated: np.ndarray,
    *,
    iou_type: str = "bbox",
    limits: Sequence[int] = (1, 10, 100),
    sigmas: Sequence[float] | np.ndarray | Mapping[int, Any] | None = None,
    backend: str = "pycocotools",
) -> Evaluation:
    """COCO's evaluation of a table of detections.

    The area of a detection, which says whether an unmatched one counts in a range of areas, is that of its box for
    "bbox", of its mask for "segm" and of the box around its keypoints for "keypoints": what pycocotools makes of
    result files that hold just that. Where images do not label all classes, LVIS' rule holds, see
    `leave_out_unlabelled`.

    Args:
        ground_truth: annotation ids are positive; images may have LVIS' `neg_category_ids` and
            `not_exhaustive_category_ids`.
        detections: ordered by image; labels are category ids.
        image_ids: sorted ids of all images of the ground truth, integers or texts, which `detections.rows["image"]`
            counts.
        evaluated: (len(image_ids),) bool; other images are left out.
        iou_type: "bbox", "segm" or "keypoints".
        limits: detections per image and category; for keypoints COCO's standard is (20,).
        sigmas: one per keypoint, or by category id those of its first keypoints; for "keypoints" alone. With a mapping
            each category is scored as if it had these keypoints alone; one without any gets -1.
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
    category_ids = sorted(ground_truth.getCatIds())
    # pycocotools divides by the number of keypoints of an object without any, whose result it then ignores.
    with silenced(), np.errstate(divide="ignore", invalid="ignore"):
        # Compiled code keeps ids in float64 and pycocotools in a dict of pairs: positions are safe in both.
        exact = image_ids.dtype != object and not (np.abs(image_ids) > _LARGEST_ID).any()
        numbers = image_ids if exact else np.arange(len(image_ids))
        known = leave_out_unlabelled(ground_truth, detections.rows["image"], detections.rows["label"], image_ids)
        looked_at = np.flatnonzero(known.kept)
        truth = known.truth if exact else renumbered(known.truth, image_ids)
        parts = _parts(truth, detections.take(looked_at), category_ids, sigmas if iou_type == "keypoints" else None)
        runs = [_run(part, numbers, evaluated, iou_type, limits, fast) for part in parts]
    truths = truth_arrays(ground_truth, image_ids, evaluated, iou_type)
    columns = [np.concatenate(column) for column in zip(*(columns for _, columns in runs), strict=True)]
    columns = [column[np.argsort(columns[2], kind="stable")] for column in columns]
    number, _, category, truth_id, ignored = columns
    row = looked_at[number - 1]
    rows = detections.rows[row]
    unmatched = (truth_id == 0) | (truth_id >= known.crowds)
    found = np.where(unmatched, -1, np.searchsorted(truths.id, truth_id))
    finished, params = [run for run, _ in runs], runs[0][0].params
    return Evaluation(
        iou_type=iou_type,
        precision=_by_category(finished, "precision", category_ids),
        recall=_by_category(finished, "recall", category_ids),
        scores=_by_category(finished, "scores", category_ids),
        iou_thresholds=params.iouThrs,
        areas=tuple(params.areaRngLbl),
        limits=tuple(params.maxDets),
        category_ids=tuple(category_ids),
        ground_truth=ground_truth,
        sigmas=_sigma_table(sigmas, category_ids) if sigmas is not None and iou_type == "keypoints" else None,
        image_ids=image_ids,
        detections=detections,
        truths=truths,
        matches=CocoMatches(
            row=row,
            image=rows["image"],
            category=np.searchsorted(category_ids, category),
            score=rows["score"],
            truth=found,
            ignored=ignored.astype(bool),
        ),
    )


class _Part(NamedTuple):
    """What one run of COCO's evaluation scores: some categories, whose keypoints have the same sigmas.

    Attributes:
        ground_truth: of these categories.
        detections: of these categories.
        rows: where these detections are in the complete table.
        sigmas: of the keypoints; None for other types.
    """

    ground_truth: COCO
    detections: DetectionTable
    rows: np.ndarray
    sigmas: np.ndarray | None


def _parts(
    truth: COCO,
    detections: DetectionTable,
    category_ids: Sequence[int],
    sigmas: Sequence[float] | np.ndarray | Mapping[int, Any] | None,
) -> list[_Part]:
    """Everything in one part, or one part for each set of sigmas, without the padding of the keypoints."""
    if not isinstance(sigmas, Mapping):
        given = None if sigmas is None else np.asarray(sigmas, dtype=np.float64)
        return [_Part(truth, detections, np.arange(len(detections)), given)]
    groups: dict[tuple[float, ...], list[int]] = {}
    for category in category_ids:
        groups.setdefault(tuple(sigmas[category]), []).append(category)
    groups.pop((), None)
    content: Any = truth.dataset
    parts = []
    for own, categories in groups.items():
        # What pads the keypoints must go: pycocotools spans the area of a detection over all of its keypoints, and
        # compares them all with an object that has none labelled.
        annotations = [
            {**annotation, "keypoints": annotation["keypoints"][: 3 * len(own)]}
            for annotation in content["annotations"]
            if annotation["category_id"] in categories
        ]
        names = [category for category in content["categories"] if category["id"] in categories]
        rows = np.flatnonzero(np.isin(detections.rows["label"], categories))
        table = detections.take(rows)
        if table.keypoints is not None:
            table.keypoints = table.keypoints[:, : len(own)]
        parts.append(_Part(make_coco(content["images"], annotations, names), table, rows, np.array(own)))
    return parts


def _run(
    part: _Part, image_ids: np.ndarray, evaluated: np.ndarray, iou_type: str, limits: Sequence[int], fast: bool
) -> tuple[Any, list[np.ndarray]]:
    """The finished run of COCO's evaluation, and of each match the detection's number in the complete table, image id,
    category id, truth id (0: none) and whether it is ignored."""
    start = _start_ultrafast if fast else _start_pycocotools
    run: Any = start(part.ground_truth, part.detections, image_ids, iou_type)
    run.params.imgIds = image_ids[evaluated].tolist()
    run.params.maxDets = sorted(limits)
    if part.sigmas is not None:
        run.params.kpt_oks_sigmas = part.sigmas
    run.evaluate()
    run.accumulate()
    number, *others = _columns_ultrafast(run) if fast else _columns_pycocotools(run)
    return run, [part.rows[number.astype(np.int64) - 1] + 1, *others]


def _by_category(runs: Sequence[Any], name: str, category_ids: Sequence[int]) -> np.ndarray:
    """An array of all categories from those of the runs; -1 for a category that none of them scored."""
    axis = 1 if name == "recall" else 2
    shape = list(runs[0].eval[name].shape)
    shape[axis] = len(category_ids)
    whole = np.full(shape, -1.0)
    for run in runs:
        place = [slice(None)] * len(shape)
        place[axis] = np.searchsorted(category_ids, run.params.catIds)
        whole[tuple(place)] = run.eval[name]
    return whole


def _sigma_table(sigmas: Sequence[float] | np.ndarray | Mapping[int, Any], category_ids: Sequence[int]) -> np.ndarray:
    rows: list[Any] = [sigmas[category] if isinstance(sigmas, Mapping) else sigmas for category in category_ids]
    table = np.ones((len(rows), max(map(len, rows), default=0)))
    for row, own in zip(table, rows, strict=True):
        row[: len(own)] = own
    return table


def records(
    detections: DetectionTable, ground_truth: COCO, image_ids: np.ndarray, iou_type: str
) -> list[dict[str, Any]]:
    """What pycocotools' `loadRes` makes of the detections, less a polygon for each box that no score reads."""
    rows = detections.rows
    fields = [image_ids[rows["image"]].tolist(), rows["label"].tolist(), rows["score"].tolist()]
    if iou_type == "segm":
        rles: Any = run_lengths(detections, ground_truth, image_ids)
        shapes = [{"segmentation": rle} for rle in rles]
        # One by one: pycocotools 2.0.11 under numpy 2 cannot take 256 masks or more at once.
        areas = [int(mask_utils.area(rle)) for rle in rles]
    elif iou_type == "keypoints" and detections.keypoints is not None:
        points = detections.keypoints
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


def run_lengths(detections: DetectionTable, ground_truth: COCO, image_ids: np.ndarray) -> list[dict[str, Any]]:
    """The masks as RLE dicts with the sizes of their images."""
    sizes, known = {}, cast(Any, ground_truth.imgs)
    for position in np.unique(detections.rows["image"]).tolist():
        image = known[image_ids[position]]
        sizes[position] = [image["height"], image["width"]]
    images = detections.rows["image"].tolist()
    return [{"size": sizes[i], "counts": counts} for i, counts in zip(images, detections.masks or (), strict=True)]


def _start_pycocotools(truth: COCO, detections: DetectionTable, image_ids: np.ndarray, iou_type: Any) -> COCOeval:
    found = records(detections, truth, image_ids, iou_type)
    return COCOeval(truth, make_coco(truth.dataset["images"], found, truth.dataset["categories"]), iou_type)


def _start_ultrafast(truth: COCO, detections: DetectionTable, image_ids: np.ndarray, iou_type: str) -> Any:
    try:
        import ultrafast_pycocotools as ultrafast
    except ImportError as error:
        raise ImportError(
            f"backend='ultrafast' needs the package ultrafast-pycocotools; {install_hint('fast-eval')}"
        ) from error
    content: Any = truth.dataset
    theirs = ultrafast.COCO(content, verbose=False)
    if iou_type == "bbox":
        rows = detections.rows
        columns = (image_ids[rows["image"]], *detections.boxes_xywh.T, rows["score"], rows["label"])
        results = theirs.loadRes(np.stack(columns, axis=1, dtype=np.float64))
    else:
        found = records(detections, truth, image_ids, iou_type)
        results = ultrafast.COCO({**content, "annotations": found}, verbose=False)
    return ultrafast.COCOeval(theirs, results, iou_type)


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
