import numpy as np
import pytest
import torch
from helpers.coco_cases import IOU_TYPES, SIGMAS, as_coco, random_coco

from rfdetr_hf.evaluation.analysis import DetectionAnalysis, confusion_matrix, operating_curves, worst_images
from rfdetr_hf.evaluation.error_types import KINDS, error_types
from rfdetr_hf.evaluation.evaluator import CocoEvaluator
from rfdetr_hf.evaluation.similarity import overlaps
from rfdetr_hf.inference.detector import above

CAT, DOG, COW = range(3)


def analysed(truth, predictions, iou_type="bbox", **options) -> DetectionAnalysis:
    evaluator = CocoEvaluator(truth, sigmas=SIGMAS, iou_types=[iou_type], **options)
    evaluator.update(list(predictions), list(predictions.values()))
    return evaluator.analyze()


def scene(truths, found, image_id=1):
    """Truths (label, box xyxy[, crowd]) and detections (label, score, box xyxy) of one image."""
    annotations = []
    for number, (label, (x1, y1, x2, y2), *crowd) in enumerate(truths, start=1):
        box = [x1, y1, x2 - x1, y2 - y1]
        record = {"id": number, "image_id": image_id, "category_id": label, "bbox": box, "area": box[2] * box[3]}
        annotations.append({**record, "iscrowd": int(bool(crowd))})
    names = [{"id": label, "name": name} for label, name in enumerate(("cat", "dog", "cow"))]
    truth = as_coco([{"id": image_id, "width": 400, "height": 300}], annotations, names)
    labels, scores, boxes = zip(*found, strict=True) if found else ((), (), ())
    prediction = {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }
    return truth, {image_id: prediction}


# One object of each kind of trouble; boxes of 100 x 100, 110 apart.
TROUBLE = scene(
    [(CAT, (0, 0, 100, 100)), (CAT, (110, 0, 210, 100)), (DOG, (220, 0, 320, 100)), (COW, (0, 150, 100, 250))]
    + [(COW, (110, 150, 210, 250)), (CAT, (220, 150, 320, 250), "crowd")],
    [
        (CAT, 0.95, (0, 0, 100, 100)),  # right
        (CAT, 0.9, (0, 0, 100, 90)),  # duplicate
        (CAT, 0.8, (150, 0, 250, 100)),  # localisation: IoU 60 / 140
        (CAT, 0.7, (220, 0, 320, 95)),  # classification: it is the dog
        (DOG, 0.6, (40, 150, 140, 250)),  # both: a cow, by IoU 60 / 140
        (DOG, 0.5, (300, 260, 400, 300)),  # background
        (CAT, 0.4, (230, 160, 300, 240)),  # inside a crowd: neither right nor wrong
    ],
)


def test_each_kind_of_error():
    analysis = analysed(*TROUBLE)
    names = [KINDS[k] if k >= 0 else "" for k in analysis.errors.kind]
    scores = analysis.evaluation.matches.score.round(2).tolist()
    expected = {0.9: "duplicate", 0.8: "localisation", 0.7: "classification", 0.6: "both", 0.5: "background"}
    assert dict(zip(scores, names, strict=True)) == {0.95: "", 0.4: "", **expected}
    assert analysis.errors.count == {**dict.fromkeys(KINDS, 1), "missed": 2}, "both cows"
    confident = error_types(analysis.evaluation, 0.75).confident
    assert [name for name, count in confident.items() if count == 1] == ["localisation", "duplicate"]
    assert confident["missed"] == 3, "above .75 nobody speaks for the dog"


def test_what_errors_cost():
    errors = analysed(*TROUBLE).errors
    cat_ap = np.mean(np.linspace(0, 1, 101) <= 0.5)  # one of two cats, found first
    assert errors.map_50 == pytest.approx(cat_ap / 3)
    # The dog is found by the detection that was called a cat, before the two false ones.
    assert errors.cost["classification"] == pytest.approx(1 / 3)
    # The second cat is right at rank 3: precision 2/3 from recall .51 on.
    assert errors.cost["localisation"] == pytest.approx((1 - cat_ap) * 2 / 3 / 3)
    assert errors.cost["duplicate"] == errors.cost["both"] == errors.cost["background"] == 0
    # No cow is left to find, and no cow was claimed.
    assert errors.cost["missed"] == pytest.approx(1 / 3)


def test_confusion_of_the_troubled_scene():
    evaluation = analysed(*TROUBLE).evaluation
    expected = np.zeros((4, 4), dtype=int)
    expected[CAT, CAT] = 1
    expected[DOG, CAT] = 1
    expected[CAT, 3] = 1
    expected[COW, 3] = 2
    expected[3, CAT] = 2
    expected[3, DOG] = 2
    np.testing.assert_array_equal(confusion_matrix(evaluation, 0.0), expected)
    expected[3, DOG] = expected[DOG, CAT] = 0
    expected[DOG, 3] = 1
    np.testing.assert_array_equal(confusion_matrix(evaluation, 0.75), expected)


