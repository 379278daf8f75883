import contextlib
import copy
import json
import logging
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.runs import assert_same, metrics_rows, quick_arguments, weights
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from rfdetr_hf import RFDETRForObjectDetection, RFDETRImageProcessor, RFDETRTrainer, make_shapes_dataset

arguments = partial(
    quick_arguments, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=2, learning_rate=1e-3,
    learning_rate_encoder=1e-3, metric_for_best_model=None,
)  # fmt: skip


def test_a_run_leaves_what_the_design_says(tmp_path, tiny_model, shapes, held_out):
    args = arguments(tmp_path / "run", eval_raw_weights=True)
    model = tiny_model()
    before = weights(model)
    trainer = RFDETRTrainer(model, args, shapes, held_out)
    result = trainer.train()
    assert result.global_step == 12
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "best", "last", "checkpoint-6", "checkpoint-12", "metrics.csv", "train.log", "args.yaml", "eval",
        "status.json", "report.html",
    }  # fmt: skip
    for folder in ("best", "last"):
        for file in ("config.json", "model.safetensors", "preprocessor_config.json", "README.md"):
            assert (tmp_path / "run" / folder / file).is_file()
    for file in ("config.json", "model.safetensors", "ema.safetensors", "optimizer/index.json",
                 "optimizer/rank-0.safetensors", "scheduler.json", "rank_states.safetensors", "trainer_state.json",
                 "progress.json", "preprocessor_config.json"):  # fmt: skip
        assert (tmp_path / "run" / "checkpoint-12" / file).is_file()
    trained = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    after = load_file(tmp_path / "run" / "checkpoint-12" / "model.safetensors")
    assert [n for n in trained if torch.equal(before[n], after[n])] == []
    columns = metrics_rows(tmp_path / "run")[-1].keys()
    for column in ("loss", "loss_ce", "loss_giou_0", "loss_bbox_enc", "grad_norm", "learning_rate", "eval_map",
                   "eval_raw_map_50", "eval_mar_100"):  # fmt: skip
        assert column in columns
    assert not {"images_per_second", "eta", "eval_runtime"} & columns
    assert "img/s" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize(("multi_scale", "rtol"), [("off", 1e-10), ("per_batch", 1e-6)])
def test_one_batch_of_four_equals_four_batches_of_one(tmp_path, tiny_model, shapes, multi_scale, rtol):
    # Position embeddings are interpolated in float32, as the official model does, hence the wider bound of the second.
    runs = []
    for name, batch, accumulation in (("large", 4, 1), ("small", 1, 4)):
        args = arguments(
            tmp_path / name, max_steps=5, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            eval_strategy="no", save_strategy="no", logging_steps=1, multi_scale=multi_scale,
        )  # fmt: skip
        trainer = RFDETRTrainer(tiny_model().double(), args, shapes)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        runs.append((losses, load_file(tmp_path / name / "last" / "model.safetensors")))
    assert len(runs[0][0]) == 5
    assert runs[0][0] == pytest.approx(runs[1][0], rel=rtol)
    for name, tensor in runs[0][1].items():
        torch.testing.assert_close(tensor, runs[1][1][name], rtol=rtol, atol=rtol, msg=name)


