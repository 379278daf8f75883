"""What differs from one way of spreading a run over processes to another. The loop knows only these methods."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from transformers import PreTrainedModel

from ..arguments.training import RFDETRTrainingArguments
from .agreement import mark_shared, sendable
from .checkpoint.optimizer import OptimizerPart, StateReader, index_of, load_optimizer, pieces_of
from .checkpoint.zero import load_zero, zero_index, zero_pieces
from .distributed import shared_precision
from .optimization import FusedAdamW
from .precision import DTYPES

_SKIPPING = (torch.optim.Adam, torch.optim.AdamW, FusedAdamW)


class Parallel:
    """A single process, or data parallelism: every process holds the complete model.

    Attributes:
        name: what checkpoints call it.
        collective_forward: whether a forward pass needs all processes, so that all must run the same number.
        clips_in_step: whether `guarded_step` clips and guards; if not, `update_weights` does.
        model: the model itself.
        wrapped: what is called in its place; the model itself until `prepare`.
        optimizer: the prepared one; None until `prepare`.
    """

    name = "replicated"
    collective_forward = False
    clips_in_step = False

    def __init__(self, accelerator: Accelerator, args: RFDETRTrainingArguments, model: PreTrainedModel) -> None:
        self.accelerator = accelerator
        self.args = args
        self.model: Any = model
        self.wrapped: Any = model
        self.optimizer: Any = None
        self._hosts: Any = None
        if accelerator.num_processes > 1:
            timeout = timedelta(seconds=args.ddp_timeout)
            self._hosts = torch.distributed.new_group(backend="gloo", timeout=timeout)

    def compile(self, backend: str) -> None:
        """Compile the network of a step, which changes no name; before `prepare`.

        Replicated models as one region. Of sharded ones each block of encoder and decoder by itself, since parameters
        are gathered between them, and by size of image.
        """
        if self.name == "replicated":
            return self.model.compile_network(backend)
        for module in self.model.modules():
            if type(module).__name__ in (self.model._no_split_modules or ()):
                module.compile(backend=backend)

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        """Spread the model, on its device already, and its optimizer over the processes; returns the latter."""
        with shared_precision(self.accelerator):
            self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        return self.optimizer

    def any(self, flag: Tensor) -> Any:
        """Whether a number is 1, not 0, on some process; so on all of them, on the device."""
        if self.accelerator.num_processes == 1:
            return flag
        total: Any = self.accelerator.reduce(flag, reduction="sum")
        return total.clamp(max=1)

    def sum_on_hosts(self, *values: float) -> list[float]:
        """Small numbers summed over all processes. They never touch a device, so no device has to be waited for."""
        if self._hosts is None:
            return [float(value) for value in values]
        totals = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(totals, group=self._hosts)
        return totals.tolist()

    def raise_together(self, error: Exception | None) -> None:
        """Raise the first error of any process on all of them; none does nothing. All processes must call it.

        Args:
            error: of this process.
        """
        if not self.sum_on_hosts(error is not None)[0]:
            return
        errors: list[Any] = [error]
        if self._hosts is not None:
            errors = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(errors, error and sendable(error), group=self._hosts)
        rank = next(i for i, each in enumerate(errors) if each is not None)
        first = error if error is not None and rank == self.accelerator.process_index else errors[rank]
        raise mark_shared(first)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block without collective operations, whose error on one process ends it on all; see `raise_together`."""
        failed = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised by all processes below
            failed = error
        self.raise_together(failed)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        dtype = DTYPES.get(self.args.mixed_precision)
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager:
        """The context of forward and backward of a micro-batch; gradients are reduced in the last of the window."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of one micro-batch."""
        self.accelerator.backward(loss)

    def unsharded(self, value: Tensor) -> Tensor:
        """A number of all gradients, as every process has it."""
        return value

    @property
    def skips_on_device(self) -> bool:
        """Whether `step` can skip: the fused kernels of Adam read a flag on the device.

        Where it cannot, the host decides: with a gradient scaler, with DeepSpeed, and with any other optimizer or hook.
        """
        inner = self._inner_optimizer
        # Kernels of other devices, such as Apple's before PyTorch 2.13, take the step all the same.
        device = self.accelerator.device.type
        if type(inner) not in _SKIPPING or self.accelerator.scaler is not None or device not in ("cuda", "cpu"):
            return False
        # Those of all optimizers too (`torch.optim.optimizer.register_optimizer_step_pre_hook`).
        every = _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        hooks = every or inner._optimizer_step_pre_hooks or inner._optimizer_step_post_hooks
        return not hooks and all(group["fused"] for group in inner.param_groups)

    @property
    def _inner_optimizer(self) -> Any:
        """PyTorch's, without the wrapper of Accelerate."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def step(self, skip: Tensor | None = None) -> None:
        """Take the optimizer's step and drop the gradients.

        Args:
            skip: 1 on the device for no step, else 0; only with `skips_on_device`.
        """
        if skip is None:
            self.optimizer.step()
        else:
            inner = self._inner_optimizer
            parameter = next(parameter for group in inner.param_groups for parameter in group["params"])
            # As `GradScaler` gives it to them.
            inner.grad_scale, inner.found_inf = None, skip.to(parameter.device)
            try:
                self.optimizer.step()
            finally:
                del inner.grad_scale, inner.found_inf
        self.optimizer.zero_grad()

    def skip(self) -> None:
        """Drop the gradients without a step."""
        if self.accelerator.scaler is not None:
            # What the optimizer's step does otherwise: a smaller scale after an overflow.
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()

    def guarded_step(self) -> tuple[Tensor, bool]:
        """Clip, and step if the gradients are finite, in one go; returns their norm and whether it was skipped."""
        raise NotImplementedError(f"{self.name} clips and steps by itself")

    def optimizer_part(self) -> OptimizerPart | None:
        """What this process writes of the optimizer into a checkpoint; all processes must call it."""
        if not self.accelerator.is_main_process:
            return None
        return OptimizerPart(0, list(pieces_of(self.optimizer)), index_of(self.optimizer), 1)

    def load_optimizer(self, reader: StateReader, folder: Path) -> None:
        """Read the optimizer of a checkpoint of any launch, once the model has its weights.

        Raises:
            CheckpointError: a file is missing or damaged.
            ValueError: it is of another model.
        """
        load_optimizer(self.optimizer, reader, folder)


class FSDP2(Parallel):
    """Weights, gradients, optimizer and average are split over the processes."""

    name = "fsdp2"
    collective_forward = True

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        plugin: Any = self.accelerator.state.fsdp_plugin
        # Accelerate's policy would cast targets and losses as well. Here weights stay float32 and the step autocasts.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        plugin.cpu_ram_efficient_loading = False
        # FSDP2 takes every rank's own slice of its own weights: what differed would stay different.
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            torch.distributed.broadcast(tensor.data, 0)
        return super().prepare(optimizer)

    def unsharded(self, value: Any) -> Tensor:
        return value.full_tensor()  # of a DTensor

    def optimizer_part(self) -> OptimizerPart:
        rank, files = self.accelerator.process_index, self.accelerator.num_processes
        index = index_of(self.optimizer) if self.accelerator.is_main_process else None
        return OptimizerPart(rank, list(pieces_of(self.optimizer)), index, files)


class DeepSpeed(Parallel):
    """DeepSpeed's ZeRO in all stages. Its engine reduces, clips and steps."""

    def __init__(self, accelerator: Accelerator, args: RFDETRTrainingArguments, model: PreTrainedModel) -> None:
        super().__init__(accelerator, args, model)
        self.plugin: Any = accelerator.state.deepspeed_plugin
        self.stage = self.plugin.zero_stage
        self.name = f"zero{self.stage} x {accelerator.num_processes}"
        self.collective_forward = self.stage == 3
        # Stage 0 leaves complete, reduced gradients, and no check of them.
        self.clips_in_step = self.stage > 0

    def prepare(self, optimizer: torch.optim.Optimizer) -> Any:
        config = self.plugin.deepspeed_config
        # Stage 0 divides gradients by this number even without `scale_wrt_gas`; nothing else there depends on it.
        accumulation = self.args.micro_batches if self.stage else 1
        self.accelerator.gradient_accumulation_steps = accumulation
        config["train_micro_batch_size_per_gpu"] = self.args.train_batch_size
        config["gradient_accumulation_steps"] = accumulation
        config["gradient_clipping"] = self.args.max_grad_norm
        config["zero_allow_untested_optimizer"] = True
        return super().prepare(optimizer)

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        self.wrapped.set_gradient_accumulation_boundary(is_boundary=last)
        self.wrapped.backward(loss, scale_wrt_gas=False)

    @property
    def skips_on_device(self) -> bool:
        return False

    def step(self, skip: Tensor | None = None) -> None:
        self.wrapped.step()

    def skip(self) -> None:
        self.wrapped.zero_grad()

    def guarded_step(self) -> tuple[Tensor, bool]:
        self.wrapped.step()
        skipped = bool(self.wrapped.optimizer.overflow)
        grad_norm = torch.as_tensor(self.wrapped.get_global_grad_norm(), device=self.accelerator.device)
        if not skipped and not torch.isfinite(grad_norm):
            raise RuntimeError("DeepSpeed took a step with a gradient that is not finite; install deepspeed>=0.19.8")
        return grad_norm, skipped

    def optimizer_part(self) -> OptimizerPart | None:
        if self.stage == 0:
            return super().optimizer_part()
        is_main, split = self.accelerator.is_main_process, self.stage == 3
        pieces = list(zero_pieces(self.wrapped, self.model, is_main))
        if not (is_main or split):
            return None
        index = zero_index(self.wrapped, self.model) if is_main else None
        return OptimizerPart(
            self.accelerator.process_index, pieces, index, self.accelerator.num_processes if split else 1
        )

    def load_optimizer(self, reader: StateReader, folder: Path) -> None:
        if self.stage == 0:
            return super().load_optimizer(reader, folder)
        load_zero(self.wrapped, self.model, reader, folder)


def choose_parallel(accelerator: Accelerator, args: RFDETRTrainingArguments, model: PreTrainedModel) -> Parallel:
    """What the launch asks for."""
    kinds = {DistributedType.FSDP: FSDP2, DistributedType.DEEPSPEED: DeepSpeed}
    return kinds.get(accelerator.distributed_type, Parallel)(accelerator, args, model)
