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
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rfdetr_hf.data.keypoints import COCO_KEYPOINTS, DEFAULT_SIGMA, ClassKeypoints, KeypointSchema
from rfdetr_hf.data.schema import detection_features, keypoint_feature
from rfdetr_hf.evaluation.backends import COCO_PERSON_SIGMAS
from rfdetr_hf.evaluation.evaluator import CocoEvaluator, coco_ground_truth
from rfdetr_hf.evaluation.ground_truth import make_coco

NAMES = ("circle", "square", "triangle", "never")
KEYS = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
KEYS += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]


def make_dataset(rows: list[dict]) -> Dataset:
    """A data set in the project's schema whose image column can't be decoded."""
    filled = []
    for row in rows:
        objects = {"id": list(range(len(row["objects"]["bbox"]))), **row["objects"]}
        image = {"bytes": b"not an image", "path": None}
        filled.append({"image": image, "width": 400, "height": 300, "file_name": None, **row, "objects": objects})
    return Dataset.from_list(filled, features=detection_features(NAMES))


def random_case(seed: int, num_images: int = 12) -> tuple[Dataset, dict[int, dict]]:
    """Truth with crowds, odd areas and empty images; predictions with ties, near misses and more than 100 a class."""
    rng = np.random.default_rng(seed)
    rows, predictions = [], {}
    for image_id in rng.permutation(1000)[:num_images].tolist():
        count = int(rng.integers(0, 7))
        start, side = rng.uniform(0, 200, (count, 2)), rng.choice([10, 40, 110], (count, 1)) * rng.uniform(0.8, 1.2)
        truth = np.concatenate([start, np.broadcast_to(side, (count, 2))], 1).astype(np.float32)
        rows.append(
            {
                "image_id": image_id,
                "objects": {
                    "bbox": truth.tolist(),
                    "category": rng.integers(0, 3, count).tolist(),
                    "area": (truth[:, 2] * truth[:, 3] * rng.uniform(0.3, 1, count)).tolist(),
                    "iscrowd": (rng.random(count) < 0.2).tolist(),
                },
            }
        )
        predictions[image_id] = random_predictions(rng, truth, rows[-1]["objects"]["category"])
    return make_dataset(rows), predictions


def random_predictions(rng: np.random.Generator, truth: np.ndarray, categories: list[int]) -> dict:
    noise = int(rng.choice([0, 5, 250]))
    near = np.repeat(truth, 3, axis=0) + rng.normal(0, 4, (3 * len(truth), 4))
    boxes = np.concatenate([near, rng.uniform(0, 150, (noise, 4))])
    boxes[:, 2:] = np.abs(boxes[:, 2:]) + boxes[:, :2]
    return {
        "scores": torch.from_numpy(np.round(rng.random(len(boxes)), 1)).float(),
        "labels": torch.from_numpy(np.concatenate([np.repeat(categories, 3), rng.integers(0, 2, noise)]).astype(int)),
        "boxes": torch.from_numpy(boxes).float(),
    }


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


def scored(dataset: Dataset, predictions: dict[int, dict], batch_size: int = 5, **options) -> CocoEvaluator:
    evaluator = CocoEvaluator(dataset, **options)
    ids = list(predictions)
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        evaluator.update(torch.tensor(batch), [predictions[image_id] for image_id in batch])
    return evaluator


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


def test_areas_and_crowds_come_from_the_annotations():
    box = [10.0, 10.0, 50.0, 50.0]
    objects = {"bbox": [box, [200.0, 0.0, 100.0, 100.0]], "category": [0, 0], "area": [900.0, 1.0], "iscrowd": [0, 1]}
    dataset = make_dataset([{"image_id": 5, "objects": objects}])
    boxes = torch.tensor([[10.0, 10, 60, 60], [210.0, 10, 250, 50], [260.0, 10, 290, 50]])
    prediction = {"scores": torch.tensor([0.5, 0.9, 0.8]), "labels": torch.zeros(3, dtype=torch.int64), "boxes": boxes}
    scores = scored(dataset, {5: prediction}).compute()
    assert scores["map"] == pytest.approx(1), "detections inside a crowd are neither right nor wrong"
    assert scores["map_small"] == pytest.approx(1) and scores["map_medium"] == -1


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


