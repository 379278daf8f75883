"""Waiting for batches: a notice of an early end, or workers that hang, end the wait on all processes alike."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader

from ..choices import counted
from .parallel import Parallel
from .preemption import Noticed, Overdue, PreemptionNotice, signals_wait

_END = object()


class LoaderStuck(RuntimeError):
    """A loader gave no batch for `dataloader_timeout` seconds."""


class Batches:
    """The batches of a loader, waited for.

    Args:
        loader: of this process.
        notice: ends the wait; None where nothing does.
        seconds: after which the wait ends; 0 for never.
        saves: whether a checkpoint is written where they hang.
    """

    def __init__(self, loader: DataLoader, notice: PreemptionNotice | None, seconds: float, saves: bool = True) -> None:
        self.loader = loader
        self.notice = notice
        self.seconds = seconds
        self.saves = saves
        self.stuck = False
        with signals_wait():
            self._batches = iter(loader)

    def take(self, count: int) -> list[Any] | None:
        """The next batches, fewer at the end; None if a notice came, or if they did not come in time (`stuck`)."""
        taken: list[Any] = []
        try:
            for _ in range(count):
                with self.notice.interrupts(self.seconds) if self.notice is not None else contextlib.nullcontext():
                    batch = next(self._batches, _END)
                if batch is _END:
                    break
                taken.append(batch)
        except Noticed:
            return None
        except (Overdue, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "DataLoader timed out" not in str(error):
                raise
            self.stuck = True
            end_workers(self._batches, at_once=True)
            return None
        return taken

    def why_stuck(self) -> LoaderStuck:
        """The error that ends the run."""
        saved = "; a checkpoint is written" if self.saves else ""
        where = f"this process, with {counted(self.loader.num_workers, 'worker')}," if self.stuck else "another process"
        return LoaderStuck(
            f"a loader of {where} gave no batch for {self.seconds:g} s (dataloader_timeout): look at the disk or "
            f"server that the images are on, and at a transform of your own that may wait for something{saved}"
        )


def end_workers(batches: Any, at_once: bool = False) -> None:
    """End the workers of an iteration over a loader.

    Args:
        batches: the iteration.
        at_once: they hang, would not end by themselves, and whoever waits for them would hang as well.
    """
    if not hasattr(batches, "_shutdown_workers"):
        return
    if at_once:
        if batches._worker_pids_set:  # or torch raises an error in the middle of anything when it sees them end
            _remove_worker_pids(id(batches))
            batches._worker_pids_set = False
        for worker in batches._workers:
            worker.kill()
    batches._shutdown_workers()


def run_in_step(
    prepare: Callable[[Any], Any],
    forward: Callable[[Any], Any],
    keep: Callable[[Any, Any], None],
    batches: Batches,
    parallel: Parallel,
    watch: Callable[[str], None],
) -> None:
    """Run the model on each of this process's evaluation batches, until all processes are at their end.

    Args:
        prepare: makes a batch the input of `forward`, without the other processes.
        forward: gives the outputs for an input; where that needs all processes, None stands for one that this process
            has not.
        keep: is given each batch of this process and its outputs.
        batches: of this process; those of others may be more.
        parallel: knows the others.
        watch: receives what is being done.

    Raises:
        Noticed: some process has notice of an early end; on all of them.
        LoaderStuck: on all of them.
        Exception: the first that was raised on any process; on all of them. Only a forward pass that needs all of them
            ends the others for want of this one.
    """
    ended, failed = False, None  # what this process has come to
    while True:
        watch("evaluation: loading data")
        taken: list[Any] | None = []
        ready = None
        if not (ended or failed):
            try:
                taken = batches.take(1)
                ready = prepare(taken[0]) if taken else None
            except Exception as error:  # noqa: BLE001 - raised by all processes below
                failed = error
        ended = taken == []
        watch("evaluation")
        states = batches.stuck, taken is None, bool(taken), failed is not None
        stuck, noticed, present, broken = parallel.sum_on_hosts(*states)
        if broken:
            parallel.raise_together(failed)
        if stuck:
            raise batches.why_stuck()
        if noticed:
            raise Noticed
        if not present:
            return
        needs_all = parallel.collective_forward and parallel.optimizer is not None
        if not (taken or needs_all):
            continue
        forward_done = False
        try:
            outputs, forward_done = forward(ready), True
            if taken:
                keep(taken[0], outputs)
        except Exception as error:
            if needs_all and not forward_done:
                raise  # the others are in the middle of what this one has left
            failed = error
