"""Whether an exported model gives what the model gives."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .program import FixedSizeDetector

Runner = Callable[[Tensor], Sequence[Tensor]]

TOLERANCE = 1e-4
_CANDIDATES = 16


class ParityError(RuntimeError):
    """An exported model differs from its source."""


@torch.no_grad()
def largest_differences(
    reference: Runner, exported: Runner, detector: FixedSizeDetector, batches: Sequence[int] = (1, 3)
) -> dict[str, float]:
    """The largest absolute difference of each output over random batches of several sizes.

    The model ranks the cells of an image and takes the best. Where two are equal to rounding, the order, and with it
    the output, is undefined, and no two implementations agree. Such images are recognised by the model's own answer to
    a perturbation of the size of rounding errors, and others are drawn.

    Args:
        reference: the source model: pixels (B, 3, H, W) to its outputs in the order of `detector.output_names`.
        exported: the exported model, likewise.
        detector: gives size and names.
        batches: batch sizes to try.
    """
    worst = dict.fromkeys(detector.output_names, 0.0)
    images = _decided_images(reference, detector, sum(batches))
    for pixels in images.split(list(batches)):
        for name, expected, found in zip(detector.output_names, reference(pixels), exported(pixels), strict=True):
            if found.shape != expected.shape:
                raise ParityError(f"{name} has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
            difference = (found.double() - expected.double()).abs().max().item()
            worst[name] = max(worst[name], difference)
    return worst


def _decided_images(reference: Runner, detector: FixedSizeDetector, count: int) -> Tensor:
    kept = []
    for seed in range(count + _CANDIDATES):
        pixels = detector.example(1, seed)
        generator = torch.Generator().manual_seed(seed)
        noise = 1 + 1e-6 * torch.randn(pixels.shape, generator=generator)
        pairs = zip(reference(pixels), reference(pixels * noise), strict=True)
        if all(torch.allclose(a, b, atol=TOLERANCE / 2, rtol=0) for a, b in pairs):
            kept.append(pixels)
        if len(kept) == count:
            return torch.cat(kept)
    raise ParityError(
        f"of {count + _CANDIDATES} random images the model decides only {len(kept)} beyond rounding errors: parity "
        "cannot be checked. Are the weights trained, and free of NaN?"
    )


def check_differences(differences: dict[str, float], tolerance: float) -> None:
    """Raise a `ParityError` that names the outputs above the tolerance."""
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}
    if wrong:
        told = ", ".join(f"{name} by {value:.3g}" for name, value in wrong.items())
        raise ParityError(f"the exported model differs from its source: {told}; the tolerance is {tolerance:g}")
