"""Classes that an image does not label are no negatives there: files, columns, loader, loss and evaluation."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from helpers.annotation_tools import run_tools
from helpers.plain_loss import CONFIG, make_predictions, make_targets

from rfdetr_hf import CocoEvaluator, class_names, load_detection_dataset
from rfdetr_hf.data.errors import DetectionDataError
from rfdetr_hf.data.fingerprint import data_hash
from rfdetr_hf.data.pipeline.loader import LoaderOptions, build_train_dataloader
from rfdetr_hf.data.pipeline.transforms import TrainTransform, build_train_transform
from rfdetr_hf.data.schema import labelled_images
from rfdetr_hf.evaluation.ground_truth import coco_ground_truth, make_coco
from rfdetr_hf.losses import LayerOutput, RFDETRCriterion

LVIS_SCORES = """
import json, sys
import numpy as np
np.float = float  # which lvis 0.5.3 still uses
from lvis import LVIS, LVISEval, LVISResults
truth = LVIS(sys.argv[1])
run = LVISEval(truth, LVISResults(truth, sys.argv[2], max_dets=10**6), "bbox")
run.run()
print(json.dumps([run.results["AP"], run.eval["precision"].tolist(), run.eval["recall"].tolist()]))
"""


@pytest.fixture
def lvis(coco_content, write_coco, tmp_path):
    """A file as LVIS has them: pictures named by their address, and what is labelled in each. `lvis(spoil)`."""

    def write(spoil=lambda content: None):
        content = coco_content()
        content["categories"] += [{"id": 9, "name": "owl"}, {"id": 12, "name": "rat"}]
        for category in content["categories"]:
            category["frequency"] = "f"
        write_coco(tmp_path / "train.json", content, tmp_path / "train2017")
        first, second = content["images"]
        # The first image has a dog (7) and a cat (3), the second a dog.
        first |= {"neg_category_ids": [9], "not_exhaustive_category_ids": [3]}
        second |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        spoil(content)
        (tmp_path / "train.json").write_text(json.dumps(content))
        return tmp_path / "train.json"

    return write


def test_lvis_files(lvis, caplog):
    caplog.set_level("INFO")
    train = load_detection_dataset(lvis())["train"]
    assert class_names(train) == ["cat", "dog", "owl", "rat"]
    # Labelled completely: dog and owl in the first image (not cat, of which there may be more), the dog in the second.
    assert train["labelled_classes"] == [[1, 2], [1]]
    assert labelled_images(train).tolist() == [0, 2, 1, 0]
    assert "train split: 1 of 4 classes are labelled in all of 2 images" in caplog.text
    assert "2 classes are labelled completely in no image, such as cat, rat: nothing teaches" in caplog.text
    # Both fields of the file come back from the column and the boxes.
    images = coco_ground_truth(train).dataset["images"]
    assert [image["neg_category_ids"] for image in images] == [[2], []]
    assert [image["not_exhaustive_category_ids"] for image in images] == [[0], []]
    named = load_detection_dataset(lvis(), class_names=["owl", "dog", "cat"])["train"]
    assert named["labelled_classes"] == [[0, 1], [1]]


@pytest.mark.parametrize(("field", "value", "message"), [
    ("neg_category_ids", [7], r"image id 0: field neg_category_ids has \[7\], of which there are annotations"),
    ("neg_category_ids", [99], "field neg_category_ids is .99., no list of ids of categories"),
    ("not_exhaustive_category_ids", "3", "field not_exhaustive_category_ids is '3', no list of ids"),
    ("not_exhaustive_category_ids", [None], "field not_exhaustive_category_ids is .None., no list of ids"),
])  # fmt: skip
def test_faulty_lists(lvis, field, value, message):
    with pytest.raises(DetectionDataError, match=message):
        load_detection_dataset(lvis(lambda content: content["images"][0].update({field: value})))


def test_images_without_the_fields_are_labelled_completely(lvis):
    def spoil(content):
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            del content["images"][0][field]

    train = load_detection_dataset(lvis(spoil))["train"]
    assert train["labelled_classes"] == [None, [1]] and labelled_images(train).tolist() == [1, 2, 1, 1]


def test_the_column_comes_back_and_is_part_of_the_checksum(lvis, tmp_path):
    splits = load_detection_dataset(lvis())
    splits.save_to_disk(tmp_path / "saved")
    assert load_detection_dataset(tmp_path / "saved")["train"]["labelled_classes"] == [[1, 2], [1]]
    other = load_detection_dataset(tmp_path / "saved", class_names=["dog", "cat", "owl", "new", "rat"])["train"]
    assert other["labelled_classes"] == [[0, 2], [0]]
    train = load_from_disk(str(tmp_path / "saved"))["train"]
    for values in ([[1, 2], [1, 3]], [None, [1]]):
        changed = train.remove_columns("labelled_classes").add_column("labelled_classes", values)
        assert data_hash({"train": changed}) != data_hash({"train": train})
    broken = train.remove_columns("labelled_classes").add_column("labelled_classes", [[1], [4]])
    with pytest.raises(DetectionDataError, match=r"row 1: column labelled_classes is \[4\], no list of labels"):
        load_detection_dataset(broken)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_what_is_labelled(lvis, workers):
    def spoil(content):
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            del content["images"][1][field]

    train = load_detection_dataset(lvis(spoil))["train"]
    transform = build_train_transform(64, multi_scale="off")
    loader = build_train_dataloader(train, transform, LoaderOptions(batch_size=2, num_workers=workers, shuffle=False))
    labels = next(iter(loader))["labels"]
    assert labels.fields["labelled_classes"].tolist() == [[False, True, True, False], [True] * 4]
    assert [target["labelled_classes"].shape for target in labels.unpack()] == [(4,), (4,)]


def test_joined_images_have_the_classes_that_all_of_them_label(lvis):
    train = load_detection_dataset(lvis())["train"]
    strong = {"mixup": {"probability": 1.0, "alpha": 8.0}}
    transform = TrainTransform([64], members=strong)
    loader = build_train_dataloader(train, transform, LoaderOptions(batch_size=2, num_workers=0, shuffle=False))
    found = [target["labelled_classes"].tolist() for batch in loader for target in batch["labels"].unpack()]
    # Dog and owl in the first image, the dog alone in the second and wherever the two are joined.
    assert [False, True, False, False] in found[::2] and set(map(tuple, found[1::2])) == {(False, True, False, False)}


CLASSES = 5


def layers(rng, images, rows=12):
    return [LayerOutput(suffix, *make_predictions(rng, images, rows, CLASSES, torch.float64)) for suffix in ("", "_0")]


def test_logits_of_unlabelled_classes_have_no_gradient(rng):
    predicted, targets = layers(rng, 2), make_targets(rng, (2, 3), CLASSES)
    targets[0]["class_labels"] = torch.tensor([0, 1])
    targets[1]["class_labels"] = torch.tensor([2, 2, 0])
    # In the first image class 1 is there, but not all of it is marked; 3 and 4 are not labelled.
    targets[0]["labelled_classes"] = torch.tensor([True, False, True, False, False])
    targets[1]["labelled_classes"] = torch.ones(CLASSES, dtype=torch.bool)
    criterion = RFDETRCriterion(CONFIG)
    losses = criterion(predicted, targets, 2, 10.0)
    logits = [layer.logits for layer in predicted]
    gradients = torch.autograd.grad(losses["loss_ce"] + losses["loss_ce_0"], logits)
    plain = [{name: value for name, value in each.items() if name != "labelled_classes"} for each in targets]
    whole = criterion(predicted, plain, 2, 10.0)
    full = torch.autograd.grad(whole["loss_ce"] + whole["loss_ce_0"], logits)
    for part, all_of_it in zip(gradients, full, strict=True):
        assert (part[0, :, 3:] == 0).all() and (all_of_it[0, :, 3:] != 0).all()
        # Two groups of one object each: two matched entries of class 1 and no others.
        assert int((part[0, :, 1] != 0).sum()) == 2 and (all_of_it[0, :, 1] != 0).all()
        torch.testing.assert_close(part[0, :, [0, 2]], all_of_it[0, :, [0, 2]])
        torch.testing.assert_close(part[1], all_of_it[1])
        matched = part[0, :, 1] != 0
        torch.testing.assert_close(part[0, matched, 1], all_of_it[0, matched, 1])
    # What is left out is the background term of these entries; boxes and matching stay.
    probability = predicted[0].logits.detach().sigmoid()
    entries = -(probability.square() * torch.log1p(-probability))
    missing = entries[0, :, 3:].sum() + entries[0, gradients[0][0, :, 1] == 0, 1].sum()
    torch.testing.assert_close(whole["loss_ce"] - losses["loss_ce"], missing / 10.0)
    for name in ("loss_bbox", "loss_giou"):
        torch.testing.assert_close(losses[name], whole[name])


def test_parts_of_a_window_add_up(rng):
    predicted, targets = layers(rng, 4), make_targets(rng, (2, 0, 3, 1), CLASSES)
    for index, target in enumerate(targets):
        target["labelled_classes"] = torch.arange(CLASSES) != index
    criterion = RFDETRCriterion(CONFIG)
    whole = criterion.weighted_sum(criterion(predicted, targets, 2, 12.0))
    halves = [
        criterion([each._replace(logits=each.logits[part], boxes=each.boxes[part]) for each in predicted],
                  targets[part], 2, 12.0)
        for part in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    torch.testing.assert_close(sum(map(criterion.weighted_sum, halves)), whole)


@pytest.mark.parametrize("value", [torch.ones(4, dtype=torch.bool), torch.ones(CLASSES), None])
def test_targets_that_do_not_fit(rng, value):
    targets = make_targets(rng, (1, 1), CLASSES)
    targets[0]["labelled_classes"] = torch.ones(CLASSES, dtype=torch.bool)
    if value is not None:
        targets[1]["labelled_classes"] = value
    with pytest.raises(ValueError, match=r"'labelled_classes' must be bool \(5,\) of every image or of none"):
        RFDETRCriterion(CONFIG)(layers(rng, 2), targets, 2)


def federated_case(seed=0, images=12, classes=6):
    """Truth with LVIS' fields, and detections near it and elsewhere, of all classes."""
    rng = np.random.default_rng(seed)
    records, annotations, found = [], [], []
    for i in range(1, images + 1):
        own = rng.choice(classes, 3, replace=False) + 1
        present, negative = own[:2].tolist(), own[2:].tolist()
        records.append({"id": i, "width": 200, "height": 150, "neg_category_ids": negative,
                        "not_exhaustive_category_ids": present[:1] if i % 2 else []})  # fmt: skip
        for category in present:
            for _ in range(rng.integers(1, 4)):
                box = [*rng.uniform(0, 100, 2), *rng.uniform(5, 90, 2)]
                annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": box,
                                    "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
                near = (np.array(box) + rng.normal(0, 4, 4)).clip(1)
                found.append((i, category, near.tolist(), float(rng.random())))
        for category in range(1, classes + 1):
            found.append((i, category, [*rng.uniform(0, 100, 2), *rng.uniform(5, 90, 2)], float(rng.random())))
    categories = [{"id": c, "name": f"c{c}", "frequency": "f"} for c in range(1, classes + 1)]
    return make_coco(records, annotations, categories), found