def test_a_confused_object_is_taken_once_by_the_best_score():
    box = (0, 0, 100, 100)
    truth, found = scene([(DOG, box)], [(CAT, 0.5, box), (COW, 0.9, (0, 0, 100, 60)), (COW, 0.1, box)])
    matrix = confusion_matrix(analysed(truth, found).evaluation, 0.0)
    assert matrix[DOG].tolist() == [0, 0, 1, 0] and matrix[3].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(2, 8))
def test_counts_agree_with_a_plain_loop(seed, iou_type):
    analysis = analysed(*random_coco(seed), iou_type)
    matches, truths = analysis.evaluation.matches, analysis.evaluation.truths
    curves = operating_curves(analysis.evaluation)
    for at in (0, 30, 50, 77, 100):
        for k in range(len(curves.num_truths)):
            chosen = [
                i
                for i in range(len(matches.row))
                if matches.category[i] == k and matches.score[i] > np.float32(at / 100)
            ]
            right = sum(matches.truth[i] >= 0 and not matches.ignored[i] for i in chosen)
            wrong = sum(matches.truth[i] < 0 and not matches.ignored[i] for i in chosen)
            wanted = sum((truths.category == k) & ~truths.ignored)
            assert (curves.true_positives[k, at], curves.false_positives[k, at]) == (right, wrong)
            assert curves.num_truths[k] == wanted
            assert curves.f1[k, at] == pytest.approx(2 * right / max(right + wrong + wanted, 1))
            assert curves.recall[k, at] == pytest.approx(right / max(wanted, 1))
            assert curves.precision[k, at] == pytest.approx(right / max(right + wrong, 1))
    with_truth = curves.num_truths > 0
    best = analysis.summary()
    assert best["f1"] == curves.f1[with_truth].mean(axis=0).max() == curves.macro("f1")[curves.best]
    assert best["score_threshold"] == (curves.thresholds[curves.best] if best["f1"] else -1)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(2, 8))
def test_sums_of_the_confusion_matrix(seed, iou_type):
    analysis = analysed(*random_coco(seed), iou_type)
    curves = analysis.curves
    for at in (0, 40, 70):
        matrix = confusion_matrix(analysis.evaluation, at / 100)
        np.testing.assert_array_equal(matrix[:-1].sum(axis=1), curves.num_truths)
        detections = (curves.true_positives + curves.false_positives)[:, at]
        np.testing.assert_array_equal(matrix[:, :-1].sum(axis=0), detections)
        np.testing.assert_array_equal(np.diag(matrix)[:-1], curves.true_positives[:, at])
        assert matrix[-1, -1] == 0


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_ap_of_the_matches_is_cocos(iou_type):
    costly = 0
    for seed in range(2, 8):
        evaluation = analysed(*random_coco(seed), iou_type).evaluation
        precision = evaluation.precision[0, :, :, 0, -1]
        errors = error_types(evaluation, 0.5)
        assert errors.map_50 == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
        wrong = evaluation.matches.wrong
        assert (errors.kind[wrong] >= 0).all() and (errors.kind[~wrong] == -1).all()
        assert all(cost > -1e-12 for cost in errors.cost.values())
        costly += sum(cost > 0 for cost in errors.cost.values())
    assert costly > 12


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_overlaps_are_those_of_the_matching(iou_type):
    seen = 0
    for seed in range(2, 8):
        evaluation = analysed(*random_coco(seed), iou_type).evaluation
        matches = np.flatnonzero(evaluation.matches.correct)
        for pairs in overlaps(evaluation, matches, np.flatnonzero(~evaluation.truths.ignored)):
            own = evaluation.matches.truth[pairs.match] == pairs.truth
            assert own.sum() == len(matches) and (pairs.overlap[own] >= 0.5 - 1e-9).all()
            assert (np.diff(pairs.match) >= 0).all() and ((pairs.overlap >= 0) & (pairs.overlap <= 1 + 1e-9)).all()
            seen += len(pairs.match)
    assert seen > 50


def test_pairs_come_in_chunks_without_a_change(monkeypatch):
    evaluation = analysed(*random_coco(5)).evaluation
    whole = error_types(evaluation, 0.3), confusion_matrix(evaluation, 0.1)
    monkeypatch.setattr("rfdetr_hf.evaluation.similarity._PAIRS_AT_ONCE", 7)
    assert sum(1 for _ in overlaps(evaluation, np.arange(len(evaluation.matches.row)), np.arange(3))) > 3
    parts = error_types(evaluation, 0.3), confusion_matrix(evaluation, 0.1)
    np.testing.assert_array_equal(parts[0].kind, whole[0].kind)
    np.testing.assert_array_equal(parts[1], whole[1])
    assert parts[0].cost == whole[0].cost


