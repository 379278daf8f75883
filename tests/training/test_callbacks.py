import csv
import sys

import pytest
from transformers import TrainerControl, TrainerState

from rfdetr_hf import BestModel, EarlyStopping, RFDETRTrainingArguments
from rfdetr_hf.training.callbacks import MetricsCsvCallback, ProgressCallback, log_line, time_left
from rfdetr_hf.training.meters import speeds

ARGS = RFDETRTrainingArguments()


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def log(callback, step, **logs):
    callback.on_log(ARGS, TrainerState(global_step=step), TrainerControl(), logs=logs)


def test_metrics_csv_grows_columns_and_leaves_out_timings(tmp_path):
    callback = MetricsCsvCallback(tmp_path / "metrics.csv")
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    log(callback, 1, loss=0.5, epoch=0.1, images_per_second=9.0, eta=3.0, data_wait=0.1, memory_gb=1.0)
    log(callback, 2, eval_map=0.25, epoch=0.2, **speeds("eval", 3.0, 6, 3))
    assert read(tmp_path / "metrics.csv") == [
        {"step": "1", "epoch": "0.1", "loss": "0.5", "eval_map": ""},
        {"step": "2", "epoch": "0.2", "loss": "", "eval_map": "0.25"},
    ]


def test_values_of_a_user_are_no_timings_whatever_they_are_called(tmp_path):
    callback = MetricsCsvCallback(tmp_path / "metrics.csv")
    callback.on_train_begin(ARGS, TrainerState(), TrainerControl())
    own = {"eval_beta": 1.0, "eval_theta": 2.0, "eval_boxes_per_second": 3.0, "eval_build_runtime": 4.0, "eta": 5.0}
    log(callback, 1, epoch=0.1, **own, **speeds("eval", 3.0, 6, 3), **speeds("eval_night", 3.0, 6, 3))
    log(callback, 2, epoch=0.2, train_runtime=6.0)
    first, second = read(tmp_path / "metrics.csv")
    assert {name: float(first[name]) for name in own} == own and second["train_runtime"] == "6.0"
    assert not {"eval_runtime", "eval_night_runtime", "eval_night_samples_per_second"} & set(first)
    state = TrainerState(global_step=1, max_steps=2)
    assert log_line(state, {"loss": 1.0, "epoch": 0.1, "my_map": "high"}, {}) == "step 1/2 epoch 0.10 | "


def test_metrics_csv_of_a_resumed_run_goes_on_from_what_the_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,loss\n1,0.1,1.0\n2,0.2,2.0\n3,0.3,3.0\n4,0.")  # cut off by a kill
    figures = {"images_per_second": 9.0, "eta": 3.0, "data_wait": 0.1}
    history = [{"loss": 1.0, **figures, "epoch": 0.1, "step": 1}, {"loss": 2.0, "epoch": 0.2, "step": 2}]
    callback = MetricsCsvCallback(path)
    callback.on_train_begin(ARGS, TrainerState(global_step=2, log_history=history), TrainerControl())
    log(callback, 3, loss=7.0, epoch=0.3)
    assert [tuple(row.values()) for row in read(path)] == [
        ("1", "0.1", "1.0"),
        ("2", "0.2", "2.0"),
        ("3", "0.3", "7.0"),
    ]


def test_no_metrics_csv_without_a_training(tmp_path):
    log(MetricsCsvCallback(tmp_path / "metrics.csv"), 0, eval_map=0.5)
    assert list(tmp_path.iterdir()) == []


def test_log_lines_of_training_and_evaluation():
    state = TrainerState(global_step=5, max_steps=100)
    logs = {
        "loss": 2.0, "loss_now": 1.5, "loss_ce": 0.5, "loss_bbox": 0.1, "loss_giou": 0.2, "grad_norm": 3.0,
        "epoch": 0.5, "learning_rate": 1e-4, "images_per_second": 12.0, "data_wait": 0.25, "memory_gb": 2.0,
        "eta": 3725, "skipped_steps": 2,
    }  # fmt: skip
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_ce_0": 1.0, "loss_ce_enc": 1.0}
    logs |= {"loss_ce_0": 0.25, "loss_ce_enc": 0.25}
    line = log_line(state, logs | {"loss": 1.9}, weights)
    for part in ("step 5/100", "| loss 1.5 avg 1.9 = ce 1 + bbox 0.5 + giou 0.4 |", "lr 1.00e-04", "12.0 img/s",
                 "data wait 25%", "2.0 GB", "skipped 2", "ETA 1:02:05"):  # fmt: skip
        assert part in line
    assert "giou 0.4 + other 0.1 |" in log_line(state, logs, weights), "of a loss that a subclass computes"
    assert (
        log_line(state, {"eval_map": 0.5, "eval_map_small": 0.1, "eval_runtime": 3.0, "epoch": 1.0}, weights)
        == "step 5/100 epoch 1.00 | eval_map 0.5000"
    )
    assert time_left(59.9) == "0:00:59"


