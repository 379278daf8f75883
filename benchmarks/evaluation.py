"""COCO evaluation beside its peers: time and peak memory of scoring the same detections.

    python benchmarks/evaluation.py --images 5000 --detections 100 --classes 80

Each way runs in a process of its own on detections generated from the same seed; what is not installed is skipped and
named. Ours is timed from tensors to numbers: `update` batch by batch, `compute`, and then the analysis alone (P/R/F1,
confusion matrix, error types). So are torchmetrics and the metric of the official package, which has scores by class as
ours has; torchmetrics runs one more evaluation for each class to get them, so it is measured with and without.

A way that takes longer than `--limit` is stopped and measured on `--fewer` images, and the table says so.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

WAYS = {
    "pycocotools": "pycocotools",
    "faster-coco-eval": "faster_coco_eval",
    "torchmetrics, pycocotools": "torchmetrics",
    "torchmetrics, faster-coco-eval": "torchmetrics",
    "torchmetrics, by class": "torchmetrics",
    "rfdetr, hotcoco": "rfdetr",
    "rfdetr, ultrafast": "rfdetr",
    "rfdetr_hf, pycocotools": "pycocotools",
    "rfdetr_hf, ultrafast": "ultrafast_pycocotools",
}
BATCH = 16
SIZES = {"images": 5000, "detections": 100, "classes": 80}


def generate(images: int, detections: int, classes: int, seed: int = 0) -> tuple[dict, list[np.ndarray]]:
    """A COCO data set of about 7 objects an image, and per image rows x, y, w, h, score, label like a detector's."""
    rng = np.random.default_rng(seed)
    truth = {"info": {}, "images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": c, "name": f"class {c}"} for c in range(classes)]
    found = []
    for image_id in range(1, images + 1):
        truth["images"].append({"id": image_id, "width": 640, "height": 480})
        count = int(rng.poisson(7))
        boxes = np.concatenate(
            [rng.uniform(0, 400, (count, 2)), rng.lognormal(4, 0.9, (count, 2)).clip(4, 400)], axis=1
        )
        labels = rng.integers(0, classes, count)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            number = len(truth["annotations"]) + 1
            record = {"id": number, "image_id": image_id, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            truth["annotations"].append({**record, "iscrowd": int(rng.random() < 0.01)})
        found.append(_found(rng, boxes, labels, detections, classes))
    return truth, found


def _found(rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Detections of one image: half of them around objects, the better the higher they score, a few mislabelled."""
    score = np.sort(rng.beta(0.4, 4, count))[::-1]
    rows = np.concatenate([rng.uniform(0, 400, (count, 2)), rng.lognormal(4, 0.9, (count, 2)).clip(4, 400)], axis=1)
    label = rng.integers(0, classes, count)
    if len(boxes):
        near = np.flatnonzero(rng.random(count) < 0.5)
        which = rng.integers(0, len(boxes), len(near))
        noise = rng.normal(0, 1, (len(near), 4)) * boxes[which][:, [2, 3, 2, 3]] * (0.25 * (1 - score[near]))[:, None]
        rows[near] = boxes[which] + noise
        rows[near, 2:] = np.abs(rows[near, 2:])
        label[near] = np.where(rng.random(len(near)) < 0.9, labels[which], label[near])
    return np.concatenate([rows, score[:, None], label[:, None]], axis=1).astype(np.float32)


def records(found: list[np.ndarray]) -> list[dict]:
    """The results list that pycocotools' API takes."""
    return [
        {"image_id": i, "category_id": int(row[5]), "bbox": row[:4], "score": row[4]}
        for i, rows in enumerate(found, start=1)
        for row in rows.astype(np.float64).tolist()
    ]


def predictions(found: list[np.ndarray]) -> list[dict]:
    """Tensors as a post-processor gives them, xyxy."""
    import torch

    tensors = [torch.from_numpy(rows) for rows in found]
    return [
        {
            "boxes": torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], dim=1),
            "scores": rows[:, 4].clone(),
            "labels": rows[:, 5].long(),
        }
        for rows in tensors
    ]


def time_pycocotools(truth: dict, found: list[np.ndarray], package: str) -> dict:
    """`loadRes` on a list of dicts, evaluate, accumulate; the list is there before."""
    if package == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    coco, results = COCO(), records(found)
    coco.dataset = truth
    coco.createIndex()
    started = time.perf_counter()
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {"seconds": time.perf_counter() - started, "map": float(evaluation.stats[0])}


def time_torchmetrics(truth: dict, found: list[np.ndarray], metric: object) -> dict:
    """A torchmetrics metric fed in batches; crowds are passed, areas are those of the annotations."""
    import torch

    targets = [{"boxes": [], "labels": [], "iscrowd": [], "area": []} for _ in truth["images"]]
    for each in truth["annotations"]:
        x, y, w, h = each["bbox"]
        target = targets[each["image_id"] - 1]
        target["boxes"].append([x, y, x + w, y + h])
        for key, value in (("labels", each["category_id"]), ("iscrowd", each["iscrowd"]), ("area", each["area"])):
            target[key].append(value)
    for target in targets:
        target["boxes"] = torch.tensor(target["boxes"]).reshape(-1, 4)
        target["labels"] = torch.tensor(target["labels"], dtype=torch.int64)
        target["iscrowd"] = torch.tensor(target["iscrowd"], dtype=torch.int64)
        target["area"] = torch.tensor(target["area"])
    made = predictions(found)
    started = time.perf_counter()
    for start in range(0, len(made), BATCH):
        metric.update(made[start : start + BATCH], targets[start : start + BATCH])
    score = float(metric.compute()["map"])
    return {"seconds": time.perf_counter() - started, "map": score}


