"""What rfdetr 1.11.2 does when it chooses the best model, stops early, augments and parses, done here as well.

The scores are those of a script, so that a run of seconds meets the cases that matter. Where this package differs on
purpose, the test says so, and docs/migration/from_rfdetr.md has the reason.
"""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import quick_arguments
from PIL import Image
from safetensors.torch import load_file

from rfdetr_hf import (
    RFDETRConfig,
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRForObjectDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    load_detection_dataset,
)

NAN = math.nan
SHAPES = 4
arguments = partial(
    quick_arguments, gradient_accumulation_steps=1, logging_steps=100, save_strategy="no", learning_rate=1e-3
)


class Scores:
    """`compute_metrics` that returns one score after the other: raw weights, average, raw weights, ..."""

    def __init__(self, values):
        self.values = list(values)

    def __call__(self, prediction):
        return {"score": self.values.pop(0)}


@pytest.fixture
def run(tmp_path, tiny_model, shapes):
    """Train with one evaluation an epoch: `run(scores, **options)`; a pair of scores is that of raw and averaged."""

    def train(scores, resume=None, **options):
        both = any(isinstance(score, tuple) for score in scores)
        flat = [value for score in scores for value in (score if isinstance(score, tuple) else (score,))]
        defaults = {"use_ema": both, "eval_raw_weights": both}
        defaults["metric_for_best_model"] = "score,raw_score" if both else "score"
        options = {"num_train_epochs": len(scores), **defaults, **options}
        trainer = RFDETRTrainer(
            tiny_model(), arguments(tmp_path / "run", **options), shapes, shapes, compute_metrics=Scores(flat)
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def epoch_of_best(trainer):
    """1 for the first; None without a best model."""
    state = trainer.state
    steps = state.max_steps // state.num_train_epochs
    return state.best_global_step // steps if state.best_global_step else None


def evaluations(trainer):
    return sum("eval_runtime" in row for row in trainer.state.log_history)


def best_is_average(trainer):
    """After a run whose only evaluation was the last: `last/` holds the average."""
    folder = trainer.args.output_dir
    best, last = (load_file(f"{folder}/{name}/model.safetensors") for name in ("best", "last"))
    return all(torch.equal(best[name], last[name]) for name in last)


# ---------------------------------------------------------------------------------------------------- the best model


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.3, 0.1], 1),  # A tie is no improvement.
        ([0.0, 0.0], 1),  # Zero is a score: the run has a best model.
        ([0.1, NAN, 0.2, NAN], 3),
        ([0.2, math.inf * 0, 0.1], 1),
    ],
)
def test_the_best_epoch_is_the_first_with_the_highest_score(run, scores, best):
    assert epoch_of_best(run(scores)) == best


@pytest.mark.parametrize(
    ("raw", "average", "average_wins"), [(0.2, 0.3, True), (0.3, 0.2, False), (0.3, 0.3, False), (NAN, 0.1, True)]
)
def test_the_average_wins_where_it_is_strictly_better(run, raw, average, average_wins):
    assert best_is_average(run([(raw, average)])) == average_wins


def test_the_average_alone_competes_where_it_alone_is_evaluated(run):
    trainer = run([0.0], use_ema=True)
    assert epoch_of_best(trainer) == 1 and best_is_average(trainer)


def test_the_average_alone_competes_where_the_metric_says_so(run):
    trainer = run([(0.9, 0.1)], metric_for_best_model="score")
    assert trainer.state.best_metric == 0.1 and best_is_average(trainer)


@pytest.mark.parametrize(("skipped", "best"), [(0, 1), (1, 2), (2, 4), (3, 4)])
def test_the_first_epochs_do_not_compete(run, skipped, best):
    """`skip_best_epochs=N` leaves out the evaluations at the end of the first N epochs."""
    assert epoch_of_best(run([0.9, 0.6, 0.1, 0.5], skip_best_epochs=skipped)) == best


