import numpy as np
import pytest
import torch
from helpers.coco_cases import as_coco, random_coco
from helpers.scenes import CAT, analysed, scene

from rfdetr_hf.evaluation.analysis import confusion_matrix, worst_images


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


def test_of_many_classes_without_a_threshold_some_are_named():
    names = [{"id": label, "name": f"c{label}"} for label in range(80)]
    boxes = [
        {"id": n + 1, "image_id": 1, "category_id": n, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0} for n in range(8)
    ]
    truth = as_coco([{"id": 1, "width": 40, "height": 30}], boxes, names)
    nothing = {"labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0), "boxes": torch.zeros(0, 4)}
    (note,) = analysed(truth, {1: nothing}).notes()
    assert note.startswith(
        "no best_threshold for c0, c1, c2, c3, c4 and 3 more, as the table of the classes (per_class"
    )


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
