"""Figures of an evaluation."""

import io

import pytest
import torch
from helpers.coco_cases import random_coco
from helpers.detectors import forgetful
from PIL import Image

from rfdetr_hf import CocoEvaluator, evaluate_detector
from rfdetr_hf.evaluation import plots


def test_drawn_boxes_have_the_colour_of_their_fate(scored_shapes):
    done = evaluate_detector(forgetful(scored_shapes), scored_shapes)
    worst = done.analysis.worst_images(1)[0]
    side = scored_shapes[0]["width"]
    drawn = plots.draw_errors(done.analysis, Image.new("RGB", (side, side)), worst.image_id)
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in drawn.getcolors(1 << 20)}
    assert drawn.width == 900 and plots.MISSED in colours
    assert (plots.RIGHT in colours) == (worst.true_positives > 0)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_figures_of_odd_cases(seed):
    """No truth at all, no detections at all, and an ordinary case."""
    truth, predictions = random_coco(seed)
    evaluator = CocoEvaluator(truth)
    evaluator.update(list(predictions), list(predictions.values()))
    analysis = evaluator.analyze()
    for draw in (plots.pr_curves, plots.threshold_curves, plots.confusion_figure, plots.error_costs):
        file = io.BytesIO()
        draw(analysis).savefig(file)
        assert Image.open(file).width >= 500


def test_large_confusion_matrices_keep_the_large_classes():
    matrix = torch.zeros(101, 101, dtype=torch.int64).numpy()
    matrix[7, 7], matrix[99, 3], matrix[100, 5] = 50, 20, 9
    small, names = plots._largest_classes(matrix, [str(i) for i in range(100)] + ["background"])
    assert len(names) == 60 == len(small) and {"7", "99", "background"} <= set(names) and small.max() == 50
