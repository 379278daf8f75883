"""Outputs and targets in, numbers out: the matcher and the criterion."""

from .criterion import LayerOutput, RFDETRCriterion
from .matcher import HungarianMatcher, Matches, PackedObjects, pack_objects

__all__ = ["HungarianMatcher", "LayerOutput", "Matches", "PackedObjects", "RFDETRCriterion", "pack_objects"]
