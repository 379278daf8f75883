import pytest
from helpers.exported import SMALL, build

from rfdetr_hf import RFDETRForObjectDetection


@pytest.fixture
def detector(tiny_config):
    return build(RFDETRForObjectDetection, tiny_config(decoder_layers=1, backbone_config=SMALL))
