import pytest

from rfdetr_hf import load_detection_dataset


@pytest.fixture(scope="module")
def scored_shapes():
    return load_detection_dataset("synthetic-shapes")["test"].select(range(10))
