import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import fuzz_data


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", fuzz_data.TARGETS)
def test_spoiled_data_is_refused_or_repaired_or_rightly_passed(target, capsys):
    code = fuzz_data.main(["--count", "60", "--seed", "5000", "--targets", target])
    assert code == 0, capsys.readouterr().out
