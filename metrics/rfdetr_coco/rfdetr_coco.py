"""COCO detection scores as an `evaluate` metric, for any detector."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from rfdetr_hf.evaluation.evaluator import CocoEvaluator
from rfdetr_hf.evaluation.ground_truth import make_coco
from rfdetr_hf.values import as_id, as_integer

_DESCRIPTION = """
The twelve numbers of COCO's detection evaluation, bit for bit those of pycocotools, and precision, recall and F1 at the
score threshold with the best mean F1. It needs nothing but boxes, so it works with any detector. Boxes are corners;
loaded as evaluate.load(…, "xywh") it takes (x, y, width, height), which COCO's files have, without a rounding.
"""

_CITATION = """
@inproceedings{lin2014coco,
  title     = {Microsoft COCO: Common Objects in Context},
  author    = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and others},
  booktitle = {ECCV},
  year      = {2014}
}
"""

_NO_IMAGES = (
    "rfdetr_coco has no images to score: add(prediction=…, reference=…) or add_batch(predictions=…, references=…) "
    "gives it some, also images without detections, for which the lists are empty"
)

_INPUTS = """
Args:
    predictions: one dict per image: `boxes` (n lists of x1, y1, x2, y2 in pixels), `scores` (n), `labels` (n). Where it
        has an `image_id` and its reference too, these must be the same.
    references: one dict per image, in the same order: `boxes` (m lists of x1, y1, x2, y2), `labels` (m), and where
        there are any `area` (m, default width x height) and `iscrowd` (m, default 0).
    class_names: a list of names by label, or a dict of them; adds `map_class_<name>` and `mar_100_class_<name>`.
    max_dets: another limit of detections per image and class beside COCO's 100, with scores of its own.
    backend: "auto", "pycocotools" or "ultrafast"; the scores are the same.
Returns:
    dict of floats: map, map_50, map_75, map_small, map_medium, map_large, mar_1, mar_10, mar_100, mar_small,
    mar_medium, mar_large (-1 where there is nothing to score), precision, recall, f1, score_threshold.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RFDETRCoco(evaluate.Metric):
    """COCO detection scores."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "xyxy", "xywh"):
            raise ValueError(f"rfdetr_coco knows the boxes 'xyxy' (the default) and 'xywh', not {self.config_name!r}")
        boxes = datasets.Sequence(datasets.Sequence(datasets.Value("float64")))
        numbers, labels = (datasets.Sequence(datasets.Value(kind)) for kind in ("float64", "int64"))
        features = {
            "predictions": {"boxes": boxes, "scores": numbers, "labels": labels},
            "references": {"boxes": boxes, "labels": labels, "area": numbers, "iscrowd": labels},
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
            reference_urls=["https://cocodataset.org/#detection-eval"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds the detections and objects of some images: lists of dicts of lists, arrays or tensors."""
        for prediction, reference in zip(predictions, references, strict=False):
            ids = [as_id(each["image_id"]) for each in (prediction, reference) if each.get("image_id") is not None]
            if len(set(map(str, ids))) > 1:
                raise ValueError(
                    f"image_id {ids[0]!r} of a prediction stands at the place of image_id {ids[1]!r} of a reference: "
                    "give predictions and references in one order"
                )
        super().add_batch(
            predictions=[_as_lists(each, ("boxes", "scores", "labels")) for each in predictions],
            references=[_reference(each, self.config_name == "xywh") for each in references],
            **kwargs,
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float] | None:
        """The scores of all images that were added, and of those given here.

        Raises:
            ValueError: there are none.
        """
        if predictions is not None and references is not None:
            if len(predictions):
                self.add_batch(predictions=predictions, references=references)
        elif predictions is not None or references is not None:
            raise ValueError("compute() takes predictions and references together, a dict per image in each")
        if self.writer is None:
            raise ValueError(_NO_IMAGES)
        return super().compute(**kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one image."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        max_dets: int = 100,
        backend: str = "auto",
    ) -> dict[str, float]:
        if not len(references):
            raise ValueError(_NO_IMAGES)
        xywh = self.config_name == "xywh"
        evaluator = CocoEvaluator(_ground_truth(predictions, references, class_names, xywh), max_dets, backend=backend)
        found = [
            {
                "boxes_xywh" if xywh else "boxes": np.array(each["boxes"], dtype=np.float64).reshape(-1, 4),
                "scores": np.array(each["scores"], dtype=np.float64),
                "labels": np.array(each["labels"], dtype=np.int64),
            }
            for each in predictions
        ]
        evaluator.update(range(1, len(found) + 1), found)
        return evaluator.compute(per_class=class_names is not None) | evaluator.analyze().summary()


def _ground_truth(
    predictions: Sequence[Mapping],
    references: Sequence[Mapping],
    names: Sequence[str] | Mapping[int, str] | None,
    xywh: bool,
) -> Any:
    if isinstance(names, str):
        raise ValueError(f"class_names {names!r} is one text: give a list of names, or a dict of label and name")
    images, annotations = [], []
    for image_id, reference in enumerate(references, start=1):
        images.append({"id": image_id})
        fields = (reference[key] for key in ("boxes", "labels", "area", "iscrowd"))
        for (x1, y1, x2, y2), label, area, crowd in zip(*fields, strict=True):  # or x, y, width, height
            record = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(label)}
            box = [x1, y1, x2, y2] if xywh else [x1, y1, x2 - x1, y2 - y1]
            annotations.append({**record, "bbox": box, "area": area, "iscrowd": int(crowd)})
    labels = {int(label) for each in (*predictions, *references) for label in each["labels"]}
    known = {label: str(label) for label in sorted(labels)}
    if names is not None:
        known = dict(names if isinstance(names, Mapping) else enumerate(names))
        if outside := labels - set(known):
            raise ValueError(f"Labels {sorted(outside)} have no name among the {len(names)} class_names.")
    return make_coco(images, annotations, [{"id": label, "name": name} for label, name in known.items()])


def _reference(reference: Mapping[str, Any], xywh: bool) -> dict[str, list]:
    made = _as_lists(reference, ("boxes", "labels"))
    area = [x2 * y2 if xywh else (x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in made["boxes"]]
    optional = {"area": area, "iscrowd": [0] * len(area)}
    made |= {k: _listed(reference[k]) if reference.get(k) is not None else v for k, v in optional.items()}
    wrong = any(len(made[name]) != len(area) for name in optional) or any(
        each not in (0, 1) for each in made["iscrowd"]
    )
    if wrong or any(isinstance(each, bool) for each in made["area"]):
        given = {name: made[name][:3] for name in optional}
        raise ValueError(f"area must be a number and iscrowd 0 or 1 for each of {len(area)} boxes, not {given}")
    return made


def _as_lists(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, list]:
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"Each image needs {', '.join(keys)}; {', '.join(missing)} missing from {sorted(values)}.")
    listed = {key: _listed(values[key]) for key in keys}
    image = f"Image {values['image_id']}: " if "image_id" in values else ""
    if any(isinstance(label, str) for label in listed["labels"]):
        raise ValueError(f"{image}labels {listed['labels'][:3]} are texts: give integers, and names as class_names.")
    if any(as_integer(each) is None for each in listed["labels"]):
        raise ValueError(f"{image}labels {listed['labels'][:3]} are no integers.")
    lengths = {key: len(each) for key, each in listed.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{image}as many of each are due, but there are {lengths}.")
    for box in listed["boxes"]:
        if not hasattr(box, "__len__") or len(box) != 4:
            raise ValueError(f"{image}boxes must have four numbers each, and one is {box!r}.")
    return listed


def _listed(values: Any) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)
