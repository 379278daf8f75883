import logging

import pytest
import torch

from rfdetr_hf import RFDETRForObjectDetection


@pytest.fixture
def saved(deep_config, tmp_path):
    """A model with random weights (5 classes, 6 queries, 3 groups, 4 x 4 positions) and its folder."""
    torch.manual_seed(0)
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"}
    model = RFDETRForObjectDetection(deep_config(id2label=names)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.1
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.fixture
def table(caplog):
    """Lines of the table of adaptations of the last load; empty if nothing was adapted."""
    caplog.set_level(logging.INFO, logger="rfdetr_hf")
    return lambda: [line for record in caplog.records for line in record.getMessage().splitlines()[2:]]