class Killer(TrainerCallback):
    """Stops the process as a power cut would, at the end of one step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("killed_at", "workers"),
    [(5, 0), (8, 2), (12, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(8, 0), (5, 2)])],
)
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(tmp_path, tiny_model, shapes, held_out, killed_at, workers):
    options = {
        "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3, "multi_scale": "per_batch", "drop_path": 0.2,
        "lr_scheduler_type": "cosine", "dataloader_num_workers": workers, "logging_steps": 3, "save_total_limit": None,
        "early_stopping_patience": 10,
    }  # fmt: skip
    whole = RFDETRTrainer(tiny_model(), arguments(tmp_path / "whole", **options), shapes, held_out)
    whole.train()
    args = arguments(tmp_path / "cut", **options)
    with pytest.raises(KeyboardInterrupt):
        RFDETRTrainer(tiny_model(), args, shapes, held_out, callbacks=[Killer(killed_at)]).train()
    resumed = RFDETRTrainer(tiny_model(seed=5), args, shapes, held_out)
    resumed.train(resume_from_checkpoint=True)
    for file in ("best/model.safetensors", "last/model.safetensors", "checkpoint-18/ema.safetensors"):
        assert_same(load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file))
    optimizers = [tmp_path / run / "checkpoint-18" / "optimizer" for run in ("whole", "cut")]
    assert len({(folder / "rank-0.safetensors").read_bytes() for folder in optimizers}) == 1
    assert len({(folder / "index.json").read_text() for folder in optimizers}) == 1
    assert metrics_rows(tmp_path / "whole") == metrics_rows(tmp_path / "cut")
    stopping = [
        json.loads((tmp_path / run / "checkpoint-18" / "trainer_state.json").read_text()) for run in ("whole", "cut")
    ]
    assert stopping[0]["stateful_callbacks"] == stopping[1]["stateful_callbacks"]


def test_a_new_run_does_not_write_into_an_earlier_one(tmp_path, tiny_model, shapes):
    args = arguments(tmp_path, max_steps=1, eval_strategy="no", save_strategy="no")
    RFDETRTrainer(tiny_model(), args, shapes).train()
    with pytest.raises(FileExistsError, match="resume_from_checkpoint=True"):
        RFDETRTrainer(tiny_model(), args, shapes).train()


class Poison(TrainerCallback):
    """Makes the loss of chosen steps not finite, by a NaN in the weights for the length of the step."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.kept = None
        if state.global_step in self.steps:
            self.kept = model.class_embed.bias.detach().clone()
            model.class_embed.bias.data.fill_(float("nan"))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.kept is not None:
            assert model.class_embed.bias.isnan().all()
            model.class_embed.bias.data.copy_(self.kept)


def test_a_step_that_is_not_finite_touches_nothing_and_is_counted(tmp_path, tiny_model, shapes, caplog):
    options = {"eval_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "cosine", "max_steps": 4}
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path / "a", **options), shapes, callbacks=[Poison(2)])
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
            seen.append((trainer.ema.num_updates, lr_scheduler.last_epoch, weights(trainer.model)))

    trainer.add_callback(Watch())
    with caplog.at_level(logging.WARNING, logger="rfdetr_hf"):
        result = trainer.train()
    assert [s[:2] for s in seen] == [(1, 1), (2, 2), (2, 2), (3, 3)]
    assert_same(seen[1][2], seen[2][2])
    assert result.metrics["train_skipped_steps"] == 1
    assert any("step 3 skipped" in message and "images [" in message for message in caplog.messages)
    assert all(torch.isfinite(tensor).all() for tensor in trainer.model.state_dict().values())


def test_too_many_such_steps_end_the_run_with_the_images_named(tmp_path, tiny_model, shapes):
    args = arguments(tmp_path, eval_strategy="no", max_skipped_steps=3)
    with pytest.raises(RuntimeError, match=r"3 steps in a row .* images \[\d+"):
        RFDETRTrainer(tiny_model(), args, shapes, callbacks=[Poison(*range(1, 9))]).train()