def test_a_run_in_which_no_epoch_competes_ends_with_its_last_weights(run):
    trainer = run([0.5, 0.6], skip_best_epochs=5)
    assert epoch_of_best(trainer) is None and not Path(trainer.args.output_dir, "best").exists()
    last = load_file(f"{trainer.args.output_dir}/last/model.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in trainer.model.state_dict().items() if name in last)


def test_a_run_in_which_no_epoch_competes_warns(run, caplog):
    run([0.5, 0.6], skip_best_epochs=5)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("no best/" in warning and "skip_best_epochs=5" in warning for warning in warnings)


def test_smoothing_begins_before_the_epochs_that_compete(run):
    """Smoothed by a half: 0.8, 0.4, 0.3. Without the first score the third would be the best."""
    trainer = run([0.8, 0.0, 0.2], skip_best_epochs=1, smooth_alpha=0.5)
    assert epoch_of_best(trainer) == 2
    assert trainer.state.best_metric == pytest.approx(0.4)


def test_a_lower_loss_is_better(run):
    trainer = run([(5.0, 4.0), (3.0, 2.0), (9.0, 8.0)], metric_for_best_model="eval_loss,eval_raw_loss", eval_loss=True)
    losses = [min(row["eval_loss"], row["eval_raw_loss"]) for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.state.best_metric == min(losses)


def test_a_resumed_run_keeps_the_best_of_before(run):
    run([0.7, 0.1], save_strategy="epoch", num_train_epochs=3, max_steps=10)
    trainer = run([0.4, 0.3], resume=True, save_strategy="epoch", max_steps=20)
    assert epoch_of_best(trainer) == 1 and trainer.state.best_metric == 0.7


# ---------------------------------------------------------------------------------------------------- early stopping


@pytest.mark.parametrize(
    ("scores", "patience", "threshold", "taken"),
    [
        ([0.5, 0.4, 0.4, 0.9, 0.9], 2, 0.0, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 0.0, 5),
        ([0.5, 0.505, 0.9], 1, 0.01, 2),  # Below the threshold.
        ([0.5, 0.51, 0.3, 0.9], 1, 0.005, 3),
        ([0.50, 0.506, 0.512, 0.518, 0.9], 2, 0.01, 5),  # Small gains are measured from the last that counted.
        ([0.5, 0.5, 0.9], 1, 0.0, 2),  # No gain is none, with any threshold.
        ([0.5, NAN, 0.4, 0.9], 2, 0.0, 3),  # NaN is no improvement, as for the best model; rfdetr ends the run.
        ([0.5, NAN, 0.9], 5, 0.0, 3),
        ([0.1, 0.2, 0.3], 1, 0.0, 3),
    ],
)
def test_patience_counts_evaluations_without_enough_gain(run, scores, patience, threshold, taken):
    trainer = run(scores, early_stopping_patience=patience, early_stopping_threshold=threshold)
    assert evaluations(trainer) == taken


def test_stopping_looks_at_the_better_of_raw_and_averaged_weights(run):
    scores = [(0.5, 0.1), (0.1, 0.6), (0.2, 0.2), (0.9, 0.9)]
    assert evaluations(run(scores, early_stopping_patience=1)) == 3


def test_stopping_looks_at_the_average_alone_where_the_metric_says_so(run):
    scores = [(0.1, 0.5), (0.9, 0.4), (0.9, 0.9)]
    trainer = run(scores, early_stopping_patience=1, metric_for_best_model="score")
    assert evaluations(trainer) == 2


def test_stopping_does_not_count_the_first_epochs(run):
    scores = [0.9, 0.8, 0.1, 0.05, 0.7]
    assert evaluations(run(scores, early_stopping_patience=1, skip_best_epochs=2)) == 4


def test_patience_goes_on_after_a_resume(run):
    run([0.7, 0.1], save_strategy="epoch", max_steps=10, num_train_epochs=9, early_stopping_patience=2)
    trainer = run([0.2, 0.9], resume=True, save_strategy="epoch", max_steps=20, early_stopping_patience=2)
    assert evaluations(trainer) == 3


def test_stopping_needs_evaluations(tmp_path):
    with pytest.raises(ValueError, match="early_stopping_patience needs evaluations"):
        arguments(tmp_path, eval_strategy="no", early_stopping_patience=3)


# ---------------------------------------------------------------------------------------------------- augmentation


CORNERS = ["left_top", "right_top", "left_bottom", "right_bottom"]
CLASSES = {
    "detection": RFDETRForObjectDetection,
    "segmentation": RFDETRForInstanceSegmentation,
    "keypoints": RFDETRForKeypointDetection,
}
SIDE = 128  # What the model sees.


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A COCO folder of 12 black pictures of 150 x 100 pixels: a red object on the left, a green one on the right.

    Each fills its box and mask, and its corners are its keypoints. There are a crowd, a box that leaves the picture and
    one without area besides.
    """
    folder = tmp_path_factory.mktemp("painted") / "train"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(12):
        pixels = np.zeros((100, 150, 3), np.uint8)
        for category, low in ((1, 5), (2, 80)):
            x, y = int(rng.integers(low, low + 15)), int(rng.integers(5, 30))
            w, h = (int(v) for v in rng.integers(30, 48, 2))
            pixels[y : y + h, x : x + w, category - 1] = 255
            corners = [(x, y), (x + w, y), (x, y + h), (x + w, y + h)]
            outline = [c for i in (0, 1, 3, 2) for c in corners[i]]
            annotations.append(
                {"image_id": index, "category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                 "segmentation": [outline], "keypoints": [v for c in corners for v in (*c, 2)], "num_keypoints": 4}
            )  # fmt: skip
        name = f"{index}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": index, "file_name": name, "width": 150, "height": 100})
    odd = {"image_id": 0, "category_id": 1, "segmentation": [], "keypoints": [0] * 12, "num_keypoints": 0}
    rle = {"size": [100, 150], "counts": [0, 15000]}
    annotations.append({**odd, "bbox": [0, 0, 150, 100], "area": 15000, "iscrowd": 1, "segmentation": rle})
    for number, each in enumerate(annotations):
        each["id"] = number + 1
    categories = [{"id": i + 1, "name": name, "keypoints": CORNERS} for i, name in enumerate(("red", "green"))]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "_annotations.coco.json").write_text(text)
    return folder.parent


def seen_in_training(folder, data, task, steps=12, augmentation=None, **options):
    """What the model's forward gets in a training: uint8 (3, H, W) pixels and labels of each picture."""
    dataset = load_detection_dataset(str(data), task=task)["train"]
    fields = {"num_keypoints_per_class": [4, 4]} if task == "keypoints" else {}
    backbone = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16, "num_windows": 1,
        "out_indices": [1], "image_size": SIDE,
    }  # fmt: skip
    config = RFDETRConfig(
        backbone_config=backbone, resolution=SIDE, d_model=32, decoder_layers=1, decoder_ffn_dim=32, num_queries=4,
        group_detr=1, decoder_self_attention_heads=2, decoder_cross_attention_heads=4,
        id2label={0: "red", 1: "green"}, label2id={"red": 0, "green": 1}, **fields,
    )  # fmt: skip
    model, seen = CLASSES[task](config), []
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def look(module, args, kwargs):
        for pixels, labels in zip(kwargs["pixel_values"], kwargs["labels"], strict=True):
            seen.append(((pixels * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8), labels))

    model.register_forward_pre_hook(look, with_kwargs=True)
    args = arguments(folder, eval_strategy="no", use_ema=False, max_steps=steps, **options)
    RFDETRTrainer(model, args, dataset, augmentation=augmentation).train()
    assert len(seen) == 2 * steps
    return seen


def region(pixels, label):
    """(H, W) bool: where the object of this class is painted."""
    return pixels[label] > 127


def extent(where):
    """x1, y1, x2, y2 of a region in pixels."""
    rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def corners_of(box):
    x, y, w, h = (box * SIDE).tolist()
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def is_mirrored(pixels):
    """Green left of red; only where both can be seen."""
    red, green = region(pixels, 0), region(pixels, 1)
    return bool(extent(green)[0] < extent(red)[0]) if red.any() and green.any() else None


RECIPES = {
    "resized": {"scale_jitter": False, "horizontal_flip": 0.0},
    "mirrored": {"scale_jitter": False, "horizontal_flip": 1.0},
    "cropped": {"scale_jitter": True, "horizontal_flip": 0.5},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_boxes_stay_on_their_objects(tmp_path, painted, recipe):
    seen = seen_in_training(tmp_path, painted, "detection", **RECIPES[recipe])
    for pixels, labels in seen:
        visible = sorted(label for label in (0, 1) if region(pixels, label).sum() > 2 * SIDE)
        assert set(visible) <= set(labels["class_labels"].tolist()), "an object that is seen has lost its box"
        assert len(labels["boxes"]) <= 2, "a crowd is no object to learn"
        for label, box in zip(labels["class_labels"].tolist(), labels["boxes"], strict=True):
            x1, y1, x2, y2 = corners_of(box)
            assert -1e-3 <= x1 < x2 <= SIDE + 1e-3 and -1e-3 <= y1 < y2 <= SIDE + 1e-3
            if label in visible:
                assert [x1, y1, x2, y2] == pytest.approx(extent(region(pixels, label)), abs=1.6)
    mirrored = {is_mirrored(pixels) for pixels, _ in seen} - {None}
    assert mirrored == {"resized": {False}, "mirrored": {True}, "cropped": {False, True}}[recipe]


def test_crops_cut_boxes_and_drop_objects(tmp_path, painted):
    seen = seen_in_training(tmp_path, painted, "detection", steps=30, **RECIPES["cropped"])
    counts = {len(labels["boxes"]) for _, labels in seen}
    assert {1, 2} <= counts
    cut = [box for _, labels in seen for box in labels["boxes"] if corners_of(box)[0] < 0.1]
    assert cut, "no object was cut at the left border"


@pytest.mark.parametrize("recipe", RECIPES)
def test_masks_stay_on_their_objects(tmp_path, painted, recipe):
    for pixels, labels in seen_in_training(tmp_path, painted, "segmentation", **RECIPES[recipe]):
        assert len(labels["masks"]) == len(labels["boxes"]) == len(labels["class_labels"])
        for label, mask in zip(labels["class_labels"].tolist(), labels["masks"], strict=True):
            painted_here = region(pixels, label)
            if painted_here.sum() < 2 * SIDE:
                continue
            rows, columns = (torch.arange(SIDE) * side // SIDE for side in mask.shape)
            mask = mask[rows][:, columns].bool()
            assert (mask & painted_here).sum() / (mask | painted_here).sum() > 0.85


@pytest.mark.parametrize("recipe", RECIPES)
def test_keypoints_stay_on_their_corners_and_change_names_in_a_mirror(tmp_path, painted, recipe):
    outside = 0
    for pixels, labels in seen_in_training(tmp_path, painted, "keypoints", steps=20, **RECIPES[recipe]):
        assert len(labels["keypoints"]) == len(labels["boxes"])
        for label, points in zip(labels["class_labels"].tolist(), labels["keypoints"], strict=True):
            gone = points[:, 2] == 0
            outside += int(gone.sum())
            assert (points[gone] == 0).all(), "a keypoint outside of the picture keeps its place"
            where = region(pixels, label)
            if gone.any() or where.sum() < 2 * SIDE:
                continue
            x1, y1, x2, y2 = extent(where)
            expected = torch.tensor([[x1, y1], [x2, y1], [x1, y2], [x2, y2]])
            torch.testing.assert_close(points[:, :2] * SIDE, expected.float(), atol=1.6, rtol=0)
    assert (outside > 0) == (recipe == "cropped")


def test_without_flip_pairs_keypoints_are_not_mirrored(tmp_path, painted, caplog):
    """The names do not say what is left and right: rfdetr leaves the mirror out with a warning."""
    data = tmp_path / "unpaired" / "train"
    data.mkdir(parents=True)
    for path in (painted / "train").iterdir():
        text = path.read_bytes()
        for index, name in enumerate(CORNERS):
            text = text.replace(f'"{name}"'.encode(), f'"corner {index}"'.encode())
        (data / path.name).write_bytes(text)
    options = {"scale_jitter": False, "horizontal_flip": 1.0}
    seen = seen_in_training(tmp_path / "run", data.parent, "keypoints", **options)
    assert {is_mirrored(pixels) for pixels, _ in seen} == {False}
    assert any("flip" in record.message for record in caplog.records if record.levelname == "WARNING")


def test_an_augmentation_that_drops_and_moves_objects_is_followed(tmp_path, painted):
    """Upside down, without the red object, and one box stretched beyond the picture."""

    def augmentation(image, target):
        height = image.height
        boxes = target["boxes"].copy()
        boxes[:, [1, 3]] = height - target["boxes"][:, [3, 1]]
        boxes[:, 3] += 500
        keep = target["class_labels"] == 1
        target = {name: value[keep] for name, value in {**target, "boxes": boxes}.items()}
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), target

    seen = seen_in_training(tmp_path, painted, "detection", augmentation=augmentation, **RECIPES["resized"])
    for pixels, labels in seen:
        assert labels["class_labels"].tolist() == [1]
        x1, y1, x2, _ = extent(region(pixels, 1))
        assert corners_of(labels["boxes"][0]) == pytest.approx([x1, y1, x2, SIDE], abs=1.6)


# ---------------------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("skip_best_epochs", -1), ("smooth_alpha", 1.0), ("smooth_alpha", -0.1), ("smooth_alpha", NAN),
        ("max_grad_norm", -0.1), ("drop_path", 1.0), ("ema_decay", 1.0), ("ema_decay", -0.1), ("ema_tau", -1),
        ("ema_update_interval", 0), ("per_device_train_batch_size", 0), ("gradient_accumulation_steps", 0),
        ("num_train_epochs", 0), ("num_train_epochs", NAN), ("learning_rate", 0), ("learning_rate", NAN),
        ("early_stopping_patience", 0), ("early_stopping_threshold", -0.1), ("warmup_epochs", -1),
        ("multi_scale", "sometimes"), ("lr_scheduler_type", "stairs"), ("eval_max_dets", 0),
        ("dataloader_num_workers", -1), ("horizontal_flip", 1.5), ("layer_decay", 0.0), ("weight_decay", -1e-4),
        ("seed", -1), ("dataloader_prefetch_factor", 0), ("save_total_limit", 0), ("min_lr_ratio", 1.1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        RFDETRTrainingArguments(output_dir=str(tmp_path), **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("per_device_train_batch_size", 2.5), ("per_device_train_batch_size", "2"), ("skip_best_epochs", True),
        ("early_stopping_patience", 1.5), ("num_train_epochs", "many"), ("per_device_train_batch_size", None),
        ("learning_rate", "1e-4"), ("use_ema", "no"), ("seed", 1.5),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(tmp_path, option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        RFDETRTrainingArguments(output_dir=str(tmp_path), **{option: value})


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="learning_rat"):
        RFDETRTrainingArguments(learning_rat=1e-4)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--learning_rat", "1e-4"], ["learning_rat", "did you mean 'learning_rate'"]),
        (["--learning_rate", "fast"], ["learning_rate", "fast"]),
        (["--use_ema=perhaps"], ["use_ema", "perhaps"]),
        (["--per_device_train_batch_size", "2.5"], ["per_device_train_batch_size", "2.5"]),
        (["--from_scratch", "--resolution", "100"], ["resolution 100", "96 or 128"]),
        (["--skip_best_epochs", "-1"], ["skip_best_epochs"]),
        (["--lr_scheduler_type", "stairs"], ["lr_scheduler_type", "stairs"]),
    ],
)
def test_the_command_line_names_what_it_does_not_understand(capsys, tmp_path, words, fragments):
    from rfdetr_hf.cli.main import main

    try:
        code = main(["fit", "--output_dir", str(tmp_path / "run"), *words])
    except SystemExit as end:
        code = end.code
    printed = "".join(capsys.readouterr())
    assert code not in (0, None) and "Traceback" not in printed
    assert all(fragment in printed for fragment in fragments), printed[-600:]
    assert not (tmp_path / "run").exists()


def test_a_file_and_the_command_line_give_the_same_and_the_command_line_wins(capsys, tmp_path):
    from rfdetr_hf.cli.main import main

    path = tmp_path / "run.yaml"
    path.write_text("multi_scale: off\nuse_ema: no\nlearning_rate: 2e-4\nearly_stopping_patience: null\nseed: 7\n")
    assert main(["config", "--config", str(path), "--seed", "8"]) == 0
    printed = capsys.readouterr().out
    for line in ("multi_scale: 'off'", "use_ema: false", "learning_rate: 0.0002", "seed: 8"):
        assert line in printed, printed
