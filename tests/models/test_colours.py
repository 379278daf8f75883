"""What an image processor does to the colours of a picture, as numbers."""

import numpy as np
import pytest
import torch

from rfdetr_hf import RFDETRImageProcessor
from rfdetr_hf.models.colours import colour_statistics, normalization


@pytest.mark.parametrize(
    "options", [{}, {"do_normalize": False}, {"do_rescale": False}, {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.5},
                {"rescale_factor": 1 / 128}, {"do_rescale": False, "do_normalize": False}],
)  # fmt: skip
def test_the_numbers_make_the_pixels_of_the_processor(options):
    processor = RFDETRImageProcessor(size={"height": 8, "width": 8}, **options)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = processor(pixels, return_tensors="pt")["pixel_values"][0]
    values = torch.from_numpy(pixels).permute(2, 0, 1).double()
    mean, std, factor = normalization(processor)
    found = (values * factor - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-5)
    mean, std = (torch.tensor(each)[:, None, None] for each in colour_statistics(processor))
    torch.testing.assert_close(((values / 255 - mean) / std).float(), expected, atol=1e-4, rtol=1e-5)


def test_one_number_is_that_of_every_channel():
    processor = RFDETRImageProcessor(image_mean=0.25, image_std=[0.5])
    assert normalization(processor, 4) == ([0.25] * 4, [0.5] * 4, processor.rescale_factor)