def test_callbacks_of_transformers_run_unmodified(tmp_path, tiny_model, shapes, held_out):
    events = []

    class Recorder(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                return lambda *args, **kwargs: events.append((name, sorted(kwargs)))
            return super().__getattribute__(name)

    args = arguments(tmp_path, num_train_epochs=9, metric_for_best_model="map", learning_rate=1e-9,
                     learning_rate_encoder=1e-9)  # fmt: skip
    stop = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=2.0)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, held_out, callbacks=[Recorder(), stop])
    trainer.train()
    assert trainer.state.global_step == 18  # the first evaluation sets the mark, two more do not pass it
    names = [name for name, _ in events]
    assert names[:4] == ["on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin"]
    assert names[4:8] == ["on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
    assert names[-1] == "on_train_end"
    assert [names.count(n) for n in ("on_epoch_end", "on_evaluate", "on_save", "on_step_end")] == [3, 3, 3, 18]
    for _, given in events:
        assert {"model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader"} <= set(given)


def test_our_early_stopping_is_an_argument(tmp_path, tiny_model, shapes, held_out):
    args = arguments(tmp_path, num_train_epochs=9, early_stopping_patience=1, early_stopping_threshold=2.0)
    trainer = RFDETRTrainer(tiny_model(), args, shapes, held_out)
    assert trainer.train().global_step == 12


def test_early_stopping_on_what_is_not_evaluated_is_refused(tmp_path, tiny_model, shapes, held_out):
    args = arguments(tmp_path, metric_for_best_model="map,raw_map", eval_raw_weights=True)
    with pytest.raises(ValueError, match="EarlyStoppingCallback looks at one score"):
        RFDETRTrainer(tiny_model(), args, shapes, held_out, callbacks=[EarlyStoppingCallback(2)])


def test_a_model_of_other_classes_is_refused(tmp_path, tiny_model, shapes):
    model = tiny_model(names=("circle", "triangle", "square"))
    with pytest.raises(ValueError, match="classes of train_dataset are"):
        RFDETRTrainer(model, arguments(tmp_path, eval_strategy="no"), shapes)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("multi_scale", ["per_batch", "per_sample"])
def test_every_image_mode_trains(tmp_path, tiny_model, multi_scale, square):
    data = make_shapes_dataset(8, image_size=80, seed=3)
    args = arguments(
        tmp_path, max_steps=2, multi_scale=multi_scale, square_resize=square, expanded_scales=False, logging_steps=1
    )
    trainer = RFDETRTrainer(tiny_model(), args, data, data)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in trainer.state.log_history if "loss" in row)


@pytest.mark.parametrize(
    "option",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"freeze_backbone": True, "learning_rate_encoder": None}],
)
def test_options_of_the_step(tmp_path, tiny_model, shapes, option):
    args = arguments(
        tmp_path, max_steps=2, eval_strategy="no", save_strategy="no", logging_steps=1, use_ema=False, **option
    )
    model = tiny_model()
    before = weights(model)
    trainer = RFDETRTrainer(model, args, shapes)
    trainer.train()
    frozen = {n for n, t in trainer.model.state_dict().items() if torch.equal(t, before[n])}
    encoder = {n for n in before if n.startswith("backbone.0.encoder")}
    if "freeze_backbone" in option:
        assert encoder <= frozen
    else:
        assert frozen == trainer.model.unused_parameter_names()


def test_a_saved_model_is_read_by_plain_transformers_with_equal_logits(tmp_path, tiny_model):
    model = tiny_model().double().eval()
    trainer = RFDETRTrainer(model, arguments(tmp_path, eval_strategy="no"))
    trainer.save_model(tmp_path / "saved")
    pixels = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.save(pixels, tmp_path / "pixels.pt")
    script = (
        "import sys, torch\nfrom transformers import AutoModelForObjectDetection\n"
        f"model = AutoModelForObjectDetection.from_pretrained({str(tmp_path / 'saved')!r}, dtype='float64').eval()\n"
        f"with torch.no_grad(): out = model(torch.load({str(tmp_path / 'pixels.pt')!r}))\n"
        f"torch.save([out.logits, out.pred_boxes], {str(tmp_path / 'out.pt')!r})\n"
        "assert 'rfdetr_hf' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    logits, boxes = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        ours = trainer.model(pixels)
    torch.testing.assert_close(ours.logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pred_boxes, boxes, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "stored",
    [
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.125]},
        {"image_mean": 0.5, "image_std": 0.25},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"do_rescale": False, "image_mean": [123.0, 117.0, 104.0], "image_std": [58.0, 57.0, 57.0]},
    ],
)
def test_the_colours_that_the_weights_know_stay(tmp_path, tiny_model, shapes, stored):
    tiny_model().save_pretrained(tmp_path / "model")
    RFDETRImageProcessor(size={"height": 96, "width": 96}, **stored).save_pretrained(tmp_path / "model")
    model = RFDETRForObjectDetection.from_pretrained(tmp_path / "model")
    args = arguments(tmp_path / "run", max_steps=1, horizontal_flip=0.0, scale_jitter=False, save_strategy="no")
    trainer = RFDETRTrainer(model, args, shapes, shapes)
    trainer.save_model(str(tmp_path / "saved"))
    kept = RFDETRImageProcessor.from_pretrained(tmp_path / "saved")
    for name, value in stored.items():
        assert getattr(kept, name) == (tuple(value) if isinstance(value, list) else value)
    assert dict(kept.size) == {"height": 64, "width": 64}, "the size is the run's"
    batch = next(iter(trainer.get_train_dataloader()))
    seen = trainer.to_device(batch)["pixel_values"]
    expected = kept(list(batch["pixel_values"]), do_resize=False)["pixel_values"]
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)


