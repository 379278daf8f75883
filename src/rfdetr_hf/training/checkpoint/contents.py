"""What a checkpoint holds: one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...hub.model_card import CURVES, write_model_card
from .directory import MANIFEST
from .optimizer import FILE as OPTIMIZER
from .optimizer import SHARDS
from .weights import ADAPTERS, MODEL

AVERAGE, SCHEDULER, SCALER = "ema.safetensors", "scheduler.pt", "scaler.pt"
PROGRESS, CALLBACKS, PROCESSES = "progress.pt", "trainer_state.json", "rank_states.pt"
CARD, DEEPSPEED = "README.md", "deepspeed"


def _write_json(path: Path, value: Any) -> None:
    # With the names in their own order: it is that of the columns of a resumed `metrics.csv`.
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_tensors(path: Path, value: Any) -> None:
    save_file(value, path, metadata={"format": "pt"})


def _write_state(path: Path, value: Any) -> None:
    torch.save(value, path)


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        file: its name, or that of a folder.
        holds: what it holds.
        writer: "main": the main process, from what all have sent it; "all": every process its part; "launch": the main
            process or all, as the launch has it.
        write: a function of path and value; None where the launch writes.
        beside: further files of the same value.
    """

    file: str
    holds: str
    writer: str
    write: Any = None
    beside: tuple[str, ...] = ()


TABLE = (
    Entry(
        MODEL, "the weights, adapters merged, as from_pretrained reads them", "main",
        lambda path, value: value.write(path.parent), ("config.json", "preprocessor_config.json"),
    ),
    Entry(ADAPTERS, "adapters, and the layers below them as they were; of a run with adapters", "main", _write_tensors),
    Entry(AVERAGE, "the moving average; of a run with use_ema", "main", _write_tensors),
    Entry(OPTIMIZER, "the optimizer, unsharded", "launch", _write_state),
    Entry(SHARDS, "the optimizer under FSDP2, each process its part", "all"),
    Entry(DEEPSPEED, "the optimizer under DeepSpeed, each process its part", "all"),
    Entry(SCHEDULER, "the schedule of the learning rates", "main", _write_state),
    Entry(SCALER, "the scale of the loss; of a run in fp16", "main", _write_state),
    Entry(PROCESSES, "of each process: random generators, loss sums since the last log line", "main", _write_state),
    Entry(PROGRESS, "position in the epoch, counts, the best, the run's identity, `format`, `order`", "main",
          _write_state),
    Entry(CALLBACKS, "what callbacks see: step, epoch, log history, their own states", "main", _write_json),
    Entry(CARD, "the model card", "main", lambda path, value: write_model_card(path.parent, value), (CURVES,)),
    Entry(MANIFEST, "size and checksum of every other file; written last", "main"),
)  # fmt: skip
_ROWS = {entry.file: entry for entry in TABLE}


def write_contents(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write values by file name, each as its row says."""
    for name, value in contents.items():
        _ROWS[name].write(folder / name, value)


def read_content(folder: Path, name: str) -> Any:
    """Read back what `write_contents` wrote into a file that is no model and no card."""
    path = folder / name
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return torch.load(path, weights_only=True, map_location="cpu")
