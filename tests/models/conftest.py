import pytest
import torch
from helpers import models

from rfdetr_hf import RFDETRForObjectDetection


@pytest.fixture
def deep_config():
    """Makes the configuration of a model with 4 blocks (the last one unused), 6 queries and 3 groups."""
    return models.deep_config


@pytest.fixture
def fresh_graphs():
    """No graph of another test counts, before and after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model_folder(deep_config, tmp_path):
    torch.manual_seed(0)
    RFDETRForObjectDetection(deep_config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def model(deep_config):
    torch.manual_seed(0)
    return RFDETRForObjectDetection(deep_config())


@pytest.fixture
def lively(model, rng):
    """A model whose heads do not start at zero, in float64."""
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter += torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.1
    return model
