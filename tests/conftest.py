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


@pytest.fixture(scope="session")
def tiny_config():
    """Builds the configuration of a model that trains in seconds on a CPU: `tiny_config(names, **overrides)`."""
    from rfdetr_hf import RFDETRConfig

    def build(names=("circle", "square", "triangle"), **overrides):
        backbone = {
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 2,
            "out_indices": [1, 2, 3], "image_size": 64, **overrides.pop("backbone_config", {}),
        }  # fmt: skip
        fields = {
            "resolution": 64, "d_model": 32, "decoder_ffn_dim": 64, "decoder_layers": 2, "num_queries": 10,
            "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 4, "group_detr": 3,
            "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}, **overrides,
        }  # fmt: skip
        return RFDETRConfig.from_variant("nano", backbone_config=backbone, **fields)

    return build


@pytest.fixture
def tiny_model(tiny_config):
    """Builds a seeded model of `tiny_config`: `tiny_model(seed=0, **overrides)`."""
    from rfdetr_hf import RFDETRForObjectDetection

    def build(seed=0, **overrides):
        torch.manual_seed(seed)
        return RFDETRForObjectDetection(tiny_config(**overrides))

    return build
