import importlib.util
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


@pytest.mark.parametrize("target", ["images", "models"])
def test_damaged_inputs_are_named_or_read(target):
    path = Path(__file__).parents[2] / "tools" / "fuzz_predict.py"
    spec = importlib.util.spec_from_file_location("fuzz_predict", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    statuses, _, changed = tool.run(target, count=40, seed=7)
    assert not [status for status in statuses if status.startswith("WRONG")]
    assert statuses["named"] > 5 and changed >= 32
