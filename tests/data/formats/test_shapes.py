"""Generated shapes by their name."""

import pytest

from rfdetr_hf import class_names, load_detection_dataset


def test_splits_through_the_one_door():
    splits = load_detection_dataset("synthetic-shapes", num_images=10, image_size=32, classes=["square", "circle"])
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "validation": 2, "test": 2}
    assert class_names(splits) == ["square", "circle"]
    with pytest.raises(TypeError, match="image_sise"):
        load_detection_dataset("synthetic-shapes", image_sise=32)
