"""Where a run keeps its files."""

from pathlib import Path

from accelerate import Accelerator

from .directory import checkpoint_path, clean_leftovers, latest_valid_checkpoint, list_checkpoints, rotate, verify


class RunDirectory:
    """The paths of one run: `checkpoint-<step>/`, `best/`, `last/`, `metrics.csv`, `train.log`, the arguments."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.best = self.root / "best"
        self.last = self.root / "last"
        self.metrics = self.root / "metrics.csv"
        self.log = self.root / "train.log"
        self.arguments = self.root / "training_args.json"

    def checkpoint(self, step: int) -> Path:
        """`checkpoint-<step>`."""
        return checkpoint_path(self.root, step)

    def rotate(self, keep: int | None) -> None:
        """Delete the oldest checkpoints until `keep` are left; never the newest, nor the newest that verifies."""
        rotate(self.root, keep)

    def prepare(self, resume: bool | str | None, accelerator: Accelerator) -> Path | None:
        """Refuse the files of another run, tidy up in this run's, find the checkpoint to go on from.

        All processes must call it. Raises: see `refuse_earlier_run` and `find_checkpoint`.
        """
        self.refuse_earlier_run(resume)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.root.mkdir(parents=True, exist_ok=True)
            clean_leftovers(self.root)
        accelerator.wait_for_everyone()
        return self.find_checkpoint(resume)

    def find_checkpoint(self, resume: bool | str | None) -> Path | None:
        """The checkpoint to resume from: True or "true" for the newest valid one, "auto" likewise if one was ever
        written and else a new start, or a folder.

        Raises:
            FileNotFoundError: there is none, or under "auto" none that is valid.
            CheckpointError: the given folder is no valid checkpoint.
        """
        asked = str(resume)
        if is_new(resume) or (asked.lower() == "auto" and not list_checkpoints(self.root)):
            return None
        if asked.lower() not in ("true", "auto"):
            verify(asked)
            return Path(asked)
        newest = latest_valid_checkpoint(self.root)
        if newest is None:
            raise FileNotFoundError(f"resume_from_checkpoint: no whole checkpoint in {self.root}; start without it")
        return newest

    def refuse_earlier_run(self, resume: bool | str | None) -> None:
        """Keep a new run out of the files of an earlier one.

        Raises:
            FileExistsError: it would write into them.
        """
        if not is_new(resume):
            return
        earlier = [p for p in (self.best, self.last, self.metrics) if p.exists()] + list_checkpoints(self.root)
        if earlier:
            raise FileExistsError(
                f"output_dir {self.root} holds an earlier run ({earlier[0].name}); choose another output_dir, "
                "or continue that run with resume_from_checkpoint=True"
            )


def is_new(resume: bool | str | None) -> bool:
    """Whether `resume_from_checkpoint` asks for a run from the start, whatever there is."""
    return resume is None or str(resume).lower() == "false"
