"""Confidence thresholds of the classes of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from .post_processing import thresholds_of


def class_thresholds(
    thresholds: float | Sequence[float] | Mapping[str, float], config: Any, default: float = 0.5
) -> list[float]:
    """Confidence thresholds by label.

    A keypoint model's scores x of classes without keypoints come as x / (1 + x), never above 0.5 (see `fuse_scores`): a
    threshold t that is meant for all classes is t / (1 + t) for these.

    Args:
        thresholds: one for all classes, one for each label, or by class name.
        config: of the model, with the names of the classes.
        default: of the classes that a mapping does not name.

    Raises:
        ValueError: an unknown class or one twice, another number of thresholds than classes, or one that is no
            finite number of at most 1.
    """
    counts = config.num_keypoints_per_class or [1] * config.num_labels
    common = thresholds_of(default if isinstance(thresholds, (Mapping, Sequence)) else thresholds, config.num_labels)
    if isinstance(common, list):  # of an array
        return common
    lowered = [common / (1 + common) if count == 0 and common > 0 else common for count in counts]
    lowered += [common] * (config.num_labels - len(lowered))
    if not isinstance(thresholds, (Mapping, Sequence)):
        return lowered
    found = thresholds_of(thresholds, config.num_labels, config.id2label, lowered)
    return found if isinstance(found, list) else [found] * config.num_labels