def evaluate(callback, epoch, **metrics):
    control = TrainerControl()
    callback.on_evaluate(ARGS, TrainerState(epoch=epoch), control, metrics=metrics)
    return control.should_training_stop


def test_early_stopping_counts_evaluations_without_enough_improvement():
    callback = EarlyStopping("map", patience=2, threshold=0.01)
    scores = [0.1, 0.2, 0.205, 0.3, 0.3, 0.3]
    assert [evaluate(callback, i, eval_map=s) for i, s in enumerate(scores)] == [False] * 5 + [True]


def test_early_stopping_takes_the_better_of_two_scores_and_skips_early_epochs():
    callback = EarlyStopping("map,raw_map", patience=1, skip_epochs=2)
    assert not evaluate(callback, 1, eval_map=0.9, eval_raw_map=0.9)
    assert not evaluate(callback, 2, eval_map=0.8, eval_raw_map=0.8)
    assert callback.best is None
    assert not evaluate(callback, 2.5, eval_map=0.1, eval_raw_map=0.4)
    assert callback.best == 0.4
    assert not evaluate(callback, 3, eval_map=0.5, eval_raw_map=0.2)
    assert evaluate(callback, 4, eval_map=0.4, eval_raw_map=0.45)


def test_early_stopping_ignores_other_evaluations():
    callback = EarlyStopping("raw_map", patience=1)
    assert not evaluate(callback, 1, eval_map=0.9)
    assert callback.best is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_no_score_for_early_stopping_and_for_the_best_model(value):
    stopping, best = EarlyStopping("map,raw_map", patience=2), BestModel("map,raw_map", smooth_alpha=0.5)
    for epoch, metrics in enumerate([{"eval_raw_map": value, "eval_map": 0.3}, {"eval_map": value}], start=1):
        assert not evaluate(stopping, epoch, **metrics)
        best.update(metrics, epoch, step=epoch)
    assert (stopping.best, best.score, best.source) == (0.3, 0.3, "ema")
    assert evaluate(stopping, 3, eval_map=value)


def test_early_stopping_by_a_loss_stops_when_it_rises():
    callback = EarlyStopping("loss", patience=1)
    assert not evaluate(callback, 1, eval_loss=2.0)
    assert not evaluate(callback, 2, eval_loss=1.0)
    assert evaluate(callback, 3, eval_loss=1.5) and callback.best == 1.0


def test_minus_one_means_no_objects_only_among_cocos_scores():
    for metric, kept in (("corr", -1.0), ("map", None), ("day_map_50_class_map", None), ("raw_corr,corr", -1.0)):
        stopping, best = EarlyStopping(metric, patience=2), BestModel(metric)
        name = metric.split(",")[-1]
        evaluate(stopping, 1, **{f"eval_{name}": -1.0})
        best.update({f"eval_{name}": -1.0}, 1, step=1)
        assert (stopping.best, best.score) == (kept, kept)


def test_early_stopping_state_round_trip():
    callback = EarlyStopping("map", patience=2)
    evaluate(callback, 1, eval_map=0.5)
    evaluate(callback, 2, eval_map=0.4)
    again = EarlyStopping.from_state(callback.state())
    assert (again.best, again.evaluations_without_improvement) == (0.5, 1)
    assert evaluate(again, 3, eval_map=0.4)
    again.on_train_begin(None, TrainerState(global_step=3), None)
    assert again.best == 0.5, "a run that goes on"
    again.on_train_begin(None, TrainerState(), None)
    assert (again.best, again.evaluations_without_improvement) == (None, 0), "another training of the same trainer"


@pytest.mark.parametrize("seen", [True, False])
def test_a_bar_is_shown_where_somebody_sees_it(seen, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: seen)
    callback, state = ProgressCallback(), TrainerState(max_steps=3, is_world_process_zero=True)
    callback.on_train_begin(ARGS, state, TrainerControl())
    callback.on_prediction_step(ARGS, state, TrainerControl(), eval_dataloader=[1, 2])
    callback.on_evaluate(ARGS, state, TrainerControl())
    callback.close()
    shown = capsys.readouterr().err
    assert ("0/3" in shown) == seen and ("evaluating" in shown) == seen and (seen or not shown)
