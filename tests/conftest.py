import os
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets (bccd, coco128, coco_person); tests that need it skip without it."""
    root = os.environ.get("RFDETR_TEST_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("set RFDETR_TEST_DATA to the folder of real test data")
    return Path(root)


@pytest.fixture(scope="session")
def golden():
    """Load the golden numbers of one variant: `golden("nano")`."""
    return lambda variant: torch.load(GOLDEN / f"{variant}.pt", weights_only=True)
