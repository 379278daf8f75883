"""An exported file against the model."""

import pytest
import torch

from rfdetr_hf.export.parity import ParityError, check_differences, largest_differences
from rfdetr_hf.export.wrapper import FixedSizeDetector


def test_parity_sees_an_error(detector):
    fixed = FixedSizeDetector(detector, (64, 64))
    differences = largest_differences(fixed, lambda x: [y + 0.01 for y in fixed(x)], fixed)
    with pytest.raises(ParityError, match="logits by 0.00.*pred_boxes by 0.0"):
        check_differences(differences, 1e-4)
    with pytest.raises(ParityError, match="logits by nan"):
        check_differences({"logits": float("nan")}, 1e-4)
    with pytest.raises(ParityError, match="shape"):
        largest_differences(fixed, lambda x: [y[:, :-1] for y in fixed(x)], fixed)
    broken = largest_differences(fixed, lambda x: [y * float("nan") for y in fixed(x)], fixed)
    assert broken["logits"] == float("inf")


def test_differences_are_relative_to_large_outputs(detector):
    fixed = FixedSizeDetector(detector, (64, 64))

    def scaled(pixels):
        return [output * 1000 for output in fixed(pixels)]

    differences = largest_differences(scaled, lambda x: [y * (1 + 3e-5) for y in scaled(x)], fixed)
    assert differences == pytest.approx({"logits": 3e-5, "pred_boxes": 3e-5}, rel=0.02)


def test_parity_sees_an_error_in_batches_alone(detector):
    fixed = FixedSizeDetector(detector, (64, 64))
    differences = largest_differences(fixed, lambda x: [y + len(x) - 1 for y in fixed(x)], fixed)
    assert min(differences.values()) > 0.1


def test_parity_leaves_out_what_rounding_decides(detector):
    fixed, compared = FixedSizeDetector(detector, (64, 64)), []
    tied = fixed.example(1, seed=0)[0]

    def reference(pixels):
        """The order of the first image turns over as soon as a pixel changes."""
        logits, boxes = fixed(pixels)
        compared.append(len(pixels))
        turned = (pixels == tied).flatten(1).all(1)
        return torch.where(turned[:, None, None], logits.flip(1), logits), boxes

    assert not torch.allclose(reference(tied[None])[0], fixed(tied[None])[0], atol=0.1)
    compared.clear()
    assert max(largest_differences(reference, fixed, fixed).values()) <= 1e-4
    # The tied image, two looks at it, and images of which four count.
    assert compared == [1, 1, 1, 2, 1, 2]
    with pytest.raises(ParityError, match="on 24 of 24 random images"):
        largest_differences(lambda x: [y + torch.rand(()) for y in fixed(x)], fixed, fixed)
