"""The update of an optimizer step: clip, guard, step. The same for every launch."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..arguments.training import RFDETRTrainingArguments
from .parallel import Parallel


class Flag:
    """A number of the device whose truth the host asks for later, and then waits for nothing that was queued since."""

    def __init__(self, number: Tensor) -> None:
        self._number = number.to("cpu", non_blocking=number.is_cuda)
        self._copied = torch.cuda.current_stream(number.device).record_event() if number.is_cuda else None

    def __bool__(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._number)


class Update(NamedTuple):
    """The gradient's norm before clipping, and whether the step left the weights as they were."""

    grad_norm: Tensor
    skipped: Flag | bool


class Unsettled(NamedTuple):
    """A step that has gone to the optimizer, and what its skip, or what follows it, needs.

    Attributes:
        number: of the step, from 0.
        update: of the step.
        terms: of its losses.
        image_ids: of each micro-batch of this process.
    """

    number: int
    update: Update
    terms: Tensor
    image_ids: list[Tensor]


class StepResult(NamedTuple):
    """What an optimizer step came to.

    Attributes:
        loss: of this process's share of the window.
        grad_norm: of all gradients, before clipping.
        skipped: whether the step left the weights as they were; its truth may have to wait for the device.
        preempted: whether a process of the run has notice of an early end.
    """

    loss: Tensor
    grad_norm: Tensor
    skipped: Flag | bool
    preempted: bool


def update_weights(parallel: Parallel, loss: Tensor, before_step: Callable[[], None]) -> Update:
    """Clip and step, unless the loss or a gradient of some process is not finite; gradients are gone after it.

    Args:
        parallel: has run the backward passes of the window.
        loss: of this process's window, detached.
        before_step: called between clipping and stepping. DeepSpeed's ZeRO clips within its step: there the gradients
            are not clipped yet.
    """
    if parallel.clips_in_step:
        before_step()
        return Update(*parallel.guarded_step())
    parallel.accelerator.unscale_gradients()
    limit = parallel.args.max_grad_norm or math.inf  # 0 measures the norm and clips nothing
    grad_norm = parallel.unsharded(nn.utils.clip_grad_norm_(parallel.model.parameters(), limit))
    before_step()
    total = grad_norm + loss
    broken = parallel.any(((total - total) != 0).float())  # so of NaN and of infinite numbers
    skipped = Flag(broken)
    if parallel.skips_on_device:
        parallel.step(broken)
    elif skipped:
        parallel.skip()
    else:
        parallel.step()
    return Update(grad_norm, skipped)


@contextmanager
def out_of_memory_advice(args: RFDETRTrainingArguments, side: int) -> Iterator[None]:
    """Within it, the error of a device that has not the memory names the arguments that help.

    Args:
        args: of the run.
        side: of the largest images of a step, in pixels.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        batch, accumulation = 1 if args.is_automatic_batch else args.train_batch_size, args.micro_batches
        ways = []
        if batch > 1:
            factor = next(n for n in range(2, batch + 1) if batch % n == 0)
            ways.append(
                f"per_device_train_batch_size={batch // factor} with gradient_accumulation_steps="
                f"{accumulation * factor}, which gives the same gradients"
            )
        if not args.gradient_checkpointing:
            ways.append("gradient_checkpointing=True, which costs time")
        if args.multi_scale != "off":
            ways.append(f'multi_scale="off" or expanded_scales=False (the largest steps have images of {side} pixels)')
        ways.append("a smaller resolution, freeze_backbone=True, or fewer query groups (group_detr)")
        ways.append("in an evaluation, a smaller per_device_eval_batch_size")
        raise torch.OutOfMemoryError(f"{error}\nWhat helps, best first: {'; '.join(ways)}.") from error


def loss_divisors(boxes: Sequence[float], groups: int, processes: int, apart: bool) -> list[float]:
    """What the loss sums of each micro-batch of a window are divided by; gradients are averaged over the processes.

    Args:
        boxes: of each micro-batch, over all processes.
        groups: query groups, each of which is matched with all boxes.
        processes: of the run.
        apart: each micro-batch has its own boxes, and the window the mean of the losses, as in rfdetr; else all have
            the boxes of the window, and the window has the loss of one large batch.
    """
    if apart:
        return [max(count * groups / processes, 1) * len(boxes) for count in boxes]
    return [max(sum(boxes) * groups, 1) / processes] * len(boxes)
