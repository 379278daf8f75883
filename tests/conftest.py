import os
from pathlib import Path

# Before torch reads it, here and in the processes that tests start: threads of several workers get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state per process; each test starts without one."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def golden():
    """Load the golden numbers of one variant: `golden("nano")`."""
    return lambda variant: torch.load(GOLDEN / f"{variant}.pt", weights_only=True)


@pytest.fixture
def rng() -> torch.Generator:
    """Random numbers of a seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def shapes(request):
    """Images of synthetic shapes, 24 or as many as the test module says in `SHAPES`."""
    from rfdetr_hf import make_shapes_dataset

    return make_shapes_dataset(getattr(request.module, "SHAPES", 24), image_size=64, seed=1)


@pytest.fixture(scope="session")
def tiny_config():
    """Builds the configuration of a model that trains in seconds on a CPU: `tiny_config(names, **overrides)`."""
    from helpers import models

    return models.tiny_config


@pytest.fixture
def tiny_model():
    """Builds a seeded model of `tiny_config`: `tiny_model(seed=0, **overrides)`."""
    from helpers import models

    return models.tiny_model


@pytest.fixture
def lively_model(tiny_model):
    """Three blocks, of which the last is not used; no parameter at zero."""
    model = tiny_model(backbone_config={"out_indices": [1, 2]})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def sound_folder(tmp_path):
    """A COCO layout of two splits that nothing is wrong with."""
    from helpers.findings import write_sound_folder

    write_sound_folder(tmp_path / "data")
    return tmp_path / "data"
