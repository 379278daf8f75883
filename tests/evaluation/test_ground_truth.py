"""The truth that is scored: what of a data set or a COCO object is taken, and what is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.coco_cases import SIGMAS, as_coco, random_coco
from helpers.scored_cases import GOOD, NAMES, make_dataset, one_object, random_case, scored
from pycocotools.coco import COCO

from rfdetr_hf import CocoEvaluator
from rfdetr_hf.data.keypoints import COCO_KEYPOINTS, DEFAULT_SIGMA
from rfdetr_hf.evaluation.backends import COCO_PERSON_SIGMAS
from rfdetr_hf.evaluation.evaluator import coco_ground_truth
from rfdetr_hf.evaluation.ground_truth import make_coco


def test_areas_and_crowds_come_from_the_annotations():
    box = [10.0, 10.0, 50.0, 50.0]
    objects = {"bbox": [box, [200.0, 0.0, 100.0, 100.0]], "category": [0, 0], "area": [900.0, 1.0], "iscrowd": [0, 1]}
    dataset = make_dataset([{"image_id": 5, "objects": objects}])
    boxes = torch.tensor([[10.0, 10, 60, 60], [210.0, 10, 250, 50], [260.0, 10, 290, 50]])
    prediction = {"scores": torch.tensor([0.5, 0.9, 0.8]), "labels": torch.zeros(3, dtype=torch.int64), "boxes": boxes}
    scores = scored(dataset, {5: prediction}).compute()
    assert scores["map"] == pytest.approx(1), "detections inside a crowd are neither right nor wrong"
    assert scores["map_small"] == pytest.approx(1) and scores["map_medium"] == -1


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


@pytest.mark.parametrize("sigma", [float("nan"), float("inf"), 0.0, -1.0])
def test_sigmas_must_be_positive_numbers(sigma):
    truth = one_object(keypoints=[10, 10, 2] * 3, num_keypoints=3)
    for sigmas in ([0.1, sigma, 0.1], {0: [0.1, sigma, 0.1]}):
        with pytest.raises(ValueError, match="3 positive numbers"):
            CocoEvaluator(truth, iou_types=["keypoints"], sigmas=sigmas)


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