def test_ground_truth_needs_no_image_and_numbers_annotations_from_one(capsys):
    dataset, _ = random_case(0)
    truth = coco_ground_truth(dataset.with_transform(lambda rows: pytest.fail("the transform ran")))
    assert min(truth.anns) == 1 and len(truth.anns) == sum(len(o["bbox"]) for o in dataset["objects"])
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == list(NAMES)
    assert sorted(truth.imgs) == sorted(dataset["image_id"])
    scored(dataset, {}).compute(partial=True)
    assert capsys.readouterr().out == ""


def test_ground_truth_without_optional_columns():
    rows = [{"image_id": 3, "width": 9, "height": 9, "objects": {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0]}}]
    with pytest.raises(ValueError, match="class labels"):
        coco_ground_truth(Dataset.from_list(rows))
    annotation = coco_ground_truth(Dataset.from_list(rows), class_names=["a"]).anns[1]
    assert annotation["area"] == 12 and annotation["iscrowd"] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image_id": 3}, {"image_id": 3}], "more than once: 3"),
        ([{"image_id": 0.5}], "must hold integers"),
        ([{"image_id": 3, "label": 7}], "Image 3: category 7"),
        ([{"image_id": 3, "label": False}], "Image 3: category False"),
    ],
)
def test_unusable_ground_truth(rows, message):
    rows = [
        {"image_id": row["image_id"], "width": 9, "height": 9}
        | {"objects": {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [row.get("label", 0)]}}
        for row in rows
    ]
    with pytest.raises(ValueError, match=message):
        coco_ground_truth(Dataset.from_list(rows), class_names=["a"])
    with pytest.raises(ValueError, match="no column height, width"):
        coco_ground_truth(Dataset.from_list(rows).remove_columns(["width", "height"]), class_names=["a"])


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


@pytest.mark.parametrize("field", ["scores", "boxes"])
def test_predictions_that_are_not_numbers(field):
    dataset, predictions = random_case(7)
    image_id = next(i for i, p in predictions.items() if len(p["scores"]))
    predictions[image_id][field][0] = float("nan")
    with pytest.raises(ValueError, match=f"images {image_id} are NaN"):
        scored(dataset, predictions)


def test_predictions_that_do_not_fit():
    dataset, predictions = random_case(7)
    image_id, prediction = next((i, p) for i, p in predictions.items() if len(p["scores"]) > 1)
    with pytest.raises(ValueError, match=f"Image {image_id}: scores"):
        CocoEvaluator(dataset).update([image_id], [{**prediction, "labels": prediction["labels"][1:]}])


def test_annotation_id_zero_is_refused():
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1}],
        "categories": [{"id": 0, "name": "a"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 0, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    }
    truth.createIndex()
    with pytest.raises(ValueError, match="id 0"):
        CocoEvaluator(truth)


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


@pytest.mark.parametrize(("names", "persons"), [(None, True), (COCO_KEYPOINTS, True), (["paw"] * 17, False)])
def test_seventeen_keypoints_are_those_of_persons_unless_they_have_other_names(names, persons, caplog):
    points = [10.0, 10, 2] * 17
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    category = {"id": 1, "name": "x"} | ({"keypoints": list(names)} if names else {})
    images = [{"id": 1, "width": 64, "height": 48}]
    truth = make_coco(images, [{**annotation, "keypoints": points, "num_keypoints": 17}], [category])
    sigmas = CocoEvaluator(truth, iou_types=["keypoints"]).sigmas
    assert np.array_equal(sigmas, COCO_PERSON_SIGMAS if persons else [DEFAULT_SIGMA] * 17)
    assert ("no sigmas for 17 keypoints" in caplog.text) is not persons
    assert ("17 keypoints without names are scored with the sigmas of COCO's person" in caplog.text) is (not names)


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


GOOD = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}


def one_object(**changes):
    annotation = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return make_coco([{"id": 1, "width": 99, "height": 99}], [annotation], [{"id": 0, "name": "a"}])