def time_ours(truth: dict, found: list[np.ndarray], backend: str) -> dict:
    """Tensors to numbers, in stages."""
    from rfdetr_hf.evaluation.evaluator import CocoEvaluator
    from rfdetr_hf.evaluation.ground_truth import make_coco

    coco, made = make_coco(truth["images"], truth["annotations"], truth["categories"]), predictions(found)
    evaluator = CocoEvaluator(coco, backend=backend)
    laps = [time.perf_counter()]
    for start in range(0, len(made), BATCH):
        evaluator.update(range(start + 1, min(start + BATCH, len(made)) + 1), made[start : start + BATCH])
    laps.append(time.perf_counter())
    scores = evaluator.compute(per_class=True)
    laps.append(time.perf_counter())
    analysis = evaluator.analyze()
    analysis.summary(), analysis.per_class(), analysis.confusion
    laps.append(time.perf_counter())
    analysis.errors, analysis.worst_images()
    laps.append(time.perf_counter())
    update, compute, operating, errors = np.diff(laps).tolist()
    stages = {"update": update, "compute": compute, "P/R/F1 + confusion": operating, "error types": errors}
    return {"seconds": update + compute, "map": scores["map"], "stages": stages}


def run_one(way: str, sizes: list[int]) -> None:
    """Time one way in this process and print a JSON line."""
    truth, found = generate(*sizes)
    with contextlib.redirect_stdout(io.StringIO()):
        if way.startswith("rfdetr_hf"):
            result = time_ours(truth, found, way.split(", ")[1])
        elif way.startswith(("torchmetrics", "rfdetr")):
            result = time_torchmetrics(truth, found, _metric(way))
        else:
            result = time_pycocotools(truth, found, way)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def _metric(way: str) -> object:
    if way.startswith("torchmetrics"):
        from torchmetrics.detection import MeanAveragePrecision

        backend = "pycocotools" if way.endswith("pycocotools") else "faster_coco_eval"
        return MeanAveragePrecision(backend=backend, class_metrics=way.endswith("by class"))
    from rfdetr.training.coco_map import OnePassCocoMeanAveragePrecision

    backend = "ufcoco" if way.endswith("ultrafast") else "hotcoco"
    return OnePassCocoMeanAveragePrecision(max_detection_thresholds=[1, 10, 100], backend=backend, class_metrics=True)


def run_within(limit: float, way: str, sizes: Sequence[int]) -> dict | None:
    """The result of a process that measures one way, None if it is not there in time."""
    command = [sys.executable, __file__, "--one", way]
    command += [f"--{name}={size}" for name, size in zip(SIZES, sizes, strict=True)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def describe(way: str, result: dict, ratio: str) -> str:
    """Rows of the table."""
    if "error" in result:
        return f"{way:<32}  failed: {result['error']}"
    row = f"{way:<32}{result['seconds']:>9.2f}{ratio:>10}{result['peak_mb']:>9.0f}{result['map']:>8.4f}"
    stages = result.get("stages", {}).items()
    return "\n".join([row, *(f"    {stage:<28}{seconds:>9.2f}" for stage, seconds in stages)])


def measure(ways: Sequence[str], sizes: Sequence[int], limit: float, fewer: int) -> Iterator[str]:
    """Rows of the table, as they come."""
    reference = None
    for way in ways:
        if importlib.util.find_spec(WAYS[way]) is None:
            yield f"{way:<32}  skipped: {WAYS[way]} is not installed"
            continue
        result = run_within(limit, way, sizes)
        if result is None:
            yield f"{way:<32}  not done in {limit:.0f} s; with {fewer} images:"
            result = run_within(limit, way, (fewer, *sizes[1:])) or {"error": f"not done in {limit:.0f} s either"}
            yield describe(way, result, "-")
            continue
        reference = reference or result.get("seconds")
        yield describe(way, result, f"{reference / result['seconds']:.1f}" if "seconds" in result else "-")


def main() -> None:
    """Run every way that is installed, one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--limit", type=float, default=480, help="seconds for a way")
    parser.add_argument("--fewer", type=int, default=500, help="images for a way that exceeds the limit")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = [getattr(args, name) for name in SIZES]
    if args.one:
        return run_one(args.one, sizes)
    print(f"{args.images} images x {args.detections} detections, {args.classes} classes")
    print(f"{'':<32}{'seconds':>9}{'x faster':>10}{'peak MB':>9}{'AP':>8}")
    for row in measure(args.ways, sizes, args.limit, args.fewer):
        print(row, flush=True)


if __name__ == "__main__":
    main()
