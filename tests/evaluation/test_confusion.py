"""Which class is taken for which."""

import numpy as np
import pytest
from helpers.coco_cases import IOU_TYPES, random_coco
from helpers.scenes import CAT, COW, DOG, TROUBLE, analysed, scene

from rfdetr_hf.evaluation.analysis import confusion_matrix, operating_curves


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
