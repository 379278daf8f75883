"""Names of metrics: of now and of before, and which values are better."""

import pytest

from rfdetr_hf import RFDETRTrainingArguments


@pytest.mark.parametrize(
    ("values", "prefixes", "task", "metric"),
    [
        ({}, ("",), "detection", "map"),
        ({"eval_raw_weights": True}, ("raw_", ""), "segmentation", "segm_map"),
        ({"use_ema": False}, ("",), "keypoints", "keypoint_map"),
    ],
)
def test_task_and_evaluated_weights_decide_the_metric_of_the_best_model(values, prefixes, task, metric):
    args = RFDETRTrainingArguments(**values)
    assert args.evaluated_prefixes == prefixes
    assert args.for_run(task).metric_for_best_model == metric


@pytest.mark.parametrize(
    ("earlier", "sets", "now"),
    [
        ("ema_map", None, "map"), ("eval_ema_segm_map", None, "eval_segm_map"), ("map", None, "map"),
        ("day_ema_map_50", {"day": 1, "night": 2}, "day_map_50"), ("ema_map", {"ema": 1}, "ema_map"),
    ],
)  # fmt: skip
def test_a_metric_with_its_earlier_name_is_understood_and_named(earlier, sets, now, caplog):
    args = RFDETRTrainingArguments(metric_for_best_model=earlier)
    assert args.for_run("detection", sets).metric_for_best_model == now
    assert (f"{earlier} is called {now} now" in caplog.text) == (earlier != now)


@pytest.mark.parametrize(
    ("metric", "larger"),
    [(None, True), ("hair_loss_iou", True), ("hair_loss_iou_loss", False), ("hair_loss", False)],
)
def test_the_name_of_an_evaluation_set_decides_no_direction(metric, larger):
    args = RFDETRTrainingArguments(metric_for_best_model=metric)
    assert args.for_run("detection", {"hair_loss": 1, "hair": 2}).greater_is_better is larger
