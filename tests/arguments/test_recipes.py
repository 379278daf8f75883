"""`recipe: official`: rfdetr's defaults and formulas, and what explicit options do to them."""

import random

import pytest
import torch
from helpers.runs import quick_arguments
from helpers.scripts import ROOT

from rfdetr_hf import ExponentialMovingAverage, RFDETRTrainer, RFDETRTrainingArguments, build_scheduler, parse_arguments
from rfdetr_hf.arguments.recipes import OFFICIAL, OFFICIAL_BY_TASK
from rfdetr_hf.training.multi_scale import scale_for_step
from rfdetr_hf.training.update import loss_divisors

SHAPES = 8


def test_the_recipe_sets_what_is_not_given(caplog):
    args = RFDETRTrainingArguments(recipe="official")
    assert {name: getattr(args, name) for name in OFFICIAL} == OFFICIAL
    run = args.for_run("detection")
    assert (run.metric_for_best_model, run.skip_best_epochs, run.smooth_alpha) == ("map_at_500", 0, 0)
    assert args.for_run("segmentation").metric_for_best_model == "segm_map_at_500"
    keypoints = args.for_run("keypoints")
    assert keypoints.metric_for_best_model == "keypoint_map"
    assert {name: getattr(keypoints, name) for name in OFFICIAL_BY_TASK["keypoints"]} == OFFICIAL_BY_TASK["keypoints"]
    assert not caplog.records


def test_given_options_win_and_are_named(caplog, tmp_path):
    given = {"gradient_accumulation_steps": 4, "learning_rate": 2e-4, "skip_best_epochs": 1.0}  # 4 is our default
    (tmp_path / "run.yaml").write_text("recipe: official\ngradient_accumulation_steps: 4\nlearning_rate: 2e-4\n")
    (parsed,) = parse_arguments(
        (RFDETRTrainingArguments,), ["--config", str(tmp_path / "run.yaml"), "--skip_best_epochs", "1"]
    )
    for args in (RFDETRTrainingArguments(recipe="official", **given), parsed):
        caplog.clear()
        run = args.for_run("keypoints")
        assert {name: getattr(run, name) for name in given} == given and run.smooth_alpha == 0.5
        for part in ("gradient_accumulation_steps=4 (official: 1)", "learning_rate=0.0002 (official: 0.0001)",
                     "skip_best_epochs=1.0 (official: 10.0)"):  # fmt: skip
            assert part in caplog.text
        assert "ema_decay" not in caplog.text
    again = RFDETRTrainingArguments(**run.to_dict())
    assert again.for_run("keypoints").to_dict() == run.to_dict()


def test_values_that_follow_from_the_task_follow_when_a_file_is_used_for_another(caplog):
    written = RFDETRTrainingArguments(recipe="official").for_run("keypoints").to_dict()
    found = {task: RFDETRTrainingArguments(**written).for_run(task) for task in ("detection", "keypoints")}
    assert (found["detection"].skip_best_epochs, found["detection"].smooth_alpha) == (0, 0)
    assert (found["keypoints"].skip_best_epochs, found["keypoints"].smooth_alpha) == (10, 0.5)
    assert "except for what is given" not in caplog.text
    given = RFDETRTrainingArguments(recipe="official", skip_best_epochs=10.0).for_run("detection")
    assert given.skip_best_epochs == 10 and "except for what is given" in caplog.text


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_the_schedule_is_the_official_one(kind):
    """The multiplier of the official LambdaLR by its formulas; T = 12 steps, 3 of them warm-up."""
    args = RFDETRTrainingArguments(
        recipe="official",
        lr_scheduler_type=kind,
        warmup_epochs=1.5,
        **({"lr_drop_epochs": 4} if kind == "step" else {}),
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, args, 12, 2)
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    after = [0.5 * (1 + torch.tensor(torch.pi * (s - 3) / (12 - 3)).cos().item()) for s in range(3, 12)]
    after = after if kind == "cosine" else [1.0 if s < 4 * 2 else 0.1 for s in range(3, 12)]
    assert found == pytest.approx([0, 1 / 3, 2 / 3, *after], abs=1e-6)


def test_the_first_update_of_the_average_copies_the_weights():
    weight = torch.zeros(1)
    ema = ExponentialMovingAverage([("w", weight)], decay=0.9, tau=0, copy_first=True)
    weight += 1
    ema.update(1)
    assert ema.state_dict()["w"].item() == 1
    weight += 1
    ema.update(2)
    assert ema.state_dict()["w"].item() == pytest.approx(1.1)


def test_scales_and_divisors():
    assert [scale_for_step([1, 2, 3], 5, step, True) for step in range(9)] == [
        random.Random(step).choice([1, 2, 3]) for step in range(9)
    ]
    assert loss_divisors([3, 0], groups=2, processes=2, apart=False) == [3, 3]
    assert loss_divisors([3, 0], groups=2, processes=2, apart=True) == [6, 2]


def test_a_run(tmp_path, tiny_model, shapes):
    args = quick_arguments(tmp_path, recipe="official", max_steps=2, multi_scale="per_batch")
    trainer = RFDETRTrainer(tiny_model(), args, shapes, shapes.select(range(2)))
    trainer.train()
    assert "eval_map_at_500" in {name for row in trainer.state.log_history for name in row}
    names = {group["name"] for group in trainer.optimizer.param_groups}
    assert "head.decay" in names and "head.no_decay" not in names  # biases decay there
    assert (tmp_path / "best").is_dir() and trainer.state.best.source == "ema"


def test_a_recipe_that_is_set_later_chooses_the_best_by_its_own_score():
    args = RFDETRTrainingArguments("runs/recipe")
    args.recipe = "official"
    assert args.for_run("detection").metric_for_best_model == "map_at_500"


def test_the_table_of_the_guide_has_every_option_of_the_recipe():
    page = (ROOT / "docs" / "guides" / "training.md").read_text()
    named = page.split("### The official recipe")[1].split("\n#")[0]
    options = {*OFFICIAL, *(name for values in OFFICIAL_BY_TASK.values() for name in values)}
    assert [name for name in options if f"`{name}`" not in named] == []


def test_other_recipes_are_refused():
    with pytest.raises(ValueError, match="recipe='offical' is not known; choose one of default, official"):
        RFDETRTrainingArguments(recipe="offical")
