"""Keypoints of a COCO file."""

POINTS = [10, 11, 2, 12.5, 13, 1, 7, 7, 0]
