"""Keypoints of COCO files."""

import pytest
from helpers.coco_points import POINTS

from rfdetr_hf import audit_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.keypoints import ClassKeypoints
from rfdetr_hf.data.schema import has_keypoints, keypoint_schema


def test_coco_file(coco_points):
    train = coco_points(POINTS, None, [0] * 9)
    assert train["objects"][0]["keypoints"] == [[10, 11, 2, 12.5, 13, 1, 0, 0, 0], [0] * 9]
    schema = keypoint_schema(train)
    assert schema.num_keypoints_per_class == [0, 3] and schema.classes[0] == ClassKeypoints()
    assert schema.classes[1].skeleton == ((0, 1), (0, 2)) and schema.classes[1].flip_pairs == ((1, 2),)
    report = audit_dataset(train)
    assert report.keypoint_objects == 1
    assert report.labelled_keypoints == {"dog": {"nose": 1, "left_ear": 1, "right_ear": 0}}
    assert "dog: nose 1, left_ear 1, right_ear 0" in str(report)
    assert not has_keypoints(coco_points(POINTS, None, None, task="detection"))
    with pytest.raises(DetectionDataError, match="has no keypoints that are described"):
        keypoint_schema(coco_points(POINTS, None, None, task="detection"))


def test_class_names_choose_the_keypoints(coco_points):
    train = coco_points(POINTS, None, None, change=lambda c: c["annotations"].pop(1), class_names=["dog"])
    assert keypoint_schema(train).num_keypoints_per_class == [3] and train["objects"][0]["category"] == [0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((POINTS[:6], None, None), "annotation id 10: field keypoints has 6 numbers, but the category has 3"),
        ((None, POINTS, None), "annotation id 11: field keypoints has 9 numbers, but the category has 0"),
        (([*POINTS[:8], 3], None, None), "visibility 3"),
        (([*POINTS[:8], "2"], None, None), "not a list of numbers"),
        (([*POINTS[:7], float("nan"), 2], None, None), "not finite"),
    ],
)
def test_broken_keypoints_are_named(coco_points, values, message):
    with pytest.raises(DetectionDataError, match=message):
        coco_points(*values)
