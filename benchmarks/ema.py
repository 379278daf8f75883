"""Time and memory of one update of the averaged weights, beside two other ways to do it.

    python benchmarks/ema.py --device cuda --dtype float32

The tensors have the parameter shapes of RF-DETR nano. Three ways follow the same weights with the same decay: ours,
`torch.optim.swa_utils.AveragedModel` with PyTorch's foreach average, and a plain loop over the tensors.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rfdetr_hf.training.ema import ExponentialMovingAverage, averaged_tensors

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "nano.pt"


def nano_like(dtype: torch.dtype, device: str) -> nn.Module:
    """A module that holds parameters of nano's shapes and computes nothing."""
    golden = torch.load(GOLDEN, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.weights = nn.ParameterList(
        nn.Parameter(torch.randn(golden["keys"][name], generator=generator)) for name in golden["param_groups"]
    )
    return model.to(device, dtype)


def decay_of(update: int) -> float:
    return 0.993 * (1.0 - math.exp(-update / 100.0))


def ours(model: nn.Module) -> tuple[Callable[[int], object], list[torch.Tensor]]:
    ema = ExponentialMovingAverage(averaged_tensors(model))
    return ema.update, list(ema.state_dict().values())


def averaged_model(model: nn.Module) -> tuple[Callable[[int], object], list[torch.Tensor]]:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.993), use_buffers=True)
    averaged.n_averaged.fill_(1)  # The first call would copy instead of averaging.

    def update(step: int) -> None:
        averaged.multi_avg_fn = get_ema_multi_avg_fn(decay_of(step))
        averaged.update_parameters(model)

    return update, list(averaged.module.parameters())


def plain_loop(model: nn.Module) -> tuple[Callable[[int], object], list[torch.Tensor]]:
    live = list(model.parameters())
    shadow = [parameter.detach().float().clone() for parameter in live]

    @torch.no_grad()
    def update(step: int) -> None:
        for average, parameter in zip(shadow, live, strict=True):
            average.mul_(decay_of(step)).add_(parameter, alpha=1.0 - decay_of(step))

    return update, shadow


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(update: Callable[[int], object], device: str, first: int, steps: int) -> float:
    synchronise(device)
    start = time.perf_counter()
    for step in range(first, first + steps):
        update(step)
    synchronise(device)
    return (time.perf_counter() - start) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=20, help="updates per round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the ways alternate, the median counts")
    options = parser.parse_args()
    model = nano_like(getattr(torch, options.dtype), options.device)
    ways = {"ours": ours, "AveragedModel": averaged_model, "plain loop": plain_loop}
    built = {name: way(model) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in built}
    for round_number in range(options.rounds + 1):
        for name, (update, _) in built.items():
            times[name].append(milliseconds(update, options.device, 1 + round_number * options.steps, options.steps))
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {options.dtype}, {options.device}")
    medians = {name: sorted(values[1:])[options.rounds // 2] for name, values in times.items()}
    for name, (_, shadow) in built.items():
        size = sum(tensor.nbytes for tensor in shadow)
        ratio = medians[name] / medians["ours"]
        print(f"{name:14} {medians[name]:9.3f} ms/update  {ratio:6.2f} x ours  {size:12,} bytes ({shadow[0].dtype})")


if __name__ == "__main__":
    main()
