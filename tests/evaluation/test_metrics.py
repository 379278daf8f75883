"""Scores of classes and operating curves."""

import pytest
import torch
from helpers.scenes import CAT, COW, DOG, TROUBLE, analysed, scene

from rfdetr_hf.inference.detector import above


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