def test_out_of_memory_names_the_arguments_that_help(tmp_path, tiny_model, shapes):
    class Full(RFDETRTrainer):
        def compute_loss(self, *args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    arguments = quick_arguments(
        tmp_path,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=2,
        multi_scale="per_batch",
        max_steps=1,
        eval_strategy="no",
    )
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2.00 GiB") as raised:
        Full(tiny_model(), arguments, shapes).train()
    told = str(raised.value)
    assert "per_device_train_batch_size=3 with gradient_accumulation_steps=4" in told
    assert "gradient_checkpointing=True" in told and "expanded_scales=False" in told


class FailsOnce(TrainerCallback):
    """Fails after the third step of the first run, if at all."""

    def __init__(self, fails):
        self.fails, self.steps = fails, []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        if self.fails and state.global_step == 3:
            self.fails = False
            raise RuntimeError("the first run fails")


short = {"gradient_accumulation_steps": 1, "save_strategy": "no", "eval_strategy": "no", "max_steps": 4}


@pytest.mark.parametrize("fails", [True, False])
def test_a_second_training_of_one_trainer_is_that_of_a_new_one(tmp_path, tiny_model, fails):
    data, steps = make_shapes_dataset(8, image_size=64, seed=1), FailsOnce(fails)
    options = short | {"lr_scheduler_type": "linear", "drop_path": 0.2, "logging_steps": 1}
    trainer = RFDETRTrainer(tiny_model(), quick_arguments(tmp_path / "a", **options), data, callbacks=[steps])
    with pytest.raises(RuntimeError, match="the first run") if fails else contextlib.nullcontext():
        trainer.train()
    steps.steps.clear()
    if not fails:
        shutil.rmtree(tmp_path / "a")
    model = copy.deepcopy(trainer.model)
    second = trainer.train("auto")
    new = RFDETRTrainer(model, quick_arguments(tmp_path / "b", **options), data)
    first = new.train()
    assert steps.steps == [1, 2, 3, 4] and second.training_loss == first.training_loss
    assert_same(weights(trainer.model), weights(model))
    assert_same(trainer.ema.state_dict(), new.ema.state_dict())
    plain = [[row for row in each.state.log_history if "train_runtime" not in row] for each in (trainer, new)]
    assert [row["loss"] for row in plain[0]] == [row["loss"] for row in plain[1]]
    assert metrics_rows(tmp_path / "a") == metrics_rows(tmp_path / "b")


def test_what_was_made_for_one_training_is_not_used_for_a_second(tmp_path, tiny_model):
    data, args = make_shapes_dataset(8, image_size=64, seed=1), quick_arguments(tmp_path, **short, learning_rate=1e-2)
    made = RFDETRTrainer(None, args, data, model_init=tiny_model)
    made.train()
    once = weights(made.model)
    shutil.rmtree(tmp_path)
    made.train()
    assert_same(once, weights(made.model))
    shutil.rmtree(tmp_path)
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    given = RFDETRTrainer(model, args, data, optimizers=(optimizer, None))
    given.train()
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="the given ones have trained 4 steps"):
        given.train()
