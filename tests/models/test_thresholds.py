"""One threshold for all classes, or one for each."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rfdetr_hf import ImageDetector, RFDETRForKeypointDetection, RFDETRForObjectDetection, RFDETRImageProcessor

PROCESSOR = RFDETRImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture
def outputs():
    """Two images, three queries, three classes; class 1 is less sure."""
    scores = torch.tensor([[[0.9, 0.3, 0.1], [0.6, 0.35, 0.2], [0.2, 0.1, 0.55]], [[0.1, 0.2, 0.3]] * 3])
    return SimpleNamespace(logits=scores.logit(), pred_boxes=torch.rand(2, 3, 4))


def found(outputs, threshold, **options):
    each = PROCESSOR.post_process_object_detection(outputs, threshold, top_k=9, **options)
    return [[(round(s, 2), int(k)) for s, k in zip(x["scores"].tolist(), x["labels"], strict=True)] for x in each]


@pytest.mark.parametrize(
    "threshold", [[0.7, 0.25, 0.5], (0.7, 0.25, 0.5), torch.tensor([0.7, 0.25, 0.5]), np.array([0.7, 0.25, 0.5]),
                  {0: 0.7, 1: 0.25}]
)  # fmt: skip
def test_thresholds_by_class(outputs, threshold):
    assert found(outputs, threshold) == [[(0.9, 0), (0.55, 2), (0.35, 1), (0.3, 1)], []]


def test_equal_thresholds_are_one(outputs):
    for threshold in (0.15, 0.5, -1.0):
        expected = PROCESSOR.post_process_object_detection(outputs, threshold)
        each = PROCESSOR.post_process_object_detection(outputs, [threshold] * 3)
        for one, other in zip(expected, each, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (None, "threshold=None"),
        ("high", "threshold='high'"),
        ([0.5], r"1 are given for 3 classes"),
        ([0.5, "x", 0.5], "of 1='x'"),
        (50, "threshold=50 must be a number of at most 1"),
        (float("nan"), "threshold=nan"),
        (float("-inf"), "threshold=-inf"),
        ([0.5, float("nan"), 0.2], "of 1=nan"),
        (torch.tensor([True, False, True]), "of 0=True"),
        (np.array([0.5, 50, 0.5]), "of 1=50.0"),
        ({0: True}, "of 0=True"),
        ([[0.1, 0.2, 0.3]], "of 0="),
        ({"bee": 0.5}, "class 'bee'.*model.detect knows names"),
        ({7: 0.5}, "class 7"),
        (True, "threshold=True"),
    ],
)
def test_thresholds_that_are_none(outputs, threshold, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR.post_process_object_detection(outputs, threshold)


def test_the_model_knows_the_names(deep_config):
    model = RFDETRForObjectDetection(deep_config(id2label={0: "ant", 1: "bee", 2: "cat"}, num_labels=3)).eval()
    with torch.no_grad():
        model.class_embed.bias.copy_(torch.tensor([0.3, 0.5, 0.4]).logit())
        model.class_embed.weight.zero_()
        outputs = model(torch.zeros(1, 3, 64, 64))
    for threshold, labels in (({"bee": 0.45}, {1}), ({"bee": 0.55}, set()), ({1: 0.45, "ant": 0.9}, {1})):
        (each,) = model.detect(outputs, PROCESSOR, threshold, [(64, 64)])
        assert set(each["labels"].tolist()) == labels
    wrong = [
        ({"dog": 0.5}, "class 'dog'.*ant, bee, cat"),
        ({0: 0.3, "ant": 0.9}, "0 and 'ant' are one class"),
        ({"bee": 50}, "of 'bee'=50 must"),
        ({"bee": True}, "of 'bee'=True"),
    ]
    for threshold, message in wrong:
        with pytest.raises(ValueError, match=message):
            model.detect(outputs, PROCESSOR, threshold)
        with pytest.raises(ValueError, match=message):
            ImageDetector(model, PROCESSOR, threshold=threshold)


def test_keypoints_by_class(deep_config, rng):
    model = RFDETRForKeypointDetection(deep_config(num_keypoints_per_class=[2, 0, 3])).eval()
    outputs = model(torch.randn(2, 3, 64, 64, generator=rng))
    every = model.detect(outputs, PROCESSOR, -1.0)
    limits = [1.0, 0.0, 1.0, 0.0, 1.0]
    for all_of, each in zip(every, model.detect(outputs, PROCESSOR, limits), strict=True):
        kept = (all_of["labels"] == 1) | (all_of["labels"] == 3)
        assert torch.equal(each["scores"], all_of["scores"][kept])
        assert torch.equal(each["labels"], all_of["labels"][kept])