@pytest.mark.parametrize(
    ("field", "value"),
    [("bbox", [10, 10, float("nan"), 20]), ("bbox", [10, 10, float("inf"), 20]), ("bbox", [30, 30, -20, 20]),
     ("bbox", [30, 30, 20, -1]), ("bbox", [1, 2, 3]), ("bbox", "10 10 20 20"), ("bbox", ["1", 1, 2, 2]), ("bbox", ...),
     ("area", float("nan")), ("area", -4), ("area", None), ("area", ...), ("area", "400"), ("iscrowd", -1),
     ("iscrowd", 2), ("iscrowd", "0"), ("iscrowd", None), ("iscrowd", ...), ("iscrowd", float("nan")),
     ("category_id", 7), ("category_id", "0"), ("category_id", False), ("area", True),
     ("bbox", [True, 1, 2, 3])],
)  # fmt: skip
def test_impossible_truth_is_named_with_image_and_field(field, value):
    with pytest.raises(ValueError, match=f"Image 1, annotation 1: {field} .*correct the annotation"):
        CocoEvaluator(one_object(**{field: value}))


@pytest.mark.parametrize("change", [{"bbox": np.array([1.0, 2, 3, 4])}, {"iscrowd": np.int64(1)}, {"iscrowd": False},
                                    {"area": 0}, {"bbox": (-5, -5, 0, 7)}])  # fmt: skip
def test_unusual_truth_that_means_something_is_taken(change):
    assert CocoEvaluator(one_object(**change)).image_ids.tolist() == [1]


@pytest.mark.parametrize("image_id", ["1", 9, None])
def test_annotations_of_unknown_images_are_named(image_id, caplog):
    with pytest.raises(ValueError, match="1 of 1 annotations .* image_id that none of its images has"):
        CocoEvaluator(one_object(image_id=image_id))
    content = one_object().dataset
    annotations = [*content["annotations"], GOOD | {"id": 2, "image_id": 9}]
    for name in (1, "a"):  # numbers, and ids that become numbers
        images = [content["images"][0] | {"id": name}]
        truth = make_coco(images, [annotations[0] | {"image_id": name}, annotations[1]], content["categories"])
        evaluator = CocoEvaluator(truth)
        assert "1 of 2 annotations" in caplog.text and "such as 9 of annotation 2" in caplog.text
        evaluator.update([name], [{"scores": [0.9], "labels": [0], "boxes": [[10, 10, 30, 30]]}])
        assert evaluator.compute()["map"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": [False]}, "labels are true or false"), ({"labels": torch.tensor([False])}, "labels are true or false"),
     ({"scores": [True]}, "scores are true or false"), ({"boxes": np.ones((1, 4), bool)}, "boxes are true or false"),
     ({"labels": [0.7]}, "labels must be integers"), ({"labels": torch.tensor([2**32])}, "labels must be integers"),
     ({"labels": [float("nan")]}, "labels must be integers"), ({"boxes": [[30, 10, 10, 30]]}, "with x1 <= x2"),
     ({"boxes": torch.tensor([[10.0, 30, 30, 10]])}, r"not \[10.0, 30.0, 30.0, 10.0\]"),
     ({"boxes": np.array([[10.0, 30, 30, 10]])}, "with x1 <= x2")],
)  # fmt: skip
def test_impossible_predictions_are_named_with_image_and_field(change, message):
    evaluator, good = CocoEvaluator(one_object()), {"scores": [0.9], "labels": [0], "boxes": [[10, 10, 30, 30]]}
    with pytest.raises(ValueError, match=f"Image 1: .*{message}"):
        evaluator.update([1], [good | change])
    corners = {name: value for name, value in good.items() if name != "boxes"} | {"boxes_xywh": [[10, 10, -20, 20]]}
    with pytest.raises(ValueError, match="Image 1: boxes must be"):
        evaluator.update([1], [corners])
    evaluator.update([1], [good | {"labels": [0.0]}])
    assert evaluator.compute()["map"] == pytest.approx(1)


