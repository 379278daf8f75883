"""A detector's answer to what is no list of images."""

import numpy as np
import pytest
from PIL import Image

from rfdetr_hf import ImageDetector, RFDETRImageProcessor


@pytest.mark.parametrize(
    ("images", "kind"),
    [
        (Image.new("RGB", (8, 8)), "Image$"),
        ("photo.jpg", "str in it$"),
        (["photo.jpg"], "str in it$"),
        ([np.zeros((8, 8, 3), np.uint8)], "ndarray in it$"),
    ],
)
def test_what_is_no_list_of_images_gets_a_sentence(tiny_model, images, kind):
    detect = ImageDetector(tiny_model(), RFDETRImageProcessor(size=64))
    with pytest.raises(TypeError, match=rf"detect\(\[Image\.open\(path\)\]\), and got {kind}"):
        detect(images)
