import pytest

from rfdetr_hf import make_shapes_dataset


@pytest.fixture(scope="module")
def written_splits():
    return {"train": make_shapes_dataset(40, image_size=64, seed=1), "validation": make_shapes_dataset(7, seed=2)}
