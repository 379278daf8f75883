"""What a checkpoint holds: one table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ...hub.model_card import CURVES, write_model_card
from . import previous
from .directory import MANIFEST, check_listed
from .optimizer import FOLDER as OPTIMIZER
from .optimizer import write_optimizer
from .reading import CheckpointFiles
from .tree import from_json, require_finite, save_tree, to_json
from .weights import ADAPTERS, MODEL

AVERAGE, SCHEDULER, SCALER = "ema.safetensors", "scheduler.json", "scaler.json"
PROGRESS, CALLBACKS, PROCESSES = "progress.json", "trainer_state.json", "rank_states.safetensors"
CARD = "README.md"


def _write_json(path: Path, value: Any) -> None:
    # With the names in their own order: it is that of the columns of a resumed `metrics.csv`.
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_state(path: Path, value: Any) -> None:
    _write_json(path, to_json(value))


def _write_tensors(path: Path, value: Any) -> None:
    require_finite(value, path.name)
    save_file(value, path, metadata={"format": "pt"})


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
    Entry(OPTIMIZER, "the optimizer: an index, and pieces of each process that has some", "launch", write_optimizer),
    Entry(SCHEDULER, "the schedule of the learning rates", "main", _write_state),
    Entry(SCALER, "the scale of the loss; of a run in fp16", "main", _write_state),
    Entry(PROCESSES, "of each process: random generators, loss sums since the last log line", "main", save_tree),
    Entry(PROGRESS, "position in the epoch, counts, the best, the run's identity, `format`, `order`", "main",
          _write_json),
    Entry(CALLBACKS, "what callbacks see: step, epoch, log history, their own states", "main", _write_state),
    Entry(CARD, "the model card", "main", lambda path, value: write_model_card(path.parent, value), (CURVES,)),
    Entry(MANIFEST, "size and checksum of every other file; written last", "main"),
)  # fmt: skip
_ROWS = {entry.file: entry for entry in TABLE}


def is_content(name: str) -> bool:
    """Whether a file of a checkpoint is one that the table knows."""
    return name.startswith(f"{OPTIMIZER}/") or any(name in (entry.file, *entry.beside) for entry in TABLE)


def check_contents(folder: Path) -> None:
    """Make sure that every file of the table that is there, under its present or its earlier name, was saved.

    Raises:
        CheckpointError: one is not in the manifest.
    """
    names = [name for entry in TABLE for name in (entry.file, *entry.beside) if name != MANIFEST]
    check_listed(folder, [*names, *(Path(name).with_suffix(".pt").name for name in names)])


def write_contents(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write values by file name, each as its row says."""
    for name, value in contents.items():
        _ROWS[name].write(folder / name, value)


def read_content(files: CheckpointFiles, name: str) -> Any:
    """Read back what `write_contents` wrote into a file that is no model, no optimizer and no card.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = files.folder / name
    if not path.exists() and path.with_suffix(".pt").exists():
        return previous.load(path.with_suffix(".pt"))
    if path.suffix == ".safetensors":
        return files.tree(name) if name == PROCESSES else files.take_tensors(name)
    return from_json(files.value(name, dict))
