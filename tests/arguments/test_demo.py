"""Options of a demo."""

import pytest

from rfdetr_hf import DemoArguments


@pytest.mark.parametrize("space", ["shapes", "me/my/shapes", ""])
def test_a_space_has_a_user_and_a_name(space):
    with pytest.raises(ValueError, match="space=.*give user/name"):
        DemoArguments("model", space=space)
    assert DemoArguments("model", space="me/shapes").space == "me/shapes"


@pytest.mark.parametrize("options", [{"port": 0}, {"port": 65536}, {"threshold": 1.5}, {"device": "gpu"}])
def test_values_out_of_their_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        DemoArguments("model", **options)
    assert DemoArguments("model", port=65535, threshold=1.0, device="0").device == "cuda:0"
