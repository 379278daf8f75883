"""Checkpoints in which one file is a pickle that makes a folder when it is read."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Collection
from pathlib import Path

# Names that earlier versions, torch's distributed checkpoints and DeepSpeed use.
ELSEWHERE = (
    "optimizer.pt", "scheduler.pt", "scaler.pt", "progress.pt", "rank_states.pt", "optimizer/.metadata",
    "optimizer/groups.pt", "optimizer/__0_0.distcp", "optimizer/__1_0.distcp", "deepspeed/latest",
    "deepspeed/state/mp_rank_00_model_states.pt", "deepspeed/state/zero_pp_rank_0_mp_rank_00_model_states.pt",
    "deepspeed/state/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "deepspeed/state/zero_pp_rank_1_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt",
    "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "optimizer.bin", "scheduler.bin", "custom_checkpoint_0.pkl", "training_args.bin",
    "rng_state.pth", "rng_state_1.pth", "random_states_0.pkl",
)  # fmt: skip


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


def names_of(folder: Path) -> list[str]:
    """The files of a folder, by their paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fit_manifest(folder: Path) -> None:
    """A manifest as if the trainer had written the folder as it is now."""
    files = {
        name: {"size": (folder / name).stat().st_size,
               "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for name in names_of(folder) if name != "manifest.json"
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def plant(source: Path, run: Path, names: Collection[str], marker: Path, alone: bool = False) -> None:
    """Copy a checkpoint into the directory of a run, and put a payload into some files of it.

    Args:
        source: the checkpoint.
        run: the directory, which is made.
        names: of the files in the checkpoint, there before or not.
        marker: the folder that the payload makes.
        alone: take away what the trainer writes in place of an earlier version's file, which is looked at then.
    """
    checkpoint = run / source.name
    shutil.copytree(source, checkpoint)
    for name in names:
        path = checkpoint / name
        if alone:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.with_suffix(".safetensors").unlink(missing_ok=True)
            if name.startswith(("optimizer", "deepspeed")):
                shutil.rmtree(checkpoint / "optimizer")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(Payload(marker)))
    fit_manifest(checkpoint)


def plant_all(source: Path, folder: Path, only: Collection[str] = ()) -> dict[str, tuple[Collection[str], Path]]:
    """Runs below a folder, each with payloads in a copy of a checkpoint.

    One has a payload in every file of `ELSEWHERE` beside those of the checkpoint. The others have one payload: in a
    file of the checkpoint, or in one that an earlier version had in place of a file.

    Args:
        source: the checkpoint.
        folder: for the runs.
        only: names of files; default: of all.

    Returns:
        Of each directory, the files with payloads and the folder that they would make.
    """
    cases = [((name,), False) for name in names_of(source) if name != "manifest.json" and (name in only or not only)]
    replaced = [name for name in ELSEWHERE if name.startswith(("optimizer", "deepspeed")) or name.endswith(".pt")]
    cases += [((name,), True) for name in replaced if name in only or not only]
    cases += [(ELSEWHERE, False)]
    planted = {}
    for number, (names, alone) in enumerate(cases):
        run, marker = folder / str(number), folder / f"marker-{number}"
        plant(source, run, names, marker, alone)
        planted[str(run)] = names, marker
    return planted


def is_named(names: Collection[str], message: str) -> bool:
    """Whether an error tells which file is meant, or at least which checkpoint."""
    paths = [Path(name) for name in names]
    return "checkpoint-1" in message or any(path.stem in message or path.name in message for path in paths)
