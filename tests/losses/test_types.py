"""Targets of a loss: what is packed, and what is refused with the image named."""

import math

import pytest
import torch
import transformers
from helpers.plain_loss import CLASSES, make_targets

from rfdetr_hf.losses import pack_objects


def box_and(wrong):
    return torch.tensor([[0.5, 0.5, 0.1, 0.1], wrong])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_labels": torch.tensor([0, 5])}, r"image 1.*'class_labels' holds 5: classes are 0 to 4"),
        ({"class_labels": torch.tensor([-1, 0])}, r"image 1.*'class_labels' holds -1"),
        ({"class_labels": torch.tensor([0.0, 1.0])}, "image 1.*'class_labels' must be integers"),
        ({"class_labels": torch.tensor([[0, 1]])}, "image 1.*'class_labels' must be integers"),
        ({"boxes": torch.rand(2, 5)}, r"image 1.*'boxes'.*\(2, 4\).*\(2, 5\)"),
        ({"boxes": torch.rand(3, 4)}, r"image 1.*'boxes'.*\(2, 4\).*\(3, 4\)"),
        ({"boxes": torch.ones(2, 4, dtype=torch.int64)}, "image 1.*'boxes' must be floats"),
        ({"boxes": [[0.5] * 4] * 2}, "image 1.*'boxes' is a list, no tensor"),
        ({"class_labels": torch.tensor([0, -1])}, "image 1.*'class_labels' holds -1: classes are 0 to 4"),
        ({"boxes": box_and([0.5, math.nan, 0.1, 0.1])}, "image 1.*'boxes' holds .*nan.*are finite"),
        ({"boxes": box_and([0.5, 0.5, math.inf, 0.1])}, "image 1.*'boxes' holds .*inf"),
        ({"boxes": box_and([0.9, 0.9, -0.4, 0.1])}, "image 1.*'boxes' holds"),
        ({"boxes": box_and([320.0, 200.0, 50.0, 60.0])}, r"'boxes' holds \[320.*divide pixels"),
    ],
)
def test_targets_that_do_not_fit(rng, change, message):
    targets = make_targets(rng, (1, 2), CLASSES)
    targets[1] |= change
    with pytest.raises(ValueError, match=message):
        pack_objects(targets, torch.zeros(2, 4, CLASSES), 2, CLASSES)


def test_boxes_of_crops_are_never_refused_and_corners_are_told(rng, caplog):
    """A box may reach far out of a crop that nobody cut it at; boxes of corners cannot be proven."""
    transformers.utils.logging.warning_once.cache_clear()

    def packed(boxes):
        target = {"class_labels": torch.zeros(len(boxes), dtype=torch.int64), "boxes": boxes}
        return pack_objects([target], torch.zeros(1, 4, CLASSES), 1, CLASSES)

    crops = torch.tensor([[0.5, 0.5, 4.0, 4.0], [-1.5, 3.0, 1.0, 2.0], [0.5, 0.5, 0.0, 0.3]])
    assert torch.equal(packed(crops.repeat(4, 1)).boxes, crops.repeat(4, 1))
    inside = make_targets(rng, (20,), 1)[0]["boxes"]
    packed(inside)
    assert not caplog.text
    packed(torch.cat([inside[:, :2] - inside[:, 2:] / 2, inside[:, :2] + inside[:, 2:] / 2], 1))
    assert "look like corners" in caplog.text


def test_missing_field_and_missing_image(rng):
    targets = make_targets(rng, (1, 2), CLASSES)
    with pytest.raises(ValueError, match="hold 2 images, the predictions 3"):
        pack_objects(targets, torch.zeros(3, 4, CLASSES), 3, CLASSES)
    del targets[0]["boxes"]
    with pytest.raises(ValueError, match="image 0.*'boxes' is missing"):
        pack_objects(targets, torch.zeros(2, 4, CLASSES), 2, CLASSES)
