"""Detections as values for files: a plain list for each image, or a COCO data set."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def as_records(detections: Mapping[str, Tensor], id2label: Mapping[int, str], threshold: float) -> list[dict[str, Any]]:
    """The detections of one image above the threshold: `label`, `score` and `box` (x1, y1, x2, y2 in pixels).

    Keypoints, where there are any, come as `keypoints`, (x, y) in pixels each.
    """
    records = []
    for i, score in enumerate(detections["scores"].tolist()):
        if score <= threshold:
            continue
        box = [round(value, 2) for value in detections["boxes"][i].tolist()]
        record = {"label": id2label[int(detections["labels"][i])], "score": round(score, 5), "box": box}
        if detections.get("keypoints") is not None:
            record["keypoints"] = [[round(value, 2) for value in p[:2]] for p in detections["keypoints"][i].tolist()]
        records.append(record)
    return records


class CocoResults:
    """Collects the detections of images as a COCO data set, with a `score` in every annotation.

    Args:
        id2label: names of the classes; their ids become the category ids.
    """

    def __init__(self, id2label: Mapping[int, str]) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": i, "name": name} for i, name in sorted(id2label.items())]

    def add(
        self, file_name: str, size: tuple[int, int], detections: Mapping[str, Tensor], threshold: float = 0.0
    ) -> None:
        """Add one image.

        Args:
            file_name: how the image is found.
            size: width and height in pixels.
            detections: `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy in pixels.
            threshold: scores must be above it.
        """
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "width": size[0], "height": size[1]})
        for i, score in enumerate(detections["scores"].tolist()):
            if score <= threshold:
                continue
            x1, y1, x2, y2 = (round(value, 2) for value in detections["boxes"][i].tolist())
            bbox = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(detections["labels"][i]),
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 2),
                    "iscrowd": 0,
                    "score": round(score, 5),
                }
            )

    def to_dict(self) -> dict[str, Any]:
        """What a COCO file holds."""
        return {"images": self.images, "annotations": self.annotations, "categories": self.categories}
