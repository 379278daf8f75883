"""What differs from one way of spreading a run over processes to another. The loop knows only these methods."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from .arguments import RFDETRTrainingArguments
from .distributed import precision, sum_over_ranks
from .ema import ExponentialMovingAverage
from .checkpoint.optimizer import load_optimizer, save_optimizer, save_optimizer_shards
from .checkpoint.sharded import local_part, saved_tensors, writing


class StepResult(NamedTuple):
    """The gradient's norm before clipping, and whether the step reached the weights."""

    grad_norm: Tensor
    taken: bool


class Strategy:
    """A single process, or data parallelism: every process holds the whole model.

    Attributes:
        name: as it is written into checkpoints.
        collective_forward: whether a forward pass needs all processes, so that all must run the same number.
    """

    name = "replicated"
    collective_forward = False

    def __init__(self, accelerator: Accelerator, args: RFDETRTrainingArguments) -> None:
        self.accelerator = accelerator
        self.args = args
        self.model: nn.Module | None = None
        self.wrapped: nn.Module | None = None
        self.optimizer: Any = None

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Spread the model, on its device already, and its optimizer over the processes."""
        self.model = model
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        return self.wrapped, self.optimizer

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        return self.accelerator.autocast()

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager:
        """The context of forward and backward of a micro-batch; gradients are reduced in the last of the window."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of one micro-batch."""
        self.accelerator.backward(loss)

    def step(self, loss: Tensor, before: Callable[[], None]) -> StepResult:
        """Clip and step, unless the loss or a gradient of some process is not finite; gradients are gone after it.

        Args:
            loss: of this process's window.
            before: called between clipping and stepping.
        """
        grad_norm = self._clip()
        before()
        broken = ~(torch.isfinite(grad_norm) & torch.isfinite(loss))
        taken = not sum_over_ranks(self.accelerator, broken.float())
        if taken:
            self.optimizer.step()
        elif self.accelerator.scaler is not None:
            # What the optimizer's step does otherwise: a smaller scale after an overflow.
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()
        return StepResult(grad_norm, taken)

    def _clip(self) -> Tensor:
        self.accelerator.unscale_gradients()
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)

    def in_step(self, batches: DataLoader, num_images: int) -> Iterator[Any]:
        """This process's evaluation batches; where forward passes need all processes, as many on each, padded by None.

        Args:
            batches: as `build_eval_loader` gives them; the first process has the most.
            num_images: on all processes together.
        """
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if self.collective_forward and self.wrapped is not None:
            most = math.ceil(num_images / self.accelerator.num_processes / self.args.eval_batch_size)
            yield from [None] * (most - count)

    def average(self) -> ExponentialMovingAverage:
        """The moving average of the prepared model, spread like it."""
        tensors, args = saved_tensors(self.model), self.args
        return ExponentialMovingAverage(
            tensors.items(), args.ema_decay, args.ema_tau, args.ema_update_interval,
            writing=lambda: writing(self.model), local=local_part,
        )  # fmt: skip

    def save_optimizer(self, folder: Path) -> None:
        """Write the optimizer's state into a checkpoint; all processes must call it."""
        if self.accelerator.is_main_process:
            save_optimizer(self.optimizer, folder)

    def load_optimizer(self, folder: Path) -> None:
        """Read what `save_optimizer` of this or another strategy wrote.

        Raises:
            ValueError: it was written by a strategy, or for a model, whose state does not fit.
        """
        load_optimizer(self.optimizer, folder)


class ShardedStrategy(Strategy):
    """FSDP2: weights, gradients, optimizer and average are split over the processes."""

    name = "fsdp2"
    collective_forward = True

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        plugin = self.accelerator.state.fsdp_plugin
        # Accelerate's policy would cast targets and losses as well. Here weights stay float32 and the step autocasts.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        plugin.cpu_ram_efficient_loading = False
        # FSDP2 takes every rank's own slice of its own weights: what differed would stay different.
        for tensor in [*model.parameters(), *model.buffers()]:
            torch.distributed.broadcast(tensor.data, 0)
        return super().prepare(model, optimizer)

    def _clip(self) -> Tensor:
        return super()._clip().full_tensor()

    def save_optimizer(self, folder: Path) -> None:
        save_optimizer_shards(self.optimizer, folder, self.accelerator.is_main_process)


