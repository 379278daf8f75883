"""Overlaps of boxes, masks and keypoints."""

import numpy as np
import pytest
from helpers.coco_cases import IOU_TYPES, random_coco
from helpers.scenes import analysed

from rfdetr_hf.evaluation.analysis import confusion_matrix
from rfdetr_hf.evaluation.error_types import error_types
from rfdetr_hf.evaluation.similarity import overlaps


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
