"""Which data is meant, and how it is read."""

import pytest

from rfdetr_hf import DataArguments


def test_options_of_other_data_and_tasks():
    with pytest.raises(ValueError, match="repeat_threshold=0.5 has no effect with sampling=None"):
        DataArguments(repeat_threshold=0.5)
    with pytest.raises(ValueError, match="missing_masks is for segmentation models"):
        DataArguments(missing_masks="box").load_options("detection")
    with pytest.raises(ValueError, match="keypoint_schema is for keypoint models"):
        DataArguments(keypoint_schema={"classes": []}).load_options("detection")
    assert DataArguments(keypoint_schema={"classes": []}).load_options("keypoints")["task"] == "keypoints"