@pytest.mark.parametrize("sigma", [float("nan"), float("inf"), 0.0, -1.0])
def test_sigmas_must_be_positive_numbers(sigma):
    truth = one_object(keypoints=[10, 10, 2] * 3, num_keypoints=3)
    for sigmas in ([0.1, sigma, 0.1], {0: [0.1, sigma, 0.1]}):
        with pytest.raises(ValueError, match="3 positive numbers"):
            CocoEvaluator(truth, iou_types=["keypoints"], sigmas=sigmas)


def test_masks_may_come_as_run_lengths():
    truth, predictions = random_coco(5)
    dense, encoded = (CocoEvaluator(truth, iou_types=["segm"]) for _ in range(2))
    dense.update(list(predictions), list(predictions.values()))
    results = {image_id: [] for image_id in predictions}
    for each in dense.predictions_json():
        results[each["image_id"]].append(each["segmentation"])
    assert sum(map(len, results.values())) > 20
    encoded.update(list(predictions), [{**p, "masks": results[i]} for i, p in predictions.items()])
    assert encoded.compute() == dense.compute()


@pytest.mark.parametrize("field", ["masks", "keypoints"])
def test_masks_and_keypoints_must_fit(field):
    truth, predictions = random_coco(5)
    image_id = next(i for i, p in predictions.items() if len(p["scores"]) > 1)
    prediction = predictions[image_id]
    evaluator = CocoEvaluator(truth, iou_types=["segm", "keypoints"])
    with pytest.raises(ValueError, match=f"Image {image_id}: .*{field}.* do not fit"):
        evaluator.update([image_id], [{**prediction, field: prediction[field][:, :-1]}])
    with pytest.raises(ValueError, match=f"has no '{field}'"):
        evaluator.update([image_id], [{k: v for k, v in prediction.items() if k != field}])


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


@pytest.mark.parametrize("backend", ["pycocotools", "ultrafast"])
@pytest.mark.parametrize("kind", ["large", "huge", "text"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_image_ids_are_exact_whatever_they_are(backend, kind, iou_type):
    if backend == "ultrafast":
        pytest.importorskip("ultrafast_pycocotools")
    truth, predictions = random_coco(5)
    renamed = {
        "large": lambda image_id: 2**53 + 1 + image_id,
        "huge": lambda image_id: 2**70 + image_id,
        "text": lambda image_id: f"a/{image_id:05d}.jpg",
    }[kind]
    content = truth.dataset
    images = [{**image, "id": renamed(image["id"])} for image in content["images"]]
    annotations = [{**each, "image_id": renamed(each["image_id"])} for each in content["annotations"]]
    other = as_coco(images, annotations, content["categories"])
    scores, worst = [], []
    for coco, found in ((truth, predictions), (other, {renamed(i): each for i, each in predictions.items()})):
        evaluator = CocoEvaluator(coco, iou_types=[iou_type], sigmas=SIGMAS, backend=backend)
        evaluator.update(list(found), list(found.values()))
        scores.append(evaluator.compute() | evaluator.analyze().summary())
        worst.append([each.image_id for each in evaluator.analyze().worst_images()])
        assert {each["image_id"] for each in evaluator.predictions_json()} <= set(found)
    assert scores[0] == scores[1] and worst[1] == [renamed(image_id) for image_id in worst[0]]


def test_neighbouring_large_ids_are_two_images():
    """In float64 both are 2 ** 53."""
    images = [{"id": 2**53 + n, "width": 10, "height": 10} for n in range(3)]
    record = {"category_id": 0, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}
    annotations = [{**record, "id": n + 1, "image_id": 2**53 + n} for n in range(3)]
    evaluator = CocoEvaluator(as_coco(images, annotations, [{"id": 0, "name": "a"}]), backend="auto")
    box = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([0])}
    evaluator.update([2**53 + n for n in range(3)], [box] * 3)
    assert evaluator.compute()["map"] == pytest.approx(1)


def test_ids_of_two_kinds_are_refused():
    images = [{"id": 1, "width": 10, "height": 10}, {"id": "b", "width": 10, "height": 10}]
    with pytest.raises(ValueError, match="all integers or all texts"):
        CocoEvaluator(as_coco(images, [], [{"id": 0, "name": "a"}]))


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
