"""Which weights have been the best so far."""

import pytest

from rfdetr_hf import BestModel
from rfdetr_hf.training.best import candidate_scores


@pytest.mark.parametrize(
    ("metric", "larger"),
    [("map", True), ("raw_map_50", True), ("loss", False), ("eval_raw_loss", False), ("loss_bbox", False),
     ("my_loss", False), ("lossless", True), ("val1_raw_loss_giou", False), ("my_loss,raw_my_loss", False),
     ("logloss", False), ("valLoss", False), ("focal-loss", False), ("recall_loss", False), ("hair_loss_map", True),
     ("hair_loss_segm_map_50_at_500", True), ("map_class_weight_loss", True), ("a_mar_100_class_loss", True),
     ("hair_loss_loss_ce_0", False), ("hair_loss_logloss", False)],
)  # fmt: skip
def test_losses_are_better_when_smaller(metric, larger):
    best = BestModel(metric)
    assert best.greater_is_better is larger
    assert BestModel(metric, greater_is_better=not larger).greater_is_better is not larger


def test_the_best_of_the_first_epochs_does_not_count_their_last_evaluation_included():
    """skip_best_epochs=2 leaves out what the official package calls the epochs 0 and 1."""
    best = BestModel("map", skip_epochs=2)
    assert [best.update({"eval_map": 1 / epoch}, epoch, step=epoch) for epoch in (1, 1.5, 2, 2.5, 3)] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert BestModel("map").update({"eval_map": 0.1}, epoch=0, step=0), "eval_on_start competes"


def test_candidates_of_the_best_model():
    metrics = {"eval_raw_map": 0.1, "eval_map": 0.2, "eval_map_50": 0.9, "eval_raw_hits": 7.0}
    assert list(candidate_scores(metrics, "map, raw_map").items()) == [("raw", 0.1), ("ema", 0.2)]
    assert candidate_scores(metrics, "eval_map") == {"ema": 0.2}
    assert candidate_scores(metrics, "eval_raw_map") == {"raw": 0.1}
    assert candidate_scores(metrics, "map_50", use_ema=False) == {"raw": 0.9}
    assert candidate_scores(metrics, "raw_hits") == {"ema": 7.0}  # a user's name, not that of raw weights
    several = {"eval_day_raw_map": 0.1, "eval_day_map": 0.2, "eval_night_map": 0.3}
    assert candidate_scores(several, "day_map,day_raw_map") == {"raw": 0.1, "ema": 0.2}
    assert candidate_scores(several, "night_map") == {"ema": 0.3}


def test_ema_weights_must_be_strictly_better_and_so_must_a_later_evaluation():
    best = BestModel("map,raw_map")
    assert best.update({"eval_raw_map": 0.5, "eval_map": 0.5}, epoch=1, step=10)
    assert (best.source, best.step) == ("raw", 10)
    assert not best.update({"eval_raw_map": 0.5, "eval_map": 0.4}, epoch=2, step=20)
    assert best.update({"eval_raw_map": 0.5, "eval_map": 0.6}, epoch=3, step=30)
    assert (best.source, best.step, best.score) == ("ema", 30, 0.6)


@pytest.mark.parametrize(("greater", "later"), [(True, 0.6), (False, 0.4)])
def test_skipped_epochs_choose_nothing(greater, later):
    best = BestModel("map", greater_is_better=greater, skip_epochs=2)
    assert not best.update({"eval_map": 0.5}, epoch=2, step=1)
    assert best.score is None
    assert best.update({"eval_map": 0.5}, epoch=2.1, step=2)
    assert best.update({"eval_map": later}, epoch=3, step=3)


def test_smoothing_and_state():
    best = BestModel("map", smooth_alpha=0.5)
    best.update({"eval_map": 0.4}, epoch=1, step=1)
    again = BestModel("map", smooth_alpha=0.5)
    again.load_state_dict(best.state_dict())
    assert again.update({"eval_map": 0.8}, epoch=2, step=2)
    assert again.score == pytest.approx(0.6)
    assert not again.update({"eval_map": 0.5}, epoch=3, step=3)


def test_nan_is_never_the_best():
    best = BestModel("map")
    assert not best.update({"eval_map": float("nan")}, epoch=1, step=1)
    assert best.update({"eval_map": 0.0}, epoch=2, step=2)


def test_scores_of_ema_weights_are_not_smoothed():
    best = BestModel("map,raw_map", smooth_alpha=0.5, smooth_ema=False)
    for step, score in enumerate((0.2, 0.8), start=1):
        best.update({"eval_map": score, "eval_raw_map": score}, epoch=step, step=step)
    assert best.smoothed == {"raw": pytest.approx(0.5), "ema": 0.8} and best.source == "ema"
