import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from helpers.coco_cases import IOU_TYPES, SIGMAS, as_coco, pycocotools_run, random_coco

from rfdetr_hf import CocoEvaluator
from rfdetr_hf.evaluation.backends import evaluate

BACKENDS = ["pycocotools"]
if importlib.util.find_spec("ultrafast_pycocotools"):
    BACKENDS.append("ultrafast")
FAST_SEEDS, ALL_SEEDS = range(24), range(24, 224)


def scored(truth, predictions, **options) -> CocoEvaluator:
    evaluator = CocoEvaluator(truth, sigmas=SIGMAS, **options)
    for image_id, prediction in predictions.items():
        evaluator.update([image_id], [prediction])
    return evaluator


def check_parity(truth, predictions, backend, max_dets) -> int:
    """Arrays, statistics and matches equal to the last bit; returns how many detections were right."""
    evaluator = scored(truth, predictions, iou_types=IOU_TYPES, backend=backend, max_dets=max_dets)
    scores, right = evaluator.compute(), 0
    for iou_type in IOU_TYPES:
        limits = sorted({1, 10, 100, max_dets})
        expected, ours = pycocotools_run(truth, predictions, iou_type, limits), evaluator.run(iou_type)
        for name in ("precision", "recall", "scores"):
            np.testing.assert_array_equal(getattr(ours, name), expected.eval[name], err_msg=f"{iou_type} {name}")
        if len(expected.stats):
            prefix = {"bbox": "", "segm": "segm_", "keypoints": "keypoint_"}[iou_type]
            own = [v for k, v in scores.items() if k.startswith(prefix + "ma") and "_at_" not in k]
            assert own == [v for v in expected.stats.tolist()]
        np.testing.assert_array_equal(match_ids(ours), pycocotools_matches(expected))
        right += int(ours.matches.correct.sum())
    return right


def match_ids(evaluation) -> np.ndarray:
    """Rows of detection id, annotation id (0: none), ignored, in the order of the matches."""
    matches = evaluation.matches
    ids = np.append(evaluation.truths.id, 0)[matches.truth]
    return np.stack([matches.row + 1, ids, matches.ignored], axis=1)


def pycocotools_matches(run) -> np.ndarray:
    rows = [np.zeros((0, 3))]
    for cell in run.evalImgs:
        if cell is not None and cell["aRng"] == run.params.areaRng[0] and cell["dtIds"]:
            rows.append(np.stack([cell["dtIds"], cell["dtMatches"][0], cell["dtIgnore"][0]], axis=1))
    return np.concatenate(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_pycocotools_on_random_cases(backend):
    assert sum(check_parity(*random_coco(seed), backend, 100 if seed % 3 else 300) for seed in FAST_SEEDS) > 200


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_pycocotools_on_many_random_cases(backend):
    for seed in ALL_SEEDS:
        check_parity(*random_coco(seed), backend, 100 if seed % 3 else 300)


def noisy_detections(truth, seed=0) -> dict[int, dict]:
    """What a middling detector might say: moved boxes, confused classes, repeats, inventions, tied scores."""
    rng, labels, found = np.random.default_rng(seed), sorted(truth.cats), {}
    for image_id in truth.imgs:
        boxes = [a["bbox"] for a in truth.imgToAnns[image_id] for _ in range(rng.integers(0, 4))]
        classes = [a["category_id"] for a in truth.imgToAnns[image_id]] or labels
        boxes = np.array(
            boxes + [[*rng.uniform(0, 300, 2), *rng.uniform(5, 200, 2)] for _ in range(rng.integers(1, 12))]
        )
        boxes += rng.normal(0, 0.08, boxes.shape) * boxes[:, [2, 3, 2, 3]]
        boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
        found[image_id] = {
            "scores": torch.from_numpy(np.round(rng.random(len(boxes)), 2)).float(),
            "labels": torch.from_numpy(rng.choice(classes, len(boxes))),
            "boxes": torch.from_numpy(boxes).float(),
        }
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["bccd/test", "bccd/valid", "coco128", "coco_person"])
def test_equals_pycocotools_on_real_labels(data_root, name, backend):
    truth = real_truth(data_root, name)
    predictions = noisy_detections(truth)
    expected = pycocotools_run(truth, predictions, "bbox")
    evaluator = CocoEvaluator(truth, backend=backend)
    evaluator.update(list(predictions), list(predictions.values()))
    ours = evaluator.run()
    for array in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(ours, array), expected.eval[array])
    np.testing.assert_array_equal(match_ids(ours), pycocotools_matches(expected))
    assert list(evaluator.compute().values()) == expected.stats.tolist()
    assert 0.05 < expected.stats[0] < 0.9


