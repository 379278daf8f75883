"""What an image processor does to the colours of a picture, as numbers."""

from typing import NamedTuple

import numpy as np

from .image_processing_rfdetr import RFDETRImageProcessor


class Normalization(NamedTuple):
    """A model's input is (pixel * factor - mean) / std, of pixels from 0 to 255; mean and std by channel."""

    mean: list[float]
    std: list[float]
    factor: float


def normalization(processor: RFDETRImageProcessor, channels: int = 3) -> Normalization:
    """What a processor does to each channel: nothing where `do_rescale` or `do_normalize` are off."""
    given = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (np.resize(np.asarray(value, np.float64), channels).tolist() for value in given)
    return Normalization(mean, std, float(processor.rescale_factor) if processor.do_rescale else 1.0)


def colour_statistics(processor: RFDETRImageProcessor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, for values in [0, 1], by which a processor makes a model's input of bytes."""
    mean, std, factor = normalization(processor)
    return tuple(value / (255 * factor) for value in mean), tuple(value / (255 * factor) for value in std)
