"""What the tasks of RF-DETR differ in, as values. Their behaviour belongs to the model classes."""

from dataclasses import dataclass
from typing import Literal

# The names of the rows below, for type checkers.
TaskName = Literal["detection", "segmentation", "keypoints"]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as options and checkpoints say it.
        title: as sentences say it.
        model_class: name of the class of its models.
        auto_class: name of the class of plain transformers that loads its models; None where there is none.
        pipeline_tag: of the Hub.
        iou_types: what COCO's evaluation compares, boxes first.
        best_metric: the metric that chooses the best model, without prefix.
        object_field: the field of `objects` that a data set must have besides boxes; None where boxes suffice.
    """

    name: str
    title: str
    model_class: str
    auto_class: str | None
    pipeline_tag: str
    iou_types: tuple[str, ...]
    best_metric: str
    object_field: str | None


BOXES_ALONE = (
    "take boxes alone, with a model for detection such as --model nano (without a model: --task detection, "
    "task='detection')"
)
"""What to do with data that has no masks or keypoints, or wrong ones."""

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "detection", "object detection", "RFDETRForObjectDetection", "AutoModelForObjectDetection",
            "object-detection", ("bbox",), "map", None,
        ),
        Task(
            "segmentation", "instance segmentation", "RFDETRForInstanceSegmentation",
            "AutoModelForInstanceSegmentation", "image-segmentation", ("bbox", "segm"), "segm_map", "segmentation",
        ),
        Task(
            "keypoints", "keypoint detection", "RFDETRForKeypointDetection", None,
            "keypoint-detection", ("bbox", "keypoints"), "keypoint_map", "keypoints",
        ),
    )
}  # fmt: skip