def real_truth(data_root, name):
    files = sorted((data_root / name).rglob("*.json"))
    if files:
        content = json.loads(files[0].read_text())
        annotations = [{**a, "id": n, "iscrowd": a.get("iscrowd", 0)} for n, a in enumerate(content["annotations"], 1)]
        return as_coco(content["images"], annotations, content["categories"])
    images, annotations = [], []
    for number, path in enumerate(sorted((data_root / name).rglob("labels/**/*.txt"))):
        images.append({"id": number, "width": 640, "height": 480})
        for line in path.read_text().splitlines():
            label, x, y, w, h = map(float, line.split()[:5])
            box = [(x - w / 2) * 640, (y - h / 2) * 480, w * 640, h * 480]
            record = {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "bbox": box}
            annotations.append({**record, "area": box[2] * box[3], "iscrowd": 0})
    return as_coco(images, annotations, [{"id": i, "name": str(i)} for i in range(80)])


def test_unknown_choices_are_refused():
    truth, predictions = random_coco(3)
    with pytest.raises(ValueError, match="backend 'fast'.*pycocotools, ultrafast, auto"):
        CocoEvaluator(truth, backend="fast")
    with pytest.raises(ValueError, match="iou_types"):
        CocoEvaluator(truth, iou_types=["boxes"])
    evaluator = scored(truth, predictions)
    with pytest.raises(ValueError, match="made for bbox"):
        evaluator.run("segm")
    with pytest.raises(ValueError, match="iou_type 'boxes'"):
        evaluate(truth, evaluator.run().detections, evaluator.image_ids, evaluator.image_ids > 0, iou_type="boxes")


def test_a_missing_backend_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ultrafast_pycocotools", None)
    truth, predictions = random_coco(3)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[fast-eval\]'"):
        scored(truth, predictions, backend="ultrafast").run()


def test_truth_must_have_what_is_scored():
    truth, _ = random_coco(3)
    del truth.anns[2]["segmentation"], truth.anns[1]["keypoints"]
    with pytest.raises(ValueError, match="1 of .* annotations have no segmentation: ids 2"):
        CocoEvaluator(truth, iou_types=["segm"])
    with pytest.raises(ValueError, match="no keypoints: ids 1"):
        CocoEvaluator(truth, iou_types=["keypoints"])
    assert not any(math.isnan(v) for v in scored(*random_coco(4)).compute().values())


def of_category(truth, predictions, category, count):
    """Objects and detections of one category, with its first keypoints alone."""
    annotations = [
        {**each, "keypoints": each["keypoints"][: 3 * count]}
        for each in truth.dataset["annotations"]
        if each["category_id"] == category
    ]
    found = {}
    for image_id, prediction in predictions.items():
        own = prediction["labels"] == category
        found[image_id] = {name: value[own] for name, value in prediction.items()}
        found[image_id]["keypoints"] = found[image_id]["keypoints"][:, :count]
    return as_coco(truth.dataset["images"], annotations, [truth.cats[category]]), found