def evaluator_of(truth, found, backend="pycocotools"):
    evaluator = CocoEvaluator(truth, 1000, backend=backend)
    for image in sorted(truth.imgs):
        own = [each for each in found if each[0] == image]
        boxes = np.array([box for _, _, box, _ in own]).reshape(-1, 4)
        scores, labels = np.array([s for *_, s in own]), np.array([c for _, c, _, _ in own])
        evaluator.update([image], [{"scores": scores, "labels": labels, "boxes_xywh": boxes}])
    return evaluator


def test_evaluation_equals_that_of_lvis(tmp_path):
    truth, found = federated_case()
    content = {**truth.dataset, "info": {}, "licenses": []}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    keys = ("image_id", "category_id", "bbox", "score")
    (tmp_path / "found.json").write_text(json.dumps([dict(zip(keys, each, strict=True)) for each in found]))
    average, precision, recall = json.loads(run_tools(LVIS_SCORES, tmp_path / "truth.json", tmp_path / "found.json"))
    ours = evaluator_of(truth, found).run()
    np.testing.assert_allclose(ours.precision[..., 0, -1], np.array(precision)[..., 0], atol=1e-12)
    np.testing.assert_allclose(ours.recall[..., 0, -1], np.array(recall)[..., 0], atol=1e-12)
    assert evaluator_of(truth, found).compute()["map"] == pytest.approx(average) and 0.1 < average < 0.9


