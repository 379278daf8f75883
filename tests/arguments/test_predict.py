"""Options of a prediction."""

import pytest

from rfdetr_hf import PredictArguments


@pytest.mark.parametrize(
    "options",
    [{"threshold": 1.5}, {"keypoint_threshold": 1.0}, {"every": 0}, {"formats": ["xml"]}, {"task": "boxes"},
     {"scales": []}, {"device": "gpu"}],
)  # fmt: skip
def test_values_out_of_their_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        PredictArguments("model", ["a.jpg"], **options)


def test_defaults_are_of_each_object_and_a_number_is_a_gpu():
    first, second = PredictArguments("model", ["a.jpg"], device="1"), PredictArguments("model", ["a.jpg"])
    first.formats.append("json")
    first.scales.append(2.0)
    assert second.formats == ["pictures"] and second.scales == [1.0] and not second.fuses
    assert first.device == "cuda:1" and second.device is None
