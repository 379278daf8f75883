"""Options of how a model looks at images."""

import pytest

from rfdetr_hf import ViewArguments


@pytest.mark.parametrize(
    "options", [{"scales": []}, {"scales": [1, 0]}, {"tile": 31}, {"tile": -64}, {"tile_overlap": 0.91}]
)
def test_views_that_cannot_be_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* is not valid"):
        ViewArguments(**options)


def test_views_at_the_ends_of_their_ranges_are_taken():
    args = ViewArguments(scales=[2], tile=32, tile_overlap=0.9)
    assert args.scales == [2.0] and args.fuses and args.tile == 32
    assert ViewArguments(flip=True).fuses and not ViewArguments(tile=640, scales=[1]).fuses


def test_only_boxes_are_merged():
    plain = ViewArguments()
    for task in ("detection", "segmentation", "keypoints"):
        plain.check_task(task)
    ViewArguments(flip=True, scales=[1, 2], tile=64).check_task("detection")
    for task, extra in (("segmentation", "masks"), ("keypoints", "keypoints")):
        with pytest.raises(ValueError, match=f"--flip, --scales, --tile: only boxes.* gives {extra}"):
            ViewArguments(flip=True, scales=[1, 2], tile=64).check_task(task)
        with pytest.raises(ValueError, match="^--tile: only"):
            ViewArguments(tile=64).check_task(task)