def test_worst_images():
    truth, predictions = random_coco(6)
    evaluation = analysed(truth, predictions).evaluation
    rows = worst_images(evaluation, 0.4, limit=3)
    errors = [row.false_positives + row.missed for row in rows]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0
    matrix = confusion_matrix(evaluation, 0.4)
    everything = worst_images(evaluation, 0.4, limit=99)
    assert sum(row.true_positives for row in everything) <= np.diag(matrix).sum()
    assert sum(row.false_positives for row in everything) == matrix[:, :-1].sum() - np.diag(matrix).sum()
    assert sum(row.missed for row in everything) == matrix[:-1].sum() - np.diag(matrix).sum()


def test_nothing_found_and_nothing_there():
    for case in (scene([(CAT, (0, 0, 9, 9))], []), scene([], [(CAT, 0.5, (0, 0, 9, 9))]), scene([], [])):
        analysis = analysed(*case)
        assert analysis.summary() == {"precision": 0, "recall": 0, "f1": 0, "score_threshold": -1}
        assert analysis.confusion.sum() == len(analysis.evaluation.matches.row) + len(analysis.evaluation.truths.id)
        assert max(analysis.errors.cost.values()) <= 1 and len(analysis.per_class()) == 3
        assert [row["map"] for row in analysis.per_class()][1:] == [-1, -1]


def test_table_of_the_classes():
    rows = analysed(*TROUBLE).per_class()
    assert [row["name"] for row in rows] == ["cat", "dog", "cow"] and [row["objects"] for row in rows] == [2, 1, 2]
    assert rows[0]["recall"] == 0.5 and rows[0]["best_threshold"] == 0.9 and rows[0]["best_f1"] == pytest.approx(2 / 3)
    assert rows[2]["map"] == rows[2]["f1"] == 0


def test_curves_count_what_predictions_keep():
    scores = torch.linspace(0, 1, 101)
    box = (0, 0, 9, 9)
    truth, predictions = scene([(CAT, box)], [(CAT, score, box) for score in scores.tolist()])
    curves = analysed(truth, predictions, max_dets=200).curves
    counted = (curves.true_positives + curves.false_positives)[CAT]
    for threshold, count in zip(curves.thresholds.tolist(), counted.tolist(), strict=True):
        kept = above({"scores": scores, "labels": torch.zeros(101, dtype=torch.int64)}, [threshold])
        assert count == len(kept["scores"]) == (scores > threshold).sum() == (scores > torch.tensor(threshold)).sum()


def test_no_threshold_is_best_where_nothing_is_right():
    truth, predictions = scene([(CAT, (0, 0, 100, 100)), (DOG, (200, 0, 300, 100))], [
        (CAT, 0.9, (0, 0, 100, 100)), (DOG, 0.8, (0, 150, 100, 250)), (COW, 0.7, (0, 150, 100, 250)),
    ])  # fmt: skip
    analysis = analysed(truth, predictions)
    assert [row["best_threshold"] for row in analysis.per_class()] == [0.0, None, None]
    assert [note for note in analysis.notes() if "best_threshold for dog:" in note]
    silent = analysed(truth, {1: {**predictions[1], "labels": torch.full((3,), COW)}})
    assert silent.summary() == {"precision": 0, "recall": 0, "f1": 0, "score_threshold": -1}


def test_limits_that_hide_objects_are_named():
    grid = [(20.0 * (i % 25), 20.0 * (i // 25)) for i in range(250)]
    truths = [(CAT, (x, y, x + 15, y + 15)) for x, y in grid]
    found = [(CAT, 0.9, (x, y, x + 15, y + 15)) for x, y in grid]
    at_hundred, at_three_hundred = (analysed(*scene(truths, found), max_dets=limit) for limit in (100, 300))
    assert at_hundred.summary()["recall"] == pytest.approx(0.4)
    (note,) = at_hundred.notes()
    assert "more than 100 objects" in note and "at least 150 objects count as missed" in note and "max_dets" in note
    (note,) = at_three_hundred.notes()
    assert "more than 100 objects" in note and "at least 150 objects are missed there" in note and "map_at_300" in note
    assert at_three_hundred.summary()["recall"] == pytest.approx(1)
    note = analysed(*scene(truths, found[:200]), max_dets=300).notes()[-1]
    assert "up to 250" in note and "200" in note and "num_queries" in note
