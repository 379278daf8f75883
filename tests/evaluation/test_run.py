"""One evaluation of a detector: scores, labels by name, notes and pictures of many bits."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.detectors import forgetful
from PIL import Image

from rfdetr_hf import ImageDetector, RFDETRImageProcessor, TiledDetector, evaluate_detector, make_shapes_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import keypoint_schema
from rfdetr_hf.evaluation.report import write_results


def test_classes_in_another_order_are_no_labels_of_the_data(tiny_model):
    data = make_shapes_dataset(2, image_size=64, seed=1, classes=("square", "circle", "triangle"))
    with pytest.raises(ValueError, match="classes of the data set are .'square', 'circle'.*model has .'circle'"):
        evaluate_detector(ImageDetector(tiny_model(), RFDETRImageProcessor(size=64)), data)
    with pytest.raises(ValueError, match="classes of the data set are"):
        evaluate_detector(TiledDetector(ImageDetector(tiny_model(), RFDETRImageProcessor(size=64)), 64), data)
    unnamed = tiny_model(names=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert evaluate_detector(ImageDetector(unnamed, RFDETRImageProcessor(size=64)), data).metrics


def test_a_detector_that_maps_labels_may_hold_any_model(tiny_model):
    """What has other classes inside gives those of the data; a wrapper and a subclass of a detector of ours too."""
    data = make_shapes_dataset(2, image_size=64, seed=1, classes=("square", "circle", "triangle"))
    inner = ImageDetector(tiny_model(), RFDETRImageProcessor(size=64))

    class Mapping:
        def __init__(self, **held):
            vars(self).update(held)

        def __call__(self, images):
            return inner(images)

    class Own(ImageDetector):
        model_labels = None

    detectors = Mapping(model=inner.model), Mapping(detect=inner), Own(inner.model, inner.image_processor)
    for detect in (*detectors, TiledDetector(detectors[2], 64)):
        assert evaluate_detector(detect, data).metrics


def test_results_need_no_plots(scored_shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # is not even imported
    done = evaluate_detector(
        forgetful(scored_shapes), scored_shapes, output_dir=tmp_path / "plain", backend="pycocotools"
    )
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == [
        "errors.txt", "metrics.json", "per_class.csv", "predictions.json", "thresholds.json",
    ]  # fmt: skip
    metrics = write_results(done.evaluator, tmp_path / "small", predictions=False)
    assert metrics == done.metrics and not (tmp_path / "small" / "predictions.json").exists()
    with pytest.raises(FileExistsError, match="has files"):
        evaluate_detector(forgetful(scored_shapes), scored_shapes, output_dir=tmp_path / "plain")
    with pytest.raises(ValueError, match="needs an output_dir"):
        evaluate_detector(forgetful(scored_shapes), scored_shapes, report=True)


def test_image_ids_that_are_paths(scored_shapes, tmp_path):
    ids = [f"../train/{n}.jpg" for n in range(len(scored_shapes))]
    named = scored_shapes.remove_columns("image_id").add_column("image_id", ids)
    done = evaluate_detector(forgetful(named), named, output_dir=tmp_path / "out", report=True)
    assert 0 < done.metrics["map"] < 1 and done.analysis.worst_images()[0].image_id in ids
    assert {path.parent for path in tmp_path.rglob("*.jpg")} == {tmp_path / "out" / "worst_images"}


def test_keypoints_are_scored_with_the_sigmas_of_the_data_set():
    """From Python, as the command line and the trainer do it."""
    data = make_shapes_dataset(8, image_size=96, seed=1, task="keypoints")

    def shaking():
        rows, rng = iter(data.select_columns(["objects"])), torch.Generator().manual_seed(0)

        def detect(images):
            found = []
            for _ in images:
                objects = next(rows)["objects"]
                boxes = torch.tensor(objects["bbox"]).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                points = torch.tensor(objects["keypoints"]).reshape(len(boxes), -1, 3)
                points[..., :2] += 2 * torch.randn(points.shape[:2] + (2,), generator=rng)
                labels = torch.tensor(objects["category"], dtype=torch.int64)
                found.append({"boxes": boxes, "labels": labels, "scores": torch.ones(len(boxes)), "keypoints": points})
            return found

        return detect

    of_data = {label: each.sigmas for label, each in enumerate(keypoint_schema(data).classes)}
    halved = {label: [sigma / 2 for sigma in each] for label, each in of_data.items()}
    maps = [
        evaluate_detector(shaking(), data, iou_types=("bbox", "keypoints"), sigmas=sigmas).metrics["keypoint_map"]
        for sigmas in (None, of_data, halved)
    ]
    assert maps[0] == maps[1] > maps[2]


@pytest.mark.parametrize("learnt", [None, (0.0, 65535.0)])
def test_pictures_of_16_bits_have_the_range_that_the_model_learnt(learnt):
    """Without one, neither of the model nor of the data, nobody knows what is white."""
    content = io.BytesIO()
    Image.fromarray(np.full((64, 64), 1000, np.uint16)).save(content, "png")
    scored_shapes = make_shapes_dataset(1, image_size=64)
    row = scored_shapes[0] | {"image": {"path": None, "bytes": content.getvalue()}}
    seen = []

    class Detector:
        value_range = learnt

        def __call__(self, images):
            seen.extend(np.asarray(image).max() for image in images)
            return [{"scores": torch.zeros(0), "labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}]

    with contextlib.nullcontext() if learnt else pytest.raises(DetectionDataError, match="more than 8 bits"):
        evaluate_detector(Detector(), Dataset.from_list([row], features=scored_shapes.features))
    assert seen == ([3] if learnt else [])
