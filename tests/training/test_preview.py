"""The first images of a training as the model will see them."""

import numpy as np
from helpers.models import tiny_model
from helpers.runs import quick_arguments
from PIL import Image

from rfdetr_hf import RFDETRTrainer, draw_preview, make_shapes_dataset


def test_it_is_train_batch_of_the_run(tmp_path):
    """Multi-scale, accumulation and a preset with mosaic included."""
    shapes, options = make_shapes_dataset(12, image_size=64), {"augmentation": {"mosaic": 0.5, "vertical_flip": 0.5}}
    options |= {"plots": True, "max_steps": 4, "multi_scale": "per_batch", "gradient_accumulation_steps": 2}
    args = quick_arguments(tmp_path / "run", close_strong_augmentation_epochs=0, eval_strategy="no", **options)
    model = tiny_model()
    RFDETRTrainer(model, args, shapes).train()
    drawn = draw_preview(shapes, args, model.config, tmp_path / "preview.png")
    theirs, ours = Image.open(tmp_path / "run" / "train_batch.jpg"), tmp_path / "ours.jpg"
    drawn.save(ours, quality=88)
    np.testing.assert_array_equal(np.asarray(Image.open(ours)), np.asarray(theirs))


def test_a_part_of_an_epoch_without_joined_images_is_one(tmp_path):
    shapes, config = make_shapes_dataset(4, image_size=64), tiny_model().config

    def draw(close):
        options = {"num_train_epochs": 2, "max_steps": -1, "close_strong_augmentation_epochs": close}
        args = quick_arguments(tmp_path / "run", augmentation={"mosaic": 1.0}, **options)
        return np.asarray(draw_preview(shapes, args, config, tmp_path / "a.png", 1, 1, overwrite=True))

    half, one, none = draw(0.5), draw(1), draw(0)
    assert np.array_equal(half, one) and not np.array_equal(half, none)
