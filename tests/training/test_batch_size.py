import gc
import logging
import random
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers.runs import assert_same, quick_arguments, weights
from transformers import TrainerCallback

from rfdetr_hf import (
    RFDETRForInstanceSegmentation,
    RFDETRForKeypointDetection,
    RFDETRTrainer,
    RFDETRTrainingArguments,
    make_shapes_dataset,
    parse_arguments,
)
from rfdetr_hf.data.schema import usual_most
from rfdetr_hf.training import batch_size
from rfdetr_hf.training.batch_size import (
    MemoryMeter,
    Probed,
    heaviest,
    keep_batch,
    largest_that_fits,
    make_batch,
    settle_batch,
)

SHAPES = 12
MB = 2**20
arguments = partial(
    quick_arguments, per_device_train_batch_size="auto", total_train_batch_size=12, eval_strategy="no", max_steps=1,
    save_strategy="no", load_best_model_at_end=False,
)  # fmt: skip


class Begun(Exception):
    """Ends a run before its first step."""


class EndsAtOnce(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        raise Begun


class EndsWhenLogged(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        raise Begun


def begin(model, args, data, kind=RFDETRTrainer, ends=EndsAtOnce, **options):
    trainer = kind(model, args, data, callbacks=[ends()])
    with pytest.raises(Begun):
        trainer.train(**options)
    return trainer


class Recorded(RFDETRTrainer):
    """Knows the pictures and objects of each micro-batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        objects = [len(label["class_labels"]) for label in inputs["labels"]]
        self.__dict__.setdefault("seen", []).append((tuple(inputs["pixel_values"].shape), objects))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def sizes(args):
    return args.per_device_train_batch_size, args.gradient_accumulation_steps, args.total_train_batch_size


@pytest.fixture(scope="module")
def refusal(shapes, tmp_path_factory):
    """What a run without memory says."""
    from helpers.models import tiny_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size, "free_memory", lambda: 1)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            RFDETRTrainer(tiny_model(), arguments(tmp_path_factory.mktemp("none")), shapes).train()
    return str(caught.value)


@pytest.fixture
def holds(refusal, tiny_model, monkeypatch):
    """Sets the free memory to that of so many images: `holds(3.5)`."""
    # Gradients, the optimizer's two moments and the average are there once.
    once = sum(each.nbytes * (1 + 3 * each.requires_grad) for each in tiny_model().parameters())
    one = float(refusal.split("objects needs ")[1].split(" MB")[0]) * MB - once

    def hold(images):
        monkeypatch.setattr(batch_size, "free_memory", lambda: int(2 * (once + images * one)))

    return hold


def test_without_memory_for_one_image_the_error_says_what_helps(refusal):
    assert "per_device_train_batch_size=auto: one image of 64 x 64 pixels with" in refusal
    assert "gradient_checkpointing=True" in refusal and "per_device_train_batch_size=2" not in refusal


@pytest.mark.parametrize(("images", "size"), [(1.4, 1), (3.4, 3), (5.4, 4), (500, 12)])
def test_a_micro_batch_takes_half_of_the_free_memory(tmp_path, tiny_model, shapes, holds, images, size):
    holds(images)
    assert sizes(begin(tiny_model(), arguments(tmp_path), shapes).args) == (size, 12 // size, 12)


def test_what_was_found_is_written_down_and_used(tmp_path, tiny_model, shapes, holds, caplog):
    holds(4.5)
    trainer = Recorded(tiny_model(), arguments(tmp_path), shapes)
    with caplog.at_level(logging.INFO, logger="rfdetr_hf"):
        trainer.train()
    size, accumulation = 4, 3
    assert sizes(trainer.args) == (size, accumulation, 12)
    assert [shape[0] for shape, _ in trainer.seen] == [1] + [size] * accumulation
    recorded = yaml.safe_load((tmp_path / "args.yaml").read_text())
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "total_train_batch_size")
    assert tuple(recorded[name] for name in names) == (size, accumulation, 12)
    assert f"{size} images a device x gradient_accumulation_steps={accumulation} x 1 process = " in caplog.text


def test_the_probe_has_the_largest_images_and_the_usual_most_objects(tmp_path, tiny_model, shapes):
    args = arguments(tmp_path, multi_scale="per_batch", max_steps=1)
    trainer = begin(tiny_model(), args, shapes, Recorded)
    assert trainer.seen == [((1, 3, max(trainer.scales), max(trainer.scales)), [usual_most(shapes, 0.99)])]
    assert max(trainer.scales) > 64


@pytest.mark.parametrize("task", ["segmentation", "keypoints"])
def test_the_probe_has_masks_and_keypoints_as_a_loader_makes_them(tmp_path, tiny_config, task):
    kind = RFDETRForInstanceSegmentation if task == "segmentation" else RFDETRForKeypointDetection
    model = kind(tiny_config(**({} if task == "segmentation" else {"num_keypoints_per_class": [1, 4, 3]})))
    data = make_shapes_dataset(6, 64, 1, task=task)
    trainer = begin(model, arguments(tmp_path, total_train_batch_size=2), data, Recorded)
    loaded = next(iter(trainer.train_loader))["labels"]
    made = make_batch(data, heaviest(trainer.args, data, trainer.scales, model.config), 2)["labels"]
    described = [
        {name: (value.dtype, value.shape[1:]) for name, value in each.fields.items()} for each in (loaded, made)
    ]
    assert described[0] == described[1] and sizes(trainer.args) == (2, 1, 2)


def with_objects(counts, crowds=0):
    """Images with so many objects each, beside crowds."""
    data = make_shapes_dataset(1, image_size=64, seed=1)
    row = data[0]
    rows = []
    for i, count in enumerate(counts):
        objects = {name: values[:1] * (count + crowds) for name, values in row["objects"].items()}
        objects["iscrowd"] = [False] * count + [True] * crowds
        rows.append({**row, "image_id": i, "objects": objects})
    return type(data).from_list(rows, features=data.features)


@pytest.mark.parametrize(
    ("counts", "crowds", "most"),
    [([3] * 99 + [50], 0, 3), ([3] * 98 + [50, 50], 0, 50), ([0] * 99 + [7], 0, 0), ([2, 4], 9, 4), ([0], 3, 0)],
)
def test_the_usual_most_leaves_crowds_out_and_counts_background(counts, crowds, most):
    assert usual_most(with_objects(counts, crowds), 0.99) == most


def test_the_usual_most_goes_by_how_often_an_image_is_drawn():
    data = with_objects([1] * 99 + [40])
    drawn = data.add_column("sample_weight", [50 / 99] * 99 + [50.0])
    assert (usual_most(data, 0.99), usual_most(drawn, 0.99)) == (1, 40)


def test_joined_images_bring_their_objects(tmp_path, tiny_config, shapes):
    most = usual_most(shapes, 0.99)
    strong = {"mosaic": 0.5, "mixup": 0.1, "copy_paste": {"probability": 0.2, "max_objects": 4}}
    args = arguments(tmp_path, augmentation=strong)
    assert heaviest(args, shapes, [64], tiny_config()).objects == 5 * most + 4


def test_images_that_keep_their_shape_are_as_high_as_the_highest_and_as_wide_as_the_widest(tmp_path, tiny_config):
    data = with_objects([1, 1, 1])
    shaped = data.remove_columns(["width", "height"]).add_column("width", [128, 64, 64])
    shaped = shaped.add_column("height", [64, 64, 100])
    work = heaviest(arguments(tmp_path, square_resize=False), shaped, [64], tiny_config())
    assert work[:3] == (112, 128, 1)  # of 100 and 128, in full blocks of 16 pixels


def test_a_probe_changes_nothing(tmp_path, tiny_model, shapes):
    runs = []
    for name, options in (("found", {}), ("given", {"per_device_train_batch_size": 12})):
        model = tiny_model()
        model.register_buffer("scratch", torch.arange(3.0))
        before = weights(model)
        trainer = begin(model, arguments(tmp_path / name, drop_path=0.2, **options), shapes, Busy)
        assert_same(before, weights(model))
        assert [n for n, p in model.named_parameters() if p.grad is not None] == []
        drawn = (torch.rand(5), torch.as_tensor(np.random.rand(5)), torch.tensor(random.random()))
        runs.append((drawn, [module.training for module in model.modules()], trainer))
    (first, modes, _), (second, others, _) = runs
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert modes == others


class Busy(RFDETRTrainer):
    """Draws random numbers in its loss, and writes into a buffer of the model and another in its place."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        torch.rand(3), np.random.rand(3), random.random()
        model.scratch.add_(1)
        model.scratch = torch.zeros(7)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def test_gradients_that_were_there_stay(tmp_path, tiny_model, shapes):
    model = tiny_model()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.grad = kept = torch.full_like(parameter, 3)
    begin(model, arguments(tmp_path), shapes)
    assert parameter.grad is kept and bool((kept == 3).all())


class TooLarge(RFDETRTrainer):
    """Runs out of memory."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.left = weakref.ref(inputs["pixel_values"])
        outputs = model(**inputs)
        self.graph = weakref.ref(outputs.logits)
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_failed_probe_leaves_no_memory_behind(tmp_path, tiny_model, shapes):
    model = tiny_model()
    before = weights(model)
    trainer = TooLarge(model, arguments(tmp_path), shapes)
    with pytest.raises(torch.OutOfMemoryError, match="What helps, best first: gradient_checkpointing"):
        trainer.train()
    gc.collect()
    assert trainer.left() is None and trainer.graph() is None
    assert_same(before, weights(model))
    assert [n for n, p in model.named_parameters() if p.grad is not None] == []


class OfFour(RFDETRTrainer):
    """Runs out of memory with more than four images, after its forward pass."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        tried = self.__dict__.setdefault("tried", [])
        assert [outputs for _, outputs in tried if outputs() is not None] == []
        result = super().compute_loss(model, inputs, True, num_items_in_batch)
        tried.append((len(inputs["labels"]), weakref.ref(result[1].logits)))
        if len(inputs["labels"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result


@pytest.mark.parametrize(("reserved", "chosen"), [({}, 4), ({4: 95, 3: 91}, 2)])
def test_on_a_gpu_sizes_are_tried_from_the_largest_down(tmp_path, tiny_model, shapes, monkeypatch, reserved, chosen):
    trainer = OfFour(tiny_model(), arguments(tmp_path), shapes, callbacks=[EndsAtOnce()])
    fakes = {
        "mem_get_info": lambda device: (60, 100), "memory_reserved": lambda device: 40,
        "reset_peak_memory_stats": lambda device: None, "synchronize": lambda device: None,
        "max_memory_reserved": lambda device: reserved.get(trainer.tried[-1][0], 90),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def descending(model, share, loss_of, gradients, beside):
        attempt = partial(batch_size._on_device, model, torch.device("cpu"), loss_of=loss_of, beside=beside)
        return largest_that_fits([n for n in range(share, 0, -1) if share % n == 0], attempt)

    monkeypatch.setattr(batch_size, "_on_cpu", descending)
    with pytest.raises(Begun):
        trainer.train()
    assert [images for images, _ in trainer.tried] == [n for n in (12, 6, 4, 3, 2) if n >= chosen]
    assert sizes(trainer.args) == (chosen, 12 // chosen, 12)


def test_what_runs_out_of_memory_is_tried_smaller_with_its_tensors_gone():
    alive = []

    def attempt(size):
        assert [each for each in alive if each() is not None] == []
        tensor = torch.zeros(size)
        alive.append(weakref.ref(tensor))
        if size > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Probed(size, 100 * size, 350)

    assert largest_that_fits([12, 6, 4, 3, 2, 1], attempt) == (3, 300, 350)
    assert len(alive) == 4


def test_the_meter_counts_what_lives_at_once():
    weight = torch.ones(1000, requires_grad=True)
    with MemoryMeter([weight]) as meter:
        (weight.view(10, 100) * 2).exp().sum().backward()  # two results of 4,000 bytes at once, then gradients
        for _ in range(5):
            torch.zeros(3000)
    assert meter.peak <= 4 * 4000 + 100 and meter.peak >= 3 * 4000
    assert meter.live <= 4000  # the gradient


def test_a_resume_takes_the_sizes_of_the_checkpoint(tmp_path, tiny_model, shapes, monkeypatch, holds):
    holds(4.5)
    saving = partial(arguments, tmp_path / "run", save_strategy="steps", save_steps=1)
    first = Recorded(tiny_model(), saving(), shapes)
    first.train()
    assert sizes(first.args) == (4, 3, 12)
    monkeypatch.setattr(batch_size, "free_memory", lambda: 1)
    second = Recorded(tiny_model(), saving(max_steps=2, total_train_batch_size=None), shapes)
    second.train(resume_from_checkpoint=True)
    assert sizes(second.args) == (4, 3, 12) and [shape[0] for shape, _ in second.seen] == [4, 4, 4]
    kept = arguments(tmp_path)
    keep_batch(kept, tmp_path / "run" / "checkpoint-1", processes=4)
    assert sizes(kept) == (3, 1, 12)
    third = RFDETRTrainer(tiny_model(), saving(total_train_batch_size=6), shapes)
    with pytest.raises(ValueError, match="written with 12 images in an optimizer step.*total_train_batch_size=6"):
        third.train(resume_from_checkpoint=True)


def test_a_run_that_ended_before_its_first_checkpoint_starts_over(tmp_path, tiny_model, shapes):
    for _ in range(2):
        begin(tiny_model(), arguments(tmp_path), shapes, ends=EndsWhenLogged, resume_from_checkpoint="auto")
    with pytest.raises(FileExistsError, match="total_train_batch_size 12 -> 6"):
        RFDETRTrainer(tiny_model(), arguments(tmp_path, total_train_batch_size=6), shapes).train("auto")


def test_accumulation_follows_from_the_images_of_a_step(tmp_path, tiny_model, shapes):
    args = arguments(tmp_path, per_device_train_batch_size=3)
    assert sizes(RFDETRTrainer(tiny_model(), args, shapes).args) == (3, 4, 12)
    args = arguments(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    assert sizes(RFDETRTrainer(tiny_model(), args, shapes).args) == (3, 4, 12)
    for options, message in (
        ({"per_device_train_batch_size": 5}, "per_device_train_batch_size=5 x 1 process do not divide total_train_"),
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
         "=3 x gradient_accumulation_steps=2 x 1 process are not total_train_batch_size=12"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            RFDETRTrainer(tiny_model(), arguments(tmp_path, **options), shapes)


@pytest.mark.parametrize(
    ("name", "device", "processes", "message"),
    [("fsdp2", "cuda", 2, "cannot know what a step needs under fsdp2"), ("zero2 x 2", "cuda", 2, "under zero2 x 2"),
     ("replicated", "mps", 1, "on mps"),
     ("replicated", "cuda", 5, "=12 is not a multiple of 5 processes; .* such as 10")],
)  # fmt: skip
def test_what_auto_cannot_know_is_refused(tmp_path, name, device, processes, message):
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    with pytest.raises(ValueError, match=message):
        settle_batch(arguments(tmp_path), SimpleNamespace(name=name, accelerator=accelerator))


def test_arguments_say_what_contradicts(tmp_path):
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2 contradicts .*'auto'.*leave it out"):
        arguments(tmp_path, gradient_accumulation_steps=2)
    for value in ("-1", -1, 0, "many", 2.5, True, None):
        with pytest.raises(ValueError, match="must be a whole number, at least 1, or auto"):
            RFDETRTrainingArguments(per_device_train_batch_size=value)
    assert sizes(RFDETRTrainingArguments()) == (4, 4, None)
    assert sizes(RFDETRTrainingArguments(recipe="official")) == (4, 1, None)
    args = RFDETRTrainingArguments(per_device_train_batch_size="auto")
    assert (args.images_per_step, args.train_batch_size, args.micro_batches, args.eval_batch_size) == (16, 4, 4, 4)


def test_files_and_command_lines_give_numbers_and_the_word(tmp_path):
    file = tmp_path / "run.yaml"
    for text, value in (("auto", "auto"), ("8", 8)):
        file.write_text(f"per_device_train_batch_size: {text}\n")
        for words in (["--config", str(file)], ["--batch_size", text], [f"--per_device_train_batch_size={text}"]):
            (args,) = parse_arguments([RFDETRTrainingArguments], words)
            assert args.per_device_train_batch_size == value
