"""An exponential moving average of the weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


def averaged_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The live tensors that make up `model.state_dict()`: parameters, frozen ones too, and persistent buffers; tied
    tensors once.

    Take them from the unwrapped model, once it is on its device and prepared: the objects must stay the ones that are
    trained.
    """
    saved = set(model.state_dict())
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
    return [*model.named_parameters(), *buffers]


def initial_share(decay: float, tau: float, updates: int) -> float:
    """What of an average is still the initial weights after so many updates; below a hundredth no exact number."""
    share = 1.0
    for update in range(1, updates + 1):
        share *= decay * (1.0 - math.exp(-update / tau)) if tau else decay
        if share < 0.01:
            break
    return share


class ExponentialMovingAverage:
    """A shadow of a model's tensors that follows them by `ema += (1 - d) · (w - ema)`.

    `d = decay · (1 - exp(-u / tau))`, with `u` the number of updates so far, the present one included: the shadow
    leaves the initial weights quickly and slows down to `decay`. `tau = 0` means `d = decay` from the start.

    The shadow is float32 for every floating type but float64, which stays; it never shares memory with the model.
    Integer and boolean tensors are copied. The update works on what this process holds of each tensor, so the model may
    be sharded.

    Args:
        named_tensors: (name, live tensor) pairs, as `averaged_tensors(model)` gives them. The pairs are kept, not
            re-read.
        decay: limit of `d`, in [0, 1].
        tau: updates in which the decay builds up, at least 0.
        update_interval: take every n-th optimizer step.
        copy_first: the first update copies the weights, as `torch.optim.swa_utils.AveragedModel` does.
        writing: a context to enter around every change of the live tensors; sharded models need one.
        local: what this process holds of a live tensor. It is asked each time: FSDP2 may move a shard to other
            memory, in its first forward pass and when a state dict is loaded.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        named_tensors: Iterable[tuple[str, torch.Tensor]],
        decay: float = 0.993,
        tau: float = 100.0,
        update_interval: int = 1,
        copy_first: bool = False,
        writing: Callable[[], AbstractContextManager] = nullcontext,
        local: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"The decay of the moving average must lie in [0, 1], not {decay}.")
        if tau < 0:
            raise ValueError(f"tau of the moving average must be at least 0, not {tau}.")
        if update_interval < 1:
            raise ValueError(f"The update interval of the moving average must be at least 1, not {update_interval}.")
        self.decay, self.tau, self.update_interval = decay, tau, update_interval
        self._writing, self._copy_first = writing, copy_first
        self.num_updates = 0
        self._tensors, self._local = dict(named_tensors), local
        self._shadow = {name: _shadow_of(part) for name, part in self._parts().items()}
        self._stored: list[torch.Tensor] | None = None
        self._same, self._cast, self._copied = self._partition()

    def _parts(self) -> dict[str, torch.Tensor]:
        return {name: self._local(tensor) for name, tensor in self._tensors.items()}

    def _partition(self) -> tuple[list[str], list[str], list[str]]:
        """Names to average in place, to average after a cast to the shadow's type, and to copy."""
        same, cast, copied = [], [], []
        for name, live in self._parts().items():
            if not live.is_floating_point():
                copied.append(name)
            else:
                (same if live.dtype == self._shadow[name].dtype else cast).append(name)
        return same, cast, copied

    def current_decay(self) -> float:
        """`d` of the latest update (0 before the first)."""
        if self.num_updates == 0:
            return 0.0
        return self.decay if self.tau == 0 else self.decay * (1.0 - math.exp(-self.num_updates / self.tau))

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """Follow the live tensors; call it after every optimizer step that took place.

        Args:
            step: optimizer steps taken so far, this one included. Nothing happens unless it is a multiple of the update
                interval.

        Returns:
            Whether the shadow moved.

        Raises:
            RuntimeError: the shadow is in the model's place at the moment.
        """
        if self._stored is not None:
            raise RuntimeError(
                "The moving average is swapped into the model; restore the model's own weights before the next update."
            )
        if step % self.update_interval:
            return False
        self.num_updates += 1
        copies = self._copy_first and self.num_updates == 1
        weight, parts = 1.0 if copies else 1.0 - self.current_decay(), self._parts()
        if self._same:
            shadows, lives = zip(*((self._shadow[name], parts[name]) for name in self._same), strict=True)
            torch._foreach_lerp_(shadows, lives, weight)  # pyright: ignore[reportPrivateImportUsage]
        for name in self._cast:
            # One at a time: a cast of all of the model would need the memory of another one.
            self._shadow[name].lerp_(parts[name].to(self._shadow[name].dtype), weight)
        for name in self._copied:
            self._shadow[name].copy_(parts[name])
        return True

    @torch.no_grad()
    def store(self) -> None:
        """Keep a copy of the model's own weights and put the shadow in their place.

        Raises:
            RuntimeError: it is there already.
        """
        if self._stored is not None:
            raise RuntimeError("The moving average is in the model's place already.")
        self._stored = [live.clone() for live in self._parts().values()]
        self.put_in_place()

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Write the shadow over the model's own weights."""
        with self._writing():
            for name, live in self._parts().items():
                live.copy_(self._shadow[name])

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own weights back, bit for bit.

        Raises:
            RuntimeError: there is nothing to give back.
        """
        if self._stored is None:
            raise RuntimeError("The model's own weights are in place; there is nothing to restore.")
        with self._writing():
            for live, stored in zip(self._parts().values(), self._stored, strict=True):
                live.copy_(stored)
        self._stored = None

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Give the model the averaged weights within the block, and its own back after it or after any exception."""
        if self._stored is not None:
            raise RuntimeError("The moving average is in the model's place already.")
        try:
            self.store()
            yield
        finally:
            # A store that failed for lack of memory kept no copy and changed nothing.
            if self._stored is not None:
                self.restore()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The shadow under the model's names, ready for safetensors; keep `num_updates` beside it.

        The tensors are the shadow's own: the next update changes them.
        """
        return dict(self._shadow)

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], num_updates: int) -> None:
        """Take up a shadow that `state_dict` gave, with its number of updates.

        Raises:
            ValueError: names or shapes differ from this shadow's.
        """
        _check_same_layout(self._shadow, tensors, "the saved moving average")
        for name, shadow in self._shadow.items():
            shadow.copy_(tensors[name])
        self.num_updates = num_updates


def _shadow_of(tensor: torch.Tensor) -> torch.Tensor:
    keep = not tensor.is_floating_point() or tensor.dtype == torch.float64
    # safetensors takes contiguous tensors only.
    return tensor.detach().to(tensor.dtype if keep else torch.float32, copy=True, memory_format=torch.contiguous_format)


def _check_same_layout(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], what: str) -> None:
    missing, unknown = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if missing or unknown:
        raise ValueError(
            f"The moving average does not fit {what}: missing there {missing[:5]}, unknown here {unknown[:5]}; "
            "use the same architecture."
        )
    for name, tensor in ours.items():
        there = tuple(theirs[name].shape)
        if tuple(tensor.shape) != there:
            raise ValueError(
                f"The moving average does not fit {what}: {name} is {there} there, {tuple(tensor.shape)} here."
            )
