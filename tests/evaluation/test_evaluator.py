import contextlib
import io
import json
import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, List, Value
from helpers.coco_cases import IOU_TYPES, SIGMAS, as_coco, pycocotools_run, random_coco
from helpers.scored_cases import NAMES, make_dataset, random_case, scored
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_hf import CocoEvaluator, KeypointSchema
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.data.schema import keypoint_feature
from rfdetr_hf.evaluation.evaluator import coco_ground_truth

KEYS = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
KEYS += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]


def direct_pycocotools(dataset: Dataset, predictions: dict[int, dict]) -> COCOeval:
    """The same evaluation, written down again with `loadRes` on the usual N x 7 array."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image_id} for image_id in dataset["image_id"]],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": [],
    }
    for image_id, objects in zip(dataset["image_id"], dataset["objects"], strict=True):
        for box, label, area, crowd in zip(*(objects[k] for k in ("bbox", "category", "area", "iscrowd")), strict=True):
            annotation = {"id": len(truth.dataset["annotations"]) + 1, "image_id": image_id, "category_id": label}
            truth.dataset["annotations"].append({**annotation, "bbox": box, "area": area, "iscrowd": int(crowd)})
    truth.createIndex()
    rows = []
    for image_id, prediction in predictions.items():
        boxes = prediction["boxes"].double().numpy()
        scores, labels = prediction["scores"].tolist(), prediction["labels"].tolist()
        for score, label, (x1, y1, x2, y2) in zip(scores, labels, boxes, strict=True):
            rows.append([image_id, x1, y1, x2 - x1, y2 - y1, score, label])
    evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed):
    dataset, predictions = random_case(seed)
    expected = direct_pycocotools(dataset, predictions)
    evaluator = scored(dataset, predictions)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(evaluator.run(), name), expected.eval[name])
    scores = evaluator.compute()
    assert list(scores) == KEYS
    assert list(scores.values()) == expected.stats.tolist()
    assert 0.05 < scores["map"] < 0.95, "the case must be worth scoring"


def test_scores_do_not_depend_on_the_order_of_images():
    dataset, predictions = random_case(3)
    backwards = dict(reversed(predictions.items()))
    first, second = scored(dataset, predictions), scored(dataset, backwards, batch_size=1)
    assert first.compute() == second.compute()
    np.testing.assert_array_equal(first.detections, second.detections)


def test_nothing_detected_and_nothing_there():
    empty = {"bbox": [], "category": [], "area": [], "iscrowd": []}
    none = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    one = {"scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.ones(1, 4)}
    truth = {"bbox": [[0.0, 0.0, 9.0, 9.0]], "category": [0], "area": [81.0], "iscrowd": [False]}
    with_truth, without = (make_dataset([{"image_id": 1, "objects": objects}]) for objects in (truth, empty))
    missed = scored(with_truth, {1: none}).compute()
    assert missed["map"] == missed["mar_100"] == missed["map_small"] == 0 and missed["map_large"] == -1
    assert set(scored(without, {1: one}).compute().values()) == {-1.0}
    assert set(scored(without, {1: none}).compute().values()) == {-1.0}
    assert set(CocoEvaluator(with_truth).compute(partial=True).values()) == {-1.0}
    assert scored(with_truth, {1: none}).predictions_json() == []


def test_per_class_scores_are_the_parts_of_the_mean():
    dataset, predictions = random_case(1)
    evaluator = scored(dataset, predictions)
    scores = evaluator.compute(per_class=True)
    parts = [scores[f"map_class_{name}"] for name in NAMES]
    assert parts[-1] == scores["mar_100_class_never"] == -1, "no truth, no score"
    assert np.mean(parts[:-1]) == pytest.approx(scores["map"])
    assert np.mean([scores[f"mar_100_class_{name}"] for name in NAMES[:-1]]) == pytest.approx(scores["mar_100"])


def test_another_limit_stands_beside_the_standard():
    dataset, predictions = random_case(2)
    wide = scored(dataset, predictions, max_dets=300).compute()
    standard = scored(dataset, predictions).compute()
    assert {key: wide[key] for key in standard} == standard
    assert set(wide) - set(standard) == {"map_at_300", "map_50_at_300", "map_75_at_300", "mar_300"}
    assert wide["mar_300"] > standard["mar_100"] and wide["map_at_300"] > standard["map"]
    narrow = scored(dataset, predictions, max_dets=2).compute()
    assert {key: narrow[key] for key in standard} == standard and narrow["mar_2"] < narrow["mar_10"]
    with pytest.raises(ValueError, match="1 or more"):
        CocoEvaluator(dataset, max_dets=0)


def test_predictions_json_loads_into_pycocotools(tmp_path):
    dataset, predictions = random_case(4)
    evaluator = scored(dataset, predictions)
    original = [18, 5, 77, 90]
    results = json.loads(json.dumps(evaluator.predictions_json(original)))
    assert {result["category_id"] for result in results} <= {18, 5, 77}
    assert len(results) == sum(len(p["scores"]) for p in predictions.values())
    truth = coco_ground_truth(dataset)
    for item in truth.dataset["categories"]:
        item["id"] = original[item["id"]]
    for annotation in truth.dataset["annotations"]:
        annotation["category_id"] = original[annotation["category_id"]]
    truth.createIndex()
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps(results))
    again = COCOeval(truth, truth.loadRes(str(file)), "bbox")
    again.evaluate()
    again.accumulate()
    again.summarize()
    scores = evaluator.compute()
    assert [scores[key] for key in KEYS] == pytest.approx(again.stats.tolist(), abs=1e-12)


def test_label_map_renames_and_drops():
    dataset, predictions = random_case(5)
    moved = {i: {**p, "labels": p["labels"] + 10} for i, p in predictions.items()}
    with pytest.raises(ValueError, match="10.*not categories.*label_map"):
        scored(dataset, moved)
    expected = scored(dataset, predictions).compute()
    assert scored(dataset, moved, label_map={10: 0, 11: 1, 12: 2}).compute() == expected
    partly = scored(dataset, moved, label_map={11: 1, 12: 2})
    assert set(np.unique(partly.detections["label"])) == {1, 2}
    assert partly.compute(per_class=True)["map_class_circle"] == 0
    with pytest.raises(ValueError, match="has not: 4"):
        CocoEvaluator(dataset, label_map={0: 4})


def test_each_image_once_and_all_of_them():
    dataset, predictions = random_case(6)
    ids = sorted(predictions)
    some = {i: predictions[i] for i in ids[:-2]}
    evaluator = scored(dataset, some)
    with pytest.raises(ValueError, match=f"2 of 12 images.*{ids[-2]}, {ids[-1]}"):
        evaluator.compute()
    smaller = dataset.select([n for n, image_id in enumerate(dataset["image_id"]) if image_id in some])
    assert evaluator.compute(partial=True) == scored(smaller, some).compute()
    with pytest.raises(ValueError, match="scored already"):
        evaluator.update([ids[0]], [predictions[ids[0]]])
    with pytest.raises(ValueError, match="scored already"):
        evaluator.update([ids[-1], ids[-1]], [predictions[ids[-1]]] * 2)
    with pytest.raises(ValueError, match="5000 are not in the ground truth"):
        evaluator.update([5000], [predictions[ids[-1]]])
    with pytest.raises(ValueError, match="1 image ids but 2 predictions"):
        evaluator.update([ids[-1]], [predictions[ids[-1]]] * 2)


def _worker(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator(cpu=True)
    dataset, predictions = random_case(11)
    expected = scored(dataset, predictions)

    uneven = list(predictions)[:9] if rank == 0 else list(predictions)[9:]
    evaluator = scored(dataset, {i: predictions[i] for i in uneven})
    evaluator.gather(accelerator)
    np.testing.assert_array_equal(evaluator.detections, expected.detections)
    assert evaluator.compute() == expected.compute()

    silent_rank = scored(dataset, predictions if rank == 1 else {})
    silent_rank.gather(accelerator)
    assert silent_rank.compute() == expected.compute()

    _gather_masks_and_keypoints(rank, accelerator)

    twice = scored(dataset, predictions)
    with pytest.raises(ValueError, match="more than one process"):
        twice.gather(accelerator)
    accelerator.end_training()


def _gather_masks_and_keypoints(rank: int, accelerator: Accelerator) -> None:
    truth, predictions = random_coco(5)
    ids = list(predictions)
    expected, ours, silent = (CocoEvaluator(truth, iou_types=IOU_TYPES, sigmas=SIGMAS) for _ in range(3))
    expected.update(ids, list(predictions.values()))
    for image_id in ids[:2] if rank == 0 else ids[2:]:
        ours.update([image_id], [predictions[image_id]])
    for evaluator in (ours, silent):
        if evaluator is silent and rank == 1:
            silent.update(ids, list(predictions.values()))
        evaluator.gather(accelerator)
        assert evaluator.compute() == expected.compute() and expected.compute()["segm_map"] > 0
        assert evaluator.predictions_json() == expected.predictions_json()


def test_two_processes_equal_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port,), nprocs=2)


def test_a_gathered_evaluator_is_closed():
    dataset, predictions = random_case(0)
    evaluator = CocoEvaluator(dataset)
    alone = SimpleNamespace(num_processes=1)
    evaluator.gather(alone)
    with pytest.raises(RuntimeError, match="after gather"):
        evaluator.update(list(predictions), list(predictions.values()))
    with pytest.raises(RuntimeError, match="after gather"):
        evaluator.gather(alone)


def test_masks_and_keypoints_of_a_data_set():
    objects = {
        "bbox": List(List(Value("float64"))),
        "category": List(ClassLabel(names=["cell", "rod"])),
        "segmentation": List(List(List(Value("float64")))),
        "keypoints": List(List(Value("float64"))),
    }
    row = {"image_id": 3, "width": 60, "height": 40}
    row["objects"] = {
        "bbox": [[0, 0, 20, 10], [30, 10, 10, 10]],
        "category": [0, 1],
        "segmentation": [[[0, 0, 20, 0, 20, 10, 0, 10]], [[30, 10, 40, 10, 40, 20, 30, 20], [0, 0, 5, 0, 5, 5]]],
        "keypoints": [[1, 1, 2, 0, 0, 0], [31, 11, 1, 39, 19, 2]],
    }
    numbers = {"image_id": Value("int64"), "width": Value("int32"), "height": Value("int32")}
    dataset = Dataset.from_list([row], features=Features({**numbers, "objects": objects}))
    truth = coco_ground_truth(dataset)
    assert [a["num_keypoints"] for a in truth.anns.values()] == [1, 2]
    masks = torch.stack([torch.from_numpy(truth.annToMask(a)) for a in truth.anns.values()]).bool()
    prediction = {
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 1]),
        "boxes": torch.tensor([[0.0, 0, 20, 10], [30, 10, 40, 20]]),
        "masks": masks,
        "keypoints": torch.tensor([[[1.0, 1, 1], [50, 30, 1]], [[31, 11, 1], [39, 19, 1]]]),
    }
    evaluator = CocoEvaluator(dataset, iou_types=IOU_TYPES, sigmas=[0.05, 0.05])
    evaluator.update([3], [prediction])
    scores = evaluator.compute()
    assert scores["map"] == scores["segm_map"] == pytest.approx(1)
    assert scores["keypoint_map"] == pytest.approx(1), "a keypoint without a label does not count"
    assert [key for key in scores if key.startswith("keypoint_mar")] == [
        "keypoint_mar_20", "keypoint_mar_50", "keypoint_mar_75", "keypoint_mar_medium", "keypoint_mar_large",
    ]  # fmt: skip


def test_keypoints_have_the_sigmas_of_their_data_set_by_way_of_a_coco_too():
    schema = KeypointSchema((ClassKeypoints(tuple(f"k{i}" for i in range(17)), sigmas=(0.2,) * 17), ClassKeypoints()))
    points = [[value for k in range(17) for value in (10.0 + k, 12.0, 2.0)], [0.0] * 51]
    objects = {"bbox": [[5.0, 5, 30, 20], [0.0, 0, 9, 9]], "category": [0, 1], "keypoints": points}
    kinds = {"bbox": List(List(Value("float64"))), "category": List(ClassLabel(names=["a", "b"]))}
    kinds["keypoints"] = keypoint_feature(schema)
    row = {"image_id": 1, "width": 64, "height": 48, "objects": objects}
    numbers = {name: Value("int64") for name in ("image_id", "width", "height")}
    dataset = Dataset.from_list([row], features=Features({**numbers, "objects": kinds}))
    truth = coco_ground_truth(dataset)
    assert truth.cats[0]["keypoints"][:2] == ["k0", "k1"] and truth.cats[1]["keypoints"] == []
    for given in (dataset, truth):
        sigmas = CocoEvaluator(given, iou_types=["keypoints"]).sigmas
        assert {label: each.tolist() for label, each in sigmas.items()} == {0: [0.2] * 17, 1: []}


def test_a_results_file_scores_the_same_in_pycocotools():
    truth, predictions = random_coco(5)
    evaluator = CocoEvaluator(truth, iou_types=IOU_TYPES, sigmas=SIGMAS)
    evaluator.update(list(predictions), list(predictions.values()))
    results = json.loads(json.dumps(evaluator.predictions_json()))
    for result in results:
        del result["bbox"], result["keypoints"]
    segmented = COCOeval(truth, truth.loadRes(results), "segm")
    segmented.evaluate()
    segmented.accumulate()
    np.testing.assert_array_equal(segmented.eval["precision"], evaluator.run("segm").precision)
    np.testing.assert_array_equal(
        segmented.eval["precision"], pycocotools_run(truth, predictions, "segm").eval["precision"]
    )


def test_boxes_in_float64_are_scored_as_pycocotools_scores_them():
    """IoU on the edge of .5: float32 tips it to the other side."""
    truth, _ = random_coco(5)
    images, annotations, predictions = [], [], {}
    rng = np.random.default_rng(0)
    for image_id in range(1, 41):
        images.append({"id": image_id, "width": 1000, "height": 1000})
        x, y, w, h = rng.uniform(0, 500), rng.uniform(0, 500), rng.uniform(50, 300), rng.uniform(50, 300)
        box = [x, y, w, h]
        annotations.append({"id": image_id, "image_id": image_id, "category_id": 1, "bbox": box, "area": w * h,
                            "iscrowd": 0})  # fmt: skip
        share = 0.5 + (image_id % 5 - 2) * 1e-9
        predictions[image_id] = {
            "boxes_xywh": np.array([[x, y, w * share, h]]),
            "boxes": np.array([[x, y, x + w * share, y + h]]),
            "scores": np.array([rng.uniform(0.3, 0.9)]),
            "labels": np.array([1]),
        }
    truth = as_coco(images, annotations, [{"id": 1, "name": "a"}])
    evaluator = CocoEvaluator(truth)
    evaluator.update(list(predictions), list(predictions.values()))
    results = [
        {"image_id": i, "category_id": 1, "bbox": each["boxes_xywh"][0].tolist(), "score": float(each["scores"][0])}
        for i, each in predictions.items()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCOeval(truth, truth.loadRes(results), "bbox")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    assert list(evaluator.compute().values())[:12] == expected.stats.tolist()
    assert 0.05 < expected.stats[1] < 0.95


@pytest.mark.parametrize(
    "of", [int, float, np.int32, torch.tensor, lambda i: torch.tensor([i]), lambda i: np.array([i])]
)
def test_an_evaluator_takes_ids_as_loaders_give_them(shapes, of):
    evaluator = CocoEvaluator(shapes)
    evaluator.update([of(1)], [{"scores": [], "labels": [], "boxes": []}])
    with pytest.raises(ValueError, match="1"):  # a second time
        evaluator.update([1], [{"scores": [], "labels": [], "boxes": []}])


@pytest.mark.parametrize("given", [None, 1.5, [3], True, torch.tensor([1, 2])])
def test_an_evaluator_takes_no_other_ids(shapes, given):
    with pytest.raises(ValueError, match="image_ids: .* is no image id"):
        CocoEvaluator(shapes).update([given], [{"scores": [], "labels": [], "boxes": []}])
