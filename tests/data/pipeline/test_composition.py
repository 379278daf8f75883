"""Images joined to one: mosaics, blends and pasted objects keep pixels and objects together."""

import numpy as np
import torch
from helpers.painted import assert_together, samples

from rfdetr_hf.data.pipeline.composition import mixup
from rfdetr_hf.data.pipeline.view import Sample


def test_mixup_blends_pictures_and_has_the_objects_of_both():
    def picture(value, label):
        target = {"boxes": np.array([[label, 1, 5, 6]], np.float32), "class_labels": np.array([label]),
                  "area": np.ones(1, np.float32), "iscrowd": np.zeros(1, bool)}  # fmt: skip
        return Sample(torch.full((3, 8, 8), value, dtype=torch.uint8), target, label, (8, 8))

    rng, shares = np.random.default_rng(0), []
    for _ in range(30):
        mixed = mixup(picture(0, 1), lambda other: other, lambda see: see(picture(200, 2)), rng, alpha=2.0)
        assert mixed.target["class_labels"].tolist() == [1, 2] and mixed.target["boxes"][:, 0].tolist() == [1, 2]
        assert mixed.image_id == 1 and len(mixed.image.unique()) == 1
        shares.append(mixed.image[0, 0, 0].item() / 200)
    assert 0 < min(shares) < 0.3 and 0.7 < max(shares) < 1


def test_mixup_of_the_loader_has_both_objects_and_both_pictures():
    both = samples({"preset": "none", "mixup": 1.0}, count=12)
    alone = samples("none", count=12)
    for a, b in zip(both, alone, strict=True):
        n = len(b.target["boxes"])
        assert len(a.target["boxes"]) > n
        np.testing.assert_array_equal(a.target["boxes"][:n], b.target["boxes"])
        own = b.image.amax(0) > 60
        assert (a.image.amax(0)[own] > 15).all(), "the picture shows through"


def test_a_pasted_object_hides_what_is_below_it():
    """A rectangle that the pasted one covers is gone; one that is half covered ends at its border."""
    seen = samples({"preset": "none", "copy_paste": {"probability": 1.0, "max_objects": 5}}, count=60)
    alone = samples("none", count=60)
    dropped = shrunk = hidden = 0
    for a, b in zip(seen, alone, strict=True):
        left = dict(zip(a.target["class_labels"].tolist(), a.target["boxes"], strict=True))
        for label, box in zip(b.target["class_labels"].tolist(), b.target["boxes"], strict=True):
            dropped += label not in left
            shrunk += label in left and bool((left[label] != box).any())
        hidden += int((a.target["keypoints"][..., 2] == 1).sum())
        assert_together(a)
    assert shrunk and hidden, (dropped, shrunk, hidden)
