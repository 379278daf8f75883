"""Devices and processes by number."""

import pytest

from rfdetr_hf import EvaluateArguments, PredictArguments


@pytest.mark.parametrize(("device", "expected"), [("0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), (None, None)])
def test_a_number_is_that_of_a_gpu(device, expected):
    assert EvaluateArguments(model_name_or_path="m", device=device).device == expected
    assert PredictArguments(model_name_or_path="m", images=["a.jpg"], device=device).device == expected


@pytest.mark.parametrize("device", ["0,1", "gpu", "cuda:x", ""])
def test_a_device_that_is_none_is_refused_by_name(device):
    with pytest.raises(ValueError, match="device=.*cuda:1"):
        EvaluateArguments(model_name_or_path="m", device=device)