class DeepSpeedStrategy(Strategy):
    """DeepSpeed's ZeRO in all stages. Its engine reduces, clips and steps, and writes its own checkpoints."""

    FOLDER, TAG = "deepspeed", "state"

    def __init__(self, accelerator: Accelerator, args: RFDETRTrainingArguments) -> None:
        super().__init__(accelerator, args)
        self.stage = accelerator.state.deepspeed_plugin.zero_stage
        self.name = f"zero{self.stage} x {accelerator.num_processes}"
        self.collective_forward = self.stage == 3

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        # Stage 0 divides gradients by this number even where it is told not to; nothing else there depends on it.
        accumulation = self.args.gradient_accumulation_steps if self.stage else 1
        self.accelerator.gradient_accumulation_steps = accumulation
        config["train_micro_batch_size_per_gpu"] = self.args.per_device_train_batch_size
        config["gradient_accumulation_steps"] = accumulation
        config["gradient_clipping"] = self.args.max_grad_norm
        config["zero_allow_untested_optimizer"] = True
        return super().prepare(model, optimizer)

    def autocast(self) -> contextlib.AbstractContextManager:
        enabled = precision(self.args) == "bf16"
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=enabled)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        self.wrapped.set_gradient_accumulation_boundary(is_boundary=last)
        self.wrapped.backward(loss, scale_wrt_gas=False)

    def step(self, loss: Tensor, before: Callable[[], None]) -> StepResult:
        # The engine clips, checks the norm and steps in one go, and has no other place for `before`.
        before()
        if self.stage == 0:
            return self._plain_step(loss)
        self.wrapped.step()
        taken = not self.wrapped.optimizer.overflow
        grad_norm = torch.as_tensor(self.wrapped.get_global_grad_norm(), device=loss.device)
        if taken and not torch.isfinite(grad_norm):
            raise RuntimeError("DeepSpeed took a step with a gradient that is not finite; install deepspeed>=0.19.8")
        return StepResult(grad_norm, taken)

    def _plain_step(self, loss: Tensor) -> StepResult:
        """Stage 0 leaves whole, reduced gradients, and no check of them."""
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
        broken = ~(torch.isfinite(grad_norm) & torch.isfinite(loss))
        taken = not sum_over_ranks(self.accelerator, broken.float())
        if taken:
            self.wrapped.step()
        else:
            self.wrapped.zero_grad()
        return StepResult(grad_norm, taken)

    def save_optimizer(self, folder: Path) -> None:
        self.wrapped.save_checkpoint(str(folder / self.FOLDER), tag=self.TAG)

    def load_optimizer(self, folder: Path) -> None:
        if not (folder / self.FOLDER).is_dir():
            raise ValueError(f"{folder} was not written under DeepSpeed; resume with the launch that wrote it")
        self.wrapped.load_checkpoint(str(folder / self.FOLDER), tag=self.TAG, load_lr_scheduler_states=False)


def choose_strategy(accelerator: Accelerator, args: RFDETRTrainingArguments) -> Strategy:
    """The strategy of the launch."""
    kinds = {DistributedType.FSDP: ShardedStrategy, DistributedType.DEEPSPEED: DeepSpeedStrategy}
    return kinds.get(accelerator.distributed_type, Strategy)(accelerator, args)


def compile_blocks(model: PreTrainedModel, backend: str) -> None:
    """Compile the encoder's and the decoder's blocks where they are, which changes no name; call it before `prepare`.

    They are most of the work and run in one shape a step. The rest (matching, choice of proposals) has shapes that
    depend on the data.
    """
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            module.compile(backend=backend)
