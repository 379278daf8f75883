import pytest
from helpers import models
from helpers.checkpoints import arguments, finish

from rfdetr_hf import make_shapes_dataset


@pytest.fixture(scope="session")
def two_checkpoints(tmp_path_factory):
    """The folder of a run that was saved after each of two steps; tests work on copies."""
    shapes = make_shapes_dataset(24, image_size=64, seed=1)
    root = tmp_path_factory.mktemp("two")
    options = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}
    finish(models.tiny_model(), arguments(root, **options), shapes)
    return root
