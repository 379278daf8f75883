import contextlib
import io
import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from helpers.coco_cases import as_coco, pycocotools_run, random_coco
from pycocotools.cocoeval import COCOeval

METRIC = str(Path(__file__).parents[2] / "metrics" / "rfdetr_coco")


def as_inputs(truth, predictions):
    """Predictions and references of the metric, in the order of the image ids."""
    found, there = [], []
    for image_id in sorted(predictions):
        found.append({key: predictions[image_id][key] for key in ("boxes", "scores", "labels")})
        anns = truth.imgToAnns[image_id]
        boxes = np.array([a["bbox"] for a in anns], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        fields = {
            key: [a[name] for a in anns]
            for key, name in (("labels", "category_id"), ("area", "area"), ("iscrowd", "iscrowd"))
        }
        there.append({"boxes": boxes, **fields})
    return found, there


def test_equals_pycocotools(tmp_path):
    truth, predictions = random_coco(5)
    found, there = as_inputs(truth, predictions)
    metric = evaluate.load(METRIC, cache_dir=str(tmp_path))
    for start in range(0, len(found), 2):
        metric.add_batch(predictions=found[start : start + 2], references=there[start : start + 2])
    scores = metric.compute()
    expected = pycocotools_run(truth, predictions, "bbox").stats
    # Corners and back moves a box by a rounding, so this is not to the last bit.
    assert list(scores.values())[:12] == pytest.approx(expected.tolist(), abs=1e-6)
    assert 0 < scores["f1"] <= 1 and list(scores)[12:] == ["precision", "recall", "f1", "score_threshold"]


def test_defaults_and_names(tmp_path):
    metric = evaluate.load(METRIC, cache_dir=str(tmp_path))
    box = {"boxes": [[0, 0, 20, 20]], "labels": [1]}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.add(prediction={**box, "scores": [0.8]}, reference=box)
    metric.add(prediction={**empty, "scores": torch.zeros(0)}, reference=empty)
    scores = metric.compute(class_names=["cat", "dog"], max_dets=7)
    assert scores["map"] == pytest.approx(1) and scores["map_small"] == pytest.approx(1) and scores["map_large"] == -1
    assert scores["map_class_dog"] == pytest.approx(1) and scores["map_class_cat"] == -1 and "map_at_7" in scores
    metric.add(prediction={**box, "scores": [0.8]}, reference=box)
    with pytest.raises(ValueError, match=r"Labels \[1\] have no name"):
        metric.compute(class_names=["cat"])
    with pytest.raises(ValueError, match="scores missing"):
        metric.add(prediction=box, reference=box)


def test_float64_boxes_as_coco_has_them(tmp_path):
    """Overlaps of a half, but for a billionth: in float32, or by way of corners, they fall to either side."""
    rng = np.random.default_rng(0)
    found, there, images, annotations, results = [], [], [], [], []
    for image_id in range(1, 41):
        x, y, w, h = rng.uniform(0, 500, 2).tolist() + rng.uniform(50, 300, 2).tolist()
        near, score = [x, y, w * (0.5 + (image_id % 4 - 1.5) * 1e-9), h], rng.uniform(0.3, 0.9)
        images.append({"id": image_id, "width": 1000, "height": 1000})
        record = {"image_id": image_id, "category_id": 0, "bbox": [x, y, w, h]}
        annotations.append({**record, "id": image_id, "area": w * h, "iscrowd": 0})
        results.append({"image_id": image_id, "category_id": 0, "bbox": near, "score": score})
        found.append({"boxes": [near], "scores": [score], "labels": [0], "image_id": f"{image_id}.jpg"})
        there.append({"boxes": [[x, y, w, h]], "labels": [0], "image_id": f"{image_id}.jpg"})
    truth = as_coco(images, annotations, [{"id": 0, "name": "a"}])
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCOeval(truth, truth.loadRes(results), "bbox")
        for step in (expected.evaluate, expected.accumulate, expected.summarize):
            step()
    exact = evaluate.load(METRIC, "xywh", cache_dir=str(tmp_path)).compute(predictions=found, references=there)
    assert list(exact.values())[:12] == expected.stats.tolist() and 0.05 < exact["map_50"] < 0.95
    for each in (*found, *there):
        each["boxes"] = [[x, y, x + w, y + h] for x, y, w, h in each["boxes"]]
    corners = evaluate.load(METRIC, cache_dir=str(tmp_path)).compute(predictions=found, references=there)
    assert list(corners.values())[:12] == expected.stats.tolist()


def test_no_images_and_labels_that_are_texts(tmp_path):
    metric = evaluate.load(METRIC, cache_dir=str(tmp_path))
    for given in ({}, {"predictions": [], "references": []}):
        with pytest.raises(ValueError, match="no images to score"):
            metric.compute(**given)
    box = {"boxes": [[0, 0, 20, 20]], "labels": ["cat"]}
    with pytest.raises(ValueError, match="class_names"):
        metric.add(prediction={**box, "scores": [0.8]}, reference=box)


BOX = {"boxes": [[10, 10, 30, 30]], "labels": [0]}


@pytest.mark.parametrize(
    ("found", "there", "message"),
    [({}, {"iscrowd": [-1]}, "iscrowd 0 or 1"), ({}, {"iscrowd": [2]}, "iscrowd 0 or 1"),
     ({}, {"iscrowd": ["0"]}, "iscrowd 0 or 1"), ({}, {"area": [float("nan")]}, "area nan"),
     ({"labels": [False]}, {}, "no integers"), ({}, {"labels": np.array([False])}, "no integers"),
     ({}, {"area": [True]}, "area must be a number"),
     ({}, {"area": [-4]}, "area -4"), ({}, {"area": [1, 2]}, "each of 1 boxes"),
     ({}, {"boxes": [[float("nan"), 10, 30, 30]]}, "bbox"), ({}, {"boxes": [[30, 30, 10, 10]]}, "negative size"),
     ({"boxes": [[30, 30, 10, 10]]}, {}, "x1 <= x2"), ({"labels": [0.7]}, {}, "no integers"),
     ({"labels": torch.tensor([0.9])}, {}, "no integers"), ({"labels": [2**32]}, {}, "labels must be integers"),
     ({"boxes": [[1, 2], [3, 4]], "labels": [0, 0], "scores": [0.5, 0.5]}, {}, "four numbers"),
     ({}, {"labels": [0, 0]}, "as many of each"), ({"image_id": 1}, {"image_id": 2}, "in one order"),
     ({"image_id": torch.tensor([1])}, {"image_id": "2"}, "in one order")],
)  # fmt: skip
def test_impossible_input_is_named(tmp_path, found, there, message):
    metric = evaluate.load(METRIC, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[{**BOX, "scores": [0.9], **found}], references=[BOX | there])


def test_names_and_the_kind_of_boxes_are_read_as_they_are_meant(tmp_path):
    for wrong in ("XYWH", "xyhw", "cxcywh"):
        with pytest.raises(ValueError, match=f"and 'xywh', not '{wrong}'"):
            evaluate.load(METRIC, wrong, cache_dir=str(tmp_path))
    metric = evaluate.load(METRIC, "xyxy", cache_dir=str(tmp_path))
    given = {"predictions": [BOX | {"scores": [0.9], "image_id": torch.tensor([3])}]}
    given["references"] = [BOX | {"image_id": 3, "iscrowd": [False]}]
    scores = metric.compute(**given, class_names={0: "cat", 7: "dog"})
    assert scores["map_class_cat"] == pytest.approx(1) and scores["map_class_dog"] == -1
    with pytest.raises(ValueError, match="one text"):
        metric.compute(**given, class_names="abc")
    with pytest.raises(ValueError, match="have no name"):
        metric.compute(**given, class_names={"0": "cat"})


def _worker(rank, folder):
    torch.set_num_threads(1)
    found, there = as_inputs(*random_coco(5))
    mine = slice(0, 2) if rank == 0 else slice(2, None)
    metric = evaluate.load(METRIC, num_process=2, process_id=rank, experiment_id="pair", cache_dir=folder)
    metric.add_batch(predictions=found[mine], references=there[mine])
    scores = metric.compute()
    Path(folder, f"scores {rank}.json").write_text(json.dumps(scores))


def test_two_processes_equal_one(tmp_path):
    assert len(random_coco(5)[1]) > 3
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    alone = evaluate.load(METRIC, cache_dir=str(tmp_path))
    found, there = as_inputs(*random_coco(5))
    expected = alone.compute(predictions=found, references=there)
    assert json.loads((tmp_path / "scores 0.json").read_text()) == expected
    assert json.loads((tmp_path / "scores 1.json").read_text()) is None
