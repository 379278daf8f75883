"""Outputs and targets in, numbers out: the matcher and the criterion."""

from .criterion import RFDETRCriterion
from .matcher import HungarianMatcher
from .types import LayerOutput, PackedObjects, QueryMatches, pack_objects

__all__ = ["HungarianMatcher", "LayerOutput", "PackedObjects", "QueryMatches", "RFDETRCriterion", "pack_objects"]
