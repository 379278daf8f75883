"""Whether an exported model gives what the model gives."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .wrapper import FixedSizeDetector

Runner = Callable[[Tensor], Sequence[Tensor]]

TOLERANCE = 1e-4
# Images that have to be compared, and images that are tried for it at most.
_COMPARED, _MOST_IMAGES = 4, 24
# A smooth answer moves by about the size of the noise, a changed order by far more.
_NOISE, _NOISE_DRAWS, _JUMP = 1e-4, 4, 0.02


class ParityError(RuntimeError):
    """An exported model differs from its source."""


@torch.no_grad()
def largest_differences(
    reference: Runner, exported: Runner, detector: FixedSizeDetector, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """The largest difference of each output over random images, in batches of one and two.

    It is absolute where the output stays within [-1, 1], and relative to its largest value in the image otherwise: mask
    logits of a hundred have no fifth decimal in float32.

    The model ranks the cells of an image and takes the best. Where two of them are equal to rounding, the order, and
    with it the output, is undefined, and no two implementations agree. An image on which they disagree is therefore
    left out if the model disagrees with itself as soon as the image is disturbed a little; otherwise it counts.

    Args:
        reference: the source model: pixels (B, 3, H, W) to its outputs in the order of `detector.output_names`.
        exported: the exported model, likewise.
        detector: gives size and names.
        tolerance: from which on two outputs disagree.

    Raises:
        ParityError: shapes differ, or too many images are undefined.
    """
    worst, compared, seen = dict.fromkeys(detector.output_names, 0.0), 0, 0
    while compared < _COMPARED:
        if seen >= _MOST_IMAGES:
            raise ParityError(
                f"on {seen - compared} of {seen} random images the model's own answer depends on rounding: parity "
                "cannot be checked. Are the weights trained, and free of NaN?"
            )
        # Batches of one and of two in turn: the seeds are 0, 1, 3, 4, 6, ...
        batch_size = 2 if seen % 3 == 1 else 1
        pixels = detector.example(batch_size, seed=seen)
        for image, differences in zip(pixels, _differences(reference, exported, detector, pixels), strict=True):
            seen += 1
            if max(differences) <= tolerance or not _is_undefined(reference, image[None]):
                compared += 1
                worst = {name: max(worst[name], value) for name, value in zip(worst, differences, strict=True)}
    return worst


def _differences(
    reference: Runner, exported: Runner, detector: FixedSizeDetector, pixels: Tensor
) -> list[tuple[float, ...]]:
    """For each image the largest difference of each output."""
    each = []
    for name, expected, found in zip(detector.output_names, reference(pixels), exported(pixels), strict=True):
        if found.shape != expected.shape:
            raise ParityError(f"{name} has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        size = expected.double().abs().flatten(1).amax(1).clamp(min=1)
        difference = (found.double() - expected.double()).abs().flatten(1).amax(1) / size
        each.append(difference.nan_to_num(nan=math.inf).tolist())
    return list(zip(*each, strict=True))


def _is_undefined(reference: Runner, image: Tensor) -> bool:
    outputs = reference(image)
    for seed in range(_NOISE_DRAWS):
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        disturbed = reference(image * (1 + _NOISE * noise))
        pairs = zip(outputs, disturbed, strict=True)
        if not all(torch.allclose(a, b, atol=_JUMP, rtol=0) for a, b in pairs):
            return True
    return False


def check_differences(differences: dict[str, float], tolerance: float) -> None:
    """Raise a `ParityError` that names the outputs above the tolerance."""
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}
    if wrong:
        listed = ", ".join(f"{name} by {value:.3g}" for name, value in wrong.items())
        raise ParityError(f"the exported model differs from its source: {listed}; the tolerance is {tolerance:g}")
