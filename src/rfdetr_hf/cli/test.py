"""`rfdetr-hf test`: COCO metrics of a trained model on the test split."""

from collections.abc import Sequence

from . import validate


def main(argv: Sequence[str]) -> int:
    """Evaluate the test split; returns the exit code."""
    return validate.main(argv, verb="test", split="test")
