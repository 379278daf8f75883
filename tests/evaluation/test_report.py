import contextlib
import csv
import io
import json
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List
from helpers.coco_cases import random_coco
from PIL import Image

from rfdetr_hf import ImageDetector, RFDETRImageProcessor, TiledDetector, load_detection_dataset, make_shapes_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.schema import category_ids, class_names, keypoint_schema
from rfdetr_hf.evaluation import plots
from rfdetr_hf.evaluation.advice import class_advice
from rfdetr_hf.evaluation.evaluator import CocoEvaluator
from rfdetr_hf.evaluation.report import write_results
from rfdetr_hf.evaluation.run import evaluate_detector
from rfdetr_hf.evaluation.tables import aligned


@pytest.fixture(scope="module")
def shapes():
    return load_detection_dataset("synthetic-shapes")["test"].select(range(10))


def forgetful(dataset):
    """A detector that knows the truth, forgets every third object and mistakes every fifth."""
    rows = iter(dataset.select_columns(["objects"]))

    def detect(images):
        predictions = []
        for _ in images:
            objects = next(rows)["objects"]
            kept = [i for i in range(len(objects["bbox"])) if i % 3 != 2]
            boxes = torch.tensor([objects["bbox"][i] for i in kept]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([(objects["category"][i] + (i % 5 == 4)) % 3 for i in kept], dtype=torch.int64)
            predictions.append({"boxes": boxes, "labels": labels, "scores": torch.linspace(0.9, 0.5, len(kept))})
        return predictions

    return detect


def test_classes_in_another_order_are_no_labels_of_the_data(tiny_model):
    data = make_shapes_dataset(2, image_size=64, seed=1, classes=("square", "circle", "triangle"))
    with pytest.raises(ValueError, match="classes of the data set are .'square', 'circle'.*model has .'circle'"):
        evaluate_detector(ImageDetector(tiny_model(), RFDETRImageProcessor(size=64)), data)
    with pytest.raises(ValueError, match="classes of the data set are"):
        evaluate_detector(TiledDetector(ImageDetector(tiny_model(), RFDETRImageProcessor(size=64)), 64), data)
    unnamed = tiny_model(names=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert evaluate_detector(ImageDetector(unnamed, RFDETRImageProcessor(size=64)), data).metrics


def test_everything_from_one_call(shapes, tmp_path):
    seen = []
    done = evaluate_detector(
        forgetful(shapes), shapes, batch_size=4, output_dir=tmp_path, report=True, progress=lambda *n: seen.append(n)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == done.metrics and 0 < metrics["map"] < 1 and 0 < metrics["recall"] < 1
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert {r["category_id"] for r in results} <= set(category_ids(shapes)) and "bbox" in results[0]
    with (tmp_path / "per_class.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == class_names(shapes)
    page = (tmp_path / "report.html").read_text()
    worst = done.analysis.worst_images(12)
    assert page.count("data:image/png") == 4 and page.count("data:image/jpeg") == len(worst) > 3
    assert f"Image {worst[0].image_id} (test_" in page and "missed" in page
    assert len(list((tmp_path / "worst_images").glob("*.jpg"))) == len(worst)
    for name in class_names(shapes):
        assert name in done.tables() and name in page


def test_results_need_no_plots(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # is not even imported
    done = evaluate_detector(forgetful(shapes), shapes, output_dir=tmp_path / "plain", backend="pycocotools")
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == [
        "errors.txt", "metrics.json", "per_class.csv", "predictions.json", "thresholds.json",
    ]  # fmt: skip
    metrics = write_results(done.evaluator, tmp_path / "small", predictions=False)
    assert metrics == done.metrics and not (tmp_path / "small" / "predictions.json").exists()
    with pytest.raises(FileExistsError, match="has files"):
        evaluate_detector(forgetful(shapes), shapes, output_dir=tmp_path / "plain")
    with pytest.raises(ValueError, match="needs an output_dir"):
        evaluate_detector(forgetful(shapes), shapes, report=True)


def test_advice_names_the_dearest_error_of_a_class(shapes):
    """All found; every second forgotten; boxes moved by a third; every second object taken for the next class."""

    def altered(change):
        rows = iter(shapes.select_columns(["objects"]))

        def detect(images):
            found = []
            for _ in images:
                objects = next(rows)["objects"]
                boxes = torch.tensor(objects["bbox"]).reshape(-1, 4)
                boxes[:, 2:] += boxes[:, :2]
                labels = torch.tensor(objects["category"], dtype=torch.int64)
                boxes, labels = change(boxes, labels)
                found.append({"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), 0.9)})
            return found

        return " ".join(class_advice(evaluate_detector(detect, shapes).analysis))

    def moved(boxes, labels):
        side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        return torch.cat([boxes, boxes + 0.4 * side, boxes - 0.4 * side]), labels.repeat(3)

    assert altered(lambda boxes, labels: (boxes, labels)).count("Good.") == 3
    assert "are missed" in altered(lambda boxes, labels: (boxes[::3], labels[::3]))
    assert "most of the type localisation" in altered(moved)
    assert "are taken for" in altered(lambda boxes, labels: (boxes, (labels + torch.arange(len(labels)) % 2) % 3))


def test_drawn_boxes_have_the_colour_of_their_fate(shapes):
    done = evaluate_detector(forgetful(shapes), shapes)
    worst = done.analysis.worst_images(1)[0]
    side = shapes[0]["width"]
    drawn = plots.draw_errors(done.analysis, Image.new("RGB", (side, side)), worst.image_id)
    colours = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in drawn.getcolors(1 << 20)}
    assert drawn.width == 900 and plots.MISSED in colours
    assert (plots.RIGHT in colours) == (worst.true_positives > 0)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_figures_of_odd_cases(seed):
    """No truth at all, no detections at all, and an ordinary case."""
    truth, predictions = random_coco(seed)
    evaluator = CocoEvaluator(truth)
    evaluator.update(list(predictions), list(predictions.values()))
    analysis = evaluator.analyze()
    for draw in (plots.pr_curves, plots.threshold_curves, plots.confusion_figure, plots.error_costs):
        file = io.BytesIO()
        draw(analysis).savefig(file)
        assert Image.open(file).width >= 500


def test_large_confusion_matrices_keep_the_large_classes():
    matrix = torch.zeros(101, 101, dtype=torch.int64).numpy()
    matrix[7, 7], matrix[99, 3], matrix[100, 5] = 50, 20, 9
    small, names = plots._largest_classes(matrix, [str(i) for i in range(100)] + ["background"])
    assert len(names) == 60 == len(small) and {"7", "99", "background"} <= set(names) and small.max() == 50


def test_tables_align():
    assert aligned([["a", "bb"], ["long", "1"]]) == "a     bb\nlong   1"


def test_names_are_texts_everywhere(shapes, tmp_path):
    names = ["=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a\n\x1b[31mb"]
    category = List(ClassLabel(names=names))
    renamed = shapes.cast_column("objects", {**shapes.features["objects"], "category": category})
    done = evaluate_detector(forgetful(renamed), renamed, output_dir=tmp_path, report=True)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["'" + names[0], *names[1:]]
    assert json.loads((tmp_path / "thresholds.json").read_text()).keys() <= set(names)
    assert "\x1b" not in done.tables() and "a\n" not in done.tables()
    assert "<script>" not in (tmp_path / "report.html").read_text()


def test_image_ids_that_are_paths(shapes, tmp_path):
    ids = [f"../train/{n}.jpg" for n in range(len(shapes))]
    named = shapes.remove_columns("image_id").add_column("image_id", ids)
    done = evaluate_detector(forgetful(named), named, output_dir=tmp_path / "out", report=True)
    assert 0 < done.metrics["map"] < 1 and done.analysis.worst_images()[0].image_id in ids
    assert {path.parent for path in tmp_path.rglob("*.jpg")} == {tmp_path / "out" / "worst_images"}


def test_notes_are_in_table_and_report(shapes, tmp_path):
    def blind(images):
        return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=int), "scores": torch.zeros(0)}] * len(
            images
        )

    done = evaluate_detector(blind, shapes, output_dir=tmp_path, report=True)
    assert "no best_threshold for" in done.tables()
    assert json.loads((tmp_path / "thresholds.json").read_text()) == {} and done.metrics["score_threshold"] == -1
    assert "no best_threshold for" in (tmp_path / "report.html").read_text()


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
    shapes = make_shapes_dataset(1, image_size=64)
    row = shapes[0] | {"image": {"path": None, "bytes": content.getvalue()}}
    seen = []

    class Detector:
        value_range = learnt

        def __call__(self, images):
            seen.extend(np.asarray(image).max() for image in images)
            return [{"scores": torch.zeros(0), "labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4)}]

    with contextlib.nullcontext() if learnt else pytest.raises(DetectionDataError, match="more than 8 bits"):
        evaluate_detector(Detector(), Dataset.from_list([row], features=shapes.features))
    assert seen == ([3] if learnt else [])
