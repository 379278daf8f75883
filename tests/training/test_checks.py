"""What is looked at before a run: numbers, sets and folders that are given."""

import numpy as np
import pytest
from helpers.runs import one_step

from rfdetr_hf import RFDETRTrainer, decode_image
from rfdetr_hf.data.keypoints import ClassKeypoints

SHAPES = 4


def test_numbers_of_the_environment_and_of_keypoints_are_named(tmp_path, tiny_model, shapes, monkeypatch):
    with pytest.raises(ValueError, match="skeleton or flip_pairs .* are not pairs of positions"):
        ClassKeypoints.of(["a", "b"], skeleton=[("a", "b")])
    with pytest.raises(ValueError, match="sigmas .* must be positive numbers"):
        ClassKeypoints.of(["a", "b"], sigmas=[0.1, "wide"])
    monkeypatch.setenv("RFDETR_HF_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="RFDETR_HF_MAX_IMAGE_PIXELS='many' in the environment"):
        np.asarray(decode_image(shapes[0]))
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE='two' in the environment"):
        RFDETRTrainer(tiny_model(), one_step(tmp_path), shapes, shapes)


def test_a_set_that_is_not_there_is_named(tmp_path, tiny_model, shapes):
    trainer = RFDETRTrainer(tiny_model(), one_step(tmp_path), shapes, {"day": shapes, "night": shapes})
    for given in (None, "dawn"):
        with pytest.raises(ValueError, match=f"{given!r} is none; give one of 'day', 'night'"):
            trainer.get_eval_dataloader(given)
    with pytest.raises(ValueError, match=r"evaluate\(\) needs an eval_dataset"):
        trainer.evaluate({})
    with pytest.raises(ValueError, match="there is no such folder; give a folder checkpoint-<step>"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "none"))
