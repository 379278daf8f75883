"""Kinds of errors, and what each costs."""

import numpy as np
import pytest
from helpers.coco_cases import IOU_TYPES, random_coco
from helpers.scenes import TROUBLE, analysed

from rfdetr_hf.evaluation.error_types import KINDS, error_types


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
