import pytest
from helpers import models


@pytest.fixture
def deep_config():
    """Makes the configuration of a model with 4 blocks (the last one unused), 6 queries and 3 groups."""
    return models.deep_config