def test_evaluation_by_the_rule_as_it_is_written():
    truth, found = federated_case(seed=1)
    evaluation = evaluator_of(truth, found).run()
    present = {(a["image_id"], a["category_id"]) for a in truth.anns.values()}
    looked_at = [
        (i, c) in present or c in truth.imgs[i]["neg_category_ids"]
        for i, c in zip(*[[each[k] for each in found] for k in (0, 1)], strict=True)
    ]
    matches = evaluation.matches
    assert sum(looked_at) == len(matches.row) < len(found)
    free = [i for i in range(len(matches.row)) if matches.truth[i] < 0]
    partly = 0
    for i in free:
        image = truth.imgs[int(evaluation.image_ids[matches.image[i]])]
        category = evaluation.category_ids[matches.category[i]]
        unsure = category in image["not_exhaustive_category_ids"]
        assert bool(matches.ignored[i]) == unsure
        partly += unsure
    assert partly > 3 and not matches.ignored[matches.truth >= 0].any()
    # Without the fields the same detections count as wrong.
    plain = copy.deepcopy(truth.dataset)
    for image in plain["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    full = evaluator_of(make_coco(plain["images"], plain["annotations"], plain["categories"]), found).run()
    assert len(full.matches.row) == len(found) and full.matches.wrong.sum() > matches.wrong.sum()
    assert (full.matches.correct.sum(), len(full.truths.id)) == (matches.correct.sum(), len(evaluation.truths.id))


def test_compiled_evaluation_gives_the_same():
    pytest.importorskip("ultrafast_pycocotools")
    truth, found = federated_case(seed=2)
    one, two = (evaluator_of(truth, found, backend).run() for backend in ("pycocotools", "ultrafast"))
    assert (one.precision == two.precision).all() and (one.recall == two.recall).all()
    assert all((a == b).all() for a, b in zip(one.matches, two.matches, strict=True))


@pytest.mark.parametrize("iou_type", ["segm", "keypoints"])
def test_unlabelled_classes_of_masks_and_keypoints(iou_type):
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    images = [{"id": 1, "width": 64, "height": 48, "neg_category_ids": [], "not_exhaustive_category_ids": [1]}]
    truth = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0,
              "segmentation": square, "keypoints": [12, 12, 2, 28, 28, 2], "num_keypoints": 2}]  # fmt: skip
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    evaluator = CocoEvaluator(make_coco(images, truth, categories), iou_types=[iou_type], sigmas=[0.1, 0.1]
                              if iou_type == "keypoints" else None)  # fmt: skip
    boxes = np.array([[10, 10, 20, 20], [40, 30, 10, 10], [40, 30, 10, 10]], float)
    found = {"scores": np.array([0.5, 0.9, 0.9]), "labels": np.array([1, 1, 2]), "boxes_xywh": boxes}
    if iou_type == "segm":
        masks = np.zeros((3, 48, 64), bool)
        masks[0, 10:30, 10:30], masks[1:, 30:40, 40:50] = True, True
        found["masks"] = masks
    else:
        found["keypoints"] = np.array([[[12, 12, 1], [28, 28, 1]], *[[[41, 31, 1], [49, 39, 1]]] * 2], float)
    evaluator.update([1], [found])
    # The better scored detection elsewhere is ignored, that of the unlabelled class is not looked at.
    run = evaluator.run()
    assert len(run.matches.row) == 2 and run.matches.correct.sum() == 1 and run.matches.wrong.sum() == 0
    assert run.precision[0, :, 0, 0, -1].min() == pytest.approx(1)
