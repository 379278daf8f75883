"""How often an image is drawn: by the frequency of its classes."""

import pytest

from rfdetr_hf import load_detection_dataset
from rfdetr_hf.data.sampling import class_balanced, repeat_factors
from rfdetr_hf.data.schema import sample_weights


def test_repeat_factors_and_balanced_classes(street):
    train = load_detection_dataset(street / "a")["train"]
    # Of four images one shows a pedestrian, two a rider, one a car, and one nothing.
    assert repeat_factors(train, 0.5) == pytest.approx([2**0.5, 2**0.5, 1, 1])
    assert class_balanced(train) == pytest.approx([1 + 0.5, 1, 0.5, 1])
    drawn = load_detection_dataset(street / "a", sampling="repeat_factor", repeat_threshold=0.5)["train"]
    weights = sample_weights(drawn)
    assert weights == pytest.approx(repeat_factors(train, 0.5) / repeat_factors(train, 0.5).mean())
    mixed = [{"name_or_path": street / "a", "share": 1}, {"name_or_path": street / "b", "share": 1}]
    weights = sample_weights(load_detection_dataset(sources=mixed, sampling="class_balanced")["train"])
    assert weights[:4].sum() == pytest.approx(weights[4:].sum()) and weights[0] > weights[2]
