"""Labels that a model contradicts: planted errors come first, of each kind, on pictures and in the command."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rfdetr_hf import RFDETRImageProcessor, audit_data, make_shapes_dataset, write_audit_page
from rfdetr_hf.cli.main import main
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.label_errors import find_label_errors

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ["circle", "square", "triangle"]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import label_errors

        yield label_errors
    sys.modules.pop("label_errors", None)


@pytest.mark.parametrize(("detector", "least"), [("strong", 0.6), ("usual", 0.35), ("weak", 0.15)])
def test_planted_errors_stand_first(benchmark, detector, least):
    """By chance a tenth would."""
    assert benchmark.ours(benchmark.make_case(benchmark.DETECTORS[detector], seed=3)) >= least


@pytest.mark.slow
def test_planted_errors_stand_first_as_often_as_with_cleanlab(benchmark):
    python = os.environ.get("RFDETR_CLEANLAB")
    if not python:
        pytest.skip("set RFDETR_CLEANLAB to the Python of an environment with cleanlab")
    for detector in benchmark.DETECTORS.values():
        cases = [benchmark.make_case(detector, seed) for seed in range(6)]
        mine, theirs = [benchmark.ours(case) for case in cases], benchmark.cleanlabs(cases, python)
        assert np.mean(mine) >= np.mean(theirs)


class Detector:
    """Finds the objects of a data set, which it knows by the numbers of its images, in their order."""

    def __init__(self, truth):
        self.truth, self.next = truth, 0

    def __call__(self, images):
        found = []
        for _ in images:
            objects = self.truth[self.next]["objects"]
            boxes = np.asarray(objects["bbox"], np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = np.asarray(objects["category"])
            found.append({"scores": torch.full((len(labels),), 0.9), "labels": torch.tensor(labels, dtype=torch.long),
                          "boxes": torch.tensor(boxes)})  # fmt: skip
            self.next += 1
        return found


@pytest.fixture(scope="module")
def spoilt():
    """Forty pictures; of the first four a box is gone, of another class, moved, or one too many."""
    truth = make_shapes_dataset(40, image_size=96, seed=5)

    def spoil(row, index):
        objects = {name: list(values) for name, values in row["objects"].items()}
        if index == 0:
            objects = {name: values[1:] for name, values in objects.items()}
        elif index == 1:
            objects["category"][0] = (objects["category"][0] + 1) % 3
        elif index == 2:
            x, y, w, h = objects["bbox"][0]
            objects["bbox"][0] = [x + w / 2, y, w, h]
        elif index == 3:
            for name in objects:
                objects[name].append(objects[name][0])
            objects["bbox"][-1] = [0.0, 0.0, 7.0, 7.0]
        return {"objects": objects}

    return truth, truth.map(spoil, with_indices=True)


def test_each_kind_is_found_with_its_boxes(spoilt):
    truth, split = spoilt
    found = {each.row: each for each in find_label_errors(split, Detector(truth), NAMES)}
    assert {row: each.kind for row, each in found.items()} == {
        0: "overlooked", 1: "swapped", 2: "badly located", 3: "on nothing"
    }  # fmt: skip
    objects = [truth[row]["objects"] for row in range(4)]
    assert found[0].object is None and found[0].found_bbox == pytest.approx(objects[0]["bbox"][0], abs=0.01)
    assert found[0].found_label == NAMES[objects[0]["category"][0]]
    assert found[1].found_label == NAMES[objects[1]["category"][0]] != found[1].label and found[1].object == 0
    assert found[2].bbox != found[2].found_bbox == pytest.approx(objects[2]["bbox"][0], abs=0.01)
    assert found[3].found_bbox is None and found[3].bbox == (0.0, 0.0, 7.0, 7.0)


def test_classes_are_compared_by_name_and_what_is_not_labelled_is_no_error(spoilt):
    truth, split = spoilt
    order = ["owl", "triangle", "circle", "square"]

    detector = Detector(truth)

    def renamed(images):
        moved = torch.tensor([order.index(name) for name in NAMES])
        return [each | {"labels": moved[each["labels"]]} for each in detector(images)]

    assert {each.row for each in find_label_errors(split, renamed, order)} == {0, 1, 2, 3}
    with pytest.raises(DetectionDataError, match="none is the same"):
        find_label_errors(split, Detector(truth), ["cat"])
    missing = truth[0]["objects"]["category"][0]
    own = [[label for label in range(3) if label != missing] if row == 0 else None for row in range(40)]
    federated = split.add_column("labelled_classes", own)
    assert 0 not in {each.row for each in find_label_errors(federated, Detector(truth), NAMES)}


def test_the_audit_shows_them(spoilt, tmp_path):
    truth, split = spoilt
    found = audit_data({"train": split}, detect=Detector(truth), detected_names=NAMES, cache_dir="")
    kinds = {each.kind: each for each in found.findings if each.kind.startswith("labels: ")}
    assert set(kinds) == {"labels: overlooked", "labels: swapped", "labels: badly located", "labels: on nothing"}
    assert kinds["labels: overlooked"].text == (
        "1 object without a box, found by the model, the likeliest first"
    ) and not any(each.serious for each in kinds.values())
    told = json.loads(json.dumps(found.to_dict()))["label_errors"]["train"]
    assert [each["score"] for each in told] == sorted((each["score"] for each in told), reverse=True)
    write_audit_page(found, {"train": split}, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<img") == len([f for f in found.findings if f.examples])


def test_the_command_asks_a_trained_model(tiny_model, tmp_path, capsys):
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    RFDETRImageProcessor(size={"height": 64, "width": 64}).save_pretrained(model)
    make_shapes_dataset(6, image_size=64).save_to_disk(str(tmp_path / "data"))
    words = ["data", "audit", str(tmp_path / "data"), "--model", str(model), "--json", str(tmp_path / "audit.json")]
    assert main([*words, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "audit.json").read_text())["label_errors"].keys() == {"train"}
    assert main([*words, "--device", "tpu"]) == 2 and "device='tpu' is not known" in capsys.readouterr().err
