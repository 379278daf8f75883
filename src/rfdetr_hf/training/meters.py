"""What a run measures of itself between two log lines: loss terms and throughput."""

import json
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

_SPEEDS = ("runtime", "samples_per_second", "steps_per_second")
_FIGURES = ("images_per_second", "data_wait", "eta")


def speeds(prefix: str, runtime: float, images: int, steps: int) -> dict[str, float]:
    """What Transformers reports of a training or an evaluation: seconds, images and steps per second."""
    values = runtime, images / runtime, steps / runtime
    return {f"{prefix}_{name}": value for name, value in zip(_SPEEDS, values, strict=True)}


def is_timing(name: str, logs: Mapping[str, Any]) -> bool:
    """Whether a name of a log event is one of `speeds` or of `Stopwatch`, which stand there together.

    A user's own value ("eval_beta", "eval_steps_per_second") is none.
    """
    if name in (*_FIGURES, "memory_gb"):
        return all(figure in logs for figure in _FIGURES)
    prefixes = [name.removesuffix(f"_{speed}") for speed in _SPEEDS if name.endswith(f"_{speed}")]
    return any(all(f"{prefix}_{speed}" in logs for speed in _SPEEDS) for prefix in prefixes)


def plain_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody logs as a checkpoint can hold it: a tensor or array of one number as that number.

    Raises:
        TypeError: a value is none that JSON can hold; the message names it.
    """
    plain = {
        name: value.item() if getattr(value, "shape", None) in ((), (1,)) else value for name, value in logs.items()
    }
    for name, value in plain.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"log(): {name} is a {type(value).__name__}: give a number or a text ({error})") from error
    return plain


class LossMeter:
    """Sums of the loss terms since the last log event; they stay on the device until they are read.

    Terms named `loss…` add up over the micro-batches of a step, since each is a share of the window's; the others
    (`class_error`, `cardinality_error…`) are averaged.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start over, after a log event."""
        self.names: list[str] = []
        # Tensors, once a step is done.
        self.sums: Any = None
        self.now: Any = None
        self.latest: Any = None
        self.grad_norms: Any = None
        self.steps = 0

    def add(self, loss: torch.Tensor, loss_dict: dict[str, torch.Tensor], micro_batches: int) -> None:
        """Take the terms of one of a step's micro-batches."""
        self.names = ["loss", *loss_dict]
        share = {k: micro_batches > 1 and not k.startswith("loss") for k in loss_dict}
        shares = [v / micro_batches if share[k] else v for k, v in loss_dict.items()]
        values = torch.stack([term.detach().to(loss.dtype) for term in (loss, *shares)])
        self.now = values if self.now is None else self.now + values

    def take(self) -> torch.Tensor:
        """The terms of the step whose micro-batches were added. They are in no average without `end_step`."""
        terms, self.now = self.now, None
        return terms

    def end_step(self, terms: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Count a step that reached the weights, by its terms of `take`."""
        grad_norm = grad_norm.detach().to(terms)
        self.sums = terms if self.sums is None else self.sums + terms
        self.grad_norms = grad_norm if self.grad_norms is None else self.grad_norms + grad_norm
        self.steps += 1
        self.latest = terms

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Averages over steps and ranks since the last reset, and `loss_now`, the latest step's."""
        if self.steps == 0:
            return {}
        averages = torch.cat([self.sums / self.steps, self.latest[:1], self.grad_norms[None] / self.steps])
        values: Any = accelerator.reduce(averages, reduction="mean")
        names = [*self.names, "loss_now", "grad_norm"]
        return dict(zip(names, values.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums, on the host."""
        if self.steps == 0:
            return {}
        tensors = {key: getattr(self, key).cpu() for key in ("sums", "latest", "grad_norms")}
        return {"names": self.names, "steps": self.steps, **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the sums of `state_dict()`."""
        self.reset()
        if state:
            self.names, self.steps = state["names"], state["steps"]
            for key in ("sums", "latest", "grad_norms"):
                setattr(self, key, state[key].to(self.device))


class EvalLossMeter:
    """Loss terms over an evaluation: the sums over all images, divided by all their boxes, however they are batched."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Any = None  # a tensor, once there is a batch
        self.boxes = 0

    def add(self, loss: torch.Tensor, loss_dict: dict[str, torch.Tensor], boxes: int) -> None:
        """Take a batch of `boxes` boxes, whose terms are sums (`num_boxes=1`)."""
        terms = {name: value for name, value in loss_dict.items() if name.startswith("loss")}
        self.names = ["loss", *terms]
        values = torch.stack([term.float() for term in (loss, *terms.values())])
        self.sums = values if self.sums is None else self.sums + values
        self.boxes += boxes

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The terms over the images of all processes; all must call it."""
        mine = dict(zip(self.names, self.sums.tolist(), strict=True)) if self.names else {}
        parts = gather_object([(mine, self.boxes)])
        boxes = max(sum(part[1] for part in parts), 1)
        names = dict.fromkeys(name for part in parts for name in part[0])
        return {name: sum(part[0].get(name, 0.0) for part in parts) / boxes for name in names}


def mean_state(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The states of several processes' `LossMeter`s as one that gives the same averages."""
    first = states[0]
    return {key: sum(s[key] for s in states) / len(states) if isinstance(first[key], torch.Tensor) else first[key]
            for key in first}  # fmt: skip


class Stopwatch:
    """Throughput between two log events: images per second, share of time spent waiting for data, peak memory."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over, after a log event."""
        self.start = time.perf_counter()
        self.images = 0
        self.steps = 0
        self.waited = 0.0
        self.paused = 0.0

    def read(self, device: torch.device, steps_left: int) -> dict[str, float]:
        """The figures since the last reset."""
        elapsed = max(time.perf_counter() - self.start - self.paused, 1e-9)
        figures = {
            "images_per_second": self.images / elapsed,
            "data_wait": self.waited / elapsed,
            "eta": steps_left * elapsed / max(self.steps, 1),
        }
        if device.type == "cuda":
            figures["memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
        return figures
