"""The update of an optimizer step: clip, guard, step. The same for every launch."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..arguments.training import RFDETRTrainingArguments
from .parallel import Parallel


class Update(NamedTuple):
    """The gradient's norm before clipping, and whether the step reached the weights."""

    grad_norm: Tensor
    taken: bool


class StepResult(NamedTuple):
    """What an optimizer step came to.

    Attributes:
        loss: of this process's share of the window.
        grad_norm: of all gradients, before clipping.
        taken: whether the step reached the weights.
        preempted: whether a process of the run has notice of an early end.
    """

    loss: Tensor
    grad_norm: Tensor
    taken: bool
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
    broken = (total - total) != 0  # so of NaN and of infinite numbers
    # The one place of a step where the host waits for the device.
    taken = not parallel.sum(broken.float())
    if taken:
        parallel.step()
    else:
        parallel.skip()
    return Update(grad_norm, taken)


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
