"""Trainings on a GPU. Each runs on the CPU as well, as far as the device goes."""

import contextlib
from functools import partial

import pytest
import torch
from helpers.runs import quick_arguments
from transformers import TrainerCallback

from rfdetr_hf import HungarianMatcher, RFDETRTrainer
from rfdetr_hf.training.checkpoint.reading import CheckpointFiles

COMPILERS = {"cpu": "aot_eager", "cuda": "inductor"}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(request.param == "cpu").lower())
    return request.param


arguments = partial(
    quick_arguments, max_steps=4, gradient_accumulation_steps=1, logging_steps=1, eval_strategy="no",
    save_strategy="no", learning_rate=1e-3, learning_rate_encoder=1e-3,
)  # fmt: skip


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


class AtStepEnd(TrainerCallback):
    """Keeps what a function gives after each step."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.function())


@pytest.mark.parametrize("precision", [{}, {"tf32": False}, {"bf16": True}, {"fp16": True}], ids=str)
def test_a_training_learns_and_stays_in_float32(tmp_path, tiny_model, shapes, device, precision):
    if device == "cpu" and "fp16" in precision:
        pytest.skip("fp16 is refused on a CPU")
    args = arguments(tmp_path, max_steps=24, ema_tau=4, scale_jitter=False, horizontal_flip=0.0, **precision)
    trainer = RFDETRTrainer(tiny_model(), args, shapes.select(range(2)))
    trainer.train()
    losses = logged(trainer, "loss")
    # The scale of fp16 starts high: a few overflows are its way down.
    assert len(losses) + trainer.state.skipped_steps == 24
    assert trainer.state.skipped_steps <= (8 if "fp16" in precision else 0)
    assert sum(losses[-6:]) < sum(losses[:6])
    tensors = [*trainer.model.parameters(), *trainer.ema.state_dict().values()]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    assert trainer.optimizer.optimizer.defaults["fused"]


def test_an_overflow_of_fp16_reaches_neither_schedule_nor_average(tmp_path, tiny_model, shapes, device):
    """On a CPU, where Accelerate sets up no scaler, the test does."""
    fp16 = {"fp16": True} if device == "cuda" else {}
    trainer = RFDETRTrainer(tiny_model(), arguments(tmp_path, lr_scheduler_type="cosine", **fp16), shapes)
    accelerator = trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    seen = []

    class Overflow(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            weight = trainer.model.class_embed.weight
            self.hook = weight.register_hook(lambda g: g * (torch.inf if state.global_step == 1 else 1.0))

        def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
            self.hook.remove()
            weights = trainer.model.class_embed.weight.detach().clone()
            seen.append((trainer.ema.num_updates, lr_scheduler.last_epoch, accelerator.scaler.get_scale(), weights))

    trainer.add_callback(Overflow())
    trainer.train()
    assert [step[:2] for step in seen] == [(1, 1), (1, 1), (2, 2), (3, 3)]
    assert seen[1][2] == seen[0][2] / 2 == seen[3][2]
    assert torch.equal(seen[0][3], seen[1][3]) and not torch.equal(seen[1][3], seen[2][3])


def test_compiled_blocks_train_as_the_others(tmp_path, tiny_model, shapes, device):
    runs, slow = [], {"learning_rate": 1e-4, "learning_rate_encoder": 1e-4}
    for compile in (False, True):
        compiled = {"torch_compile": True, "torch_compile_backend": COMPILERS[device]} if compile else {}
        args = arguments(tmp_path / str(compile), max_steps=2, tf32=False, **slow, **compiled)
        trainer = RFDETRTrainer(tiny_model(), args, shapes)
        trainer.train()
        runs.append((logged(trainer, "loss"), list(trainer.model.state_dict())))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5 if device == "cpu" else 1e-3)
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("pin", [True, False])
def test_batches_are_pinned_where_they_are_copied_to_a_gpu(tmp_path, tiny_model, shapes, device, pin, workers):
    args = arguments(tmp_path, dataloader_pin_memory=pin, dataloader_num_workers=workers, max_steps=2)
    trainer, pinned = RFDETRTrainer(tiny_model(), args, shapes), []
    to_device = trainer.to_device

    def watching(batch, *args):
        pinned.extend(tensor.is_pinned() for tensor in (batch["pixel_values"], batch["labels"].fields["class_labels"]))
        return to_device(batch, *args)

    trainer.to_device = watching
    trainer.train()
    assert pinned == [pin and device == "cuda"] * 4


def test_a_run_resumes_with_the_generator_of_its_device(tmp_path, tiny_model, shapes, device):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "drop_path": 0.1}
    runs = [RFDETRTrainer(tiny_model(), arguments(tmp_path, **options), shapes) for _ in range(2)]
    runs[0].train()
    ranks = CheckpointFiles(tmp_path / "checkpoint-3").tree("rank_states.safetensors")
    assert ("cuda" in ranks[0]["generators"]) == torch.cuda.is_available()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    # Sums of some backward passes have no fixed order on a GPU.
    assert logged(runs[1], "loss") == pytest.approx(logged(runs[0], "loss"), rel=0 if device == "cpu" else 1e-2)


def test_memory_does_not_grow_from_step_to_step(tmp_path, tiny_model, shapes, device):
    def figures():
        if device == "cpu":
            return 0, 0
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), peak

    args = arguments(tmp_path, max_steps=12, scale_jitter=False, horizontal_flip=0.0)
    trainer = RFDETRTrainer(tiny_model(), args, shapes.select(range(2)))
    memory = AtStepEnd(figures)
    trainer.add_callback(memory)
    trainer.train()
    for after_warm_up in zip(*memory.seen[4:], strict=True):
        assert max(after_warm_up) - min(after_warm_up) <= 1 << 20
    assert len(logged(trainer, "memory_gb")) == (12 if device == "cuda" else 0)


@contextlib.contextmanager
def waiting(mode, device):
    """Within the block the host's waiting for the GPU is an "error", or not ("default")."""
    before = torch.cuda.get_sync_debug_mode() if device == "cuda" else None
    if device == "cuda":
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"multi_scale": "per_batch"}], ids=str)
def test_nothing_in_a_step_waits_for_the_device_but_matching(
    tmp_path, tiny_model, shapes, device, options, monkeypatch
):
    """SciPy's solver reads the costs; the rest only queues work."""

    def within(mode, function):
        def called(*args, **kwargs):
            with waiting(mode, device):
                return function(*args, **kwargs)

        return called

    # From the third step on: before that, caches of constants are filled.
    args = arguments(tmp_path, max_steps=8, logging_steps=8, logging_first_step=False, **options)
    trainer = RFDETRTrainer(tiny_model(), args, shapes)
    monkeypatch.setattr(HungarianMatcher, "__call__", within("default", HungarianMatcher.__call__))
    free, guarded = trainer.training_step, within("error", trainer.training_step)
    trainer.training_step = lambda window, state: (free if state.global_step < 2 else guarded)(window, state)
    trainer.train()
    assert trainer.state.global_step == 8