def with_padding(truth, predictions, counts, generator):
    """Objects lose the keypoints that their category has not; detections have anything there."""
    for annotation in truth.dataset["annotations"]:
        count = counts[annotation["category_id"]]
        annotation["keypoints"][3 * count :] = [0.0] * (15 - 3 * count)
        annotation["num_keypoints"] = sum(v > 0 for v in annotation["keypoints"][2::3])
    for prediction in predictions.values():
        for points, label in zip(prediction["keypoints"], prediction["labels"].tolist(), strict=True):
            points[counts[label] :] = 1000 * torch.rand(5 - counts[label], 3, generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sigmas_by_category_equal_a_run_of_each(backend):
    """Arrays and matches are those of pycocotools on each category by itself, without any padding."""
    generator, right = torch.Generator().manual_seed(0), 0
    for seed in FAST_SEEDS:
        truth, predictions = random_coco(seed)
        kinds = ((0.05, 0.1, 0.03, 0.07, 0.02), (0.2, 0.01), (), (0.1, 0.1, 0.3))
        sigmas = {category: kinds[i % 4] for i, category in enumerate(sorted(truth.cats))}
        counts = {category: len(own) for category, own in sigmas.items()}
        with_padding(truth, predictions, counts, generator)
        evaluator = CocoEvaluator(truth, iou_types=["keypoints"], sigmas=sigmas, backend=backend)
        evaluator.update(list(predictions), list(predictions.values()))
        ours = evaluator.run()
        for position, (category, own) in enumerate(sorted(sigmas.items())):
            if not own:
                assert (ours.precision[:, :, position] == -1).all() and category not in scored_labels(ours)
                continue
            cut = of_category(truth, predictions, category, len(own))
            expected = pycocotools_run(*cut, "keypoints", sigmas=np.array(own))
            np.testing.assert_array_equal(ours.precision[:, :, position], expected.eval["precision"][:, :, 0])
            np.testing.assert_array_equal(ours.recall[:, position], expected.eval["recall"][:, 0])
            np.testing.assert_array_equal(ours.scores[:, :, position], expected.eval["scores"][:, :, 0])
            matched = match_ids(ours)[ours.matches.category == position][:, 1:]
            np.testing.assert_array_equal(matched, pycocotools_matches(expected)[:, 1:])
        right += int(ours.matches.correct.sum())
        labels = ours.detections.rows["label"][ours.matches.row]
        assert (labels == np.array(ours.category_ids)[ours.matches.category]).all()
        assert set(evaluator.compute(per_class=True)) and evaluator.analyze().per_class()
    assert right > 50


def scored_labels(evaluation):
    return set(evaluation.detections.rows["label"][evaluation.matches.row].tolist())


def test_sigmas_by_category_must_fit():
    truth, _ = random_coco(3)
    sigmas = dict.fromkeys(truth.cats, [0.1] * 5)
    first = min(truth.cats)
    with pytest.raises(ValueError, match="name the categories of the ground truth, each once; see 1000"):
        CocoEvaluator(truth, iou_types=["keypoints"], sigmas=sigmas | {1000: [0.1]})
    with pytest.raises(ValueError, match=f"sigmas of category {first} must be up to 5 positive"):
        CocoEvaluator(truth, iou_types=["keypoints"], sigmas=sigmas | {first: [0.1] * 6})
    with pytest.raises(ValueError, match="no keypoint in any category"):
        CocoEvaluator(truth, iou_types=["keypoints"], sigmas=dict.fromkeys(truth.cats, []))


@pytest.mark.parametrize("sigmas", [[0.1] * 4, [0.1] * 4 + [0.0]])
def test_sigmas_must_fit(sigmas):
    with pytest.raises(ValueError, match="5 positive numbers"):
        CocoEvaluator(random_coco(3)[0], iou_types=["keypoints"], sigmas=sigmas)


def test_default_sigmas(caplog):
    assert CocoEvaluator(random_coco(3)[0], iou_types=["keypoints"]).sigmas.tolist() == [0.1] * 5
    assert "no sigmas for 5 keypoints" in caplog.text
