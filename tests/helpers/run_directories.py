"""Runs that write into a directory without a training."""

import csv

from accelerate import Accelerator

from rfdetr_hf.training.checkpoint.directory import atomic_directory, list_checkpoints, verify
from rfdetr_hf.training.checkpoint.reading import CheckpointFiles
from rfdetr_hf.training.checkpoint.run_directory import RunDirectory

ARGUMENTS = {"seed": 1, "output_dir": "x"}


def verified(folder):
    """These checkpoints have a manifest, and nothing of a run."""
    verify(folder)
    return CheckpointFiles(folder)


class Run:
    """A run that saves folders with its name in them."""

    def __init__(self, root, resume=None, arguments=ARGUMENTS, name="first"):
        self.directory, self.name = RunDirectory(root, verified), name
        self.accelerator = Accelerator(cpu=True)
        self.directory.claim(resume, self.accelerator)
        try:
            self.checkpoint = self.directory.prepare(resume, arguments, self.accelerator)
            self.directory.begin(self.accelerator)
        except BaseException:
            self.directory.release()
            raise

    def save(self, *steps, keep=None):
        for step in steps:
            self.write(self.directory.checkpoint(step), step)
            self.directory.rotate(keep)
        return self

    def write(self, path, step):
        with atomic_directory(path, self.directory.about(step)) as folder:
            (folder / "model.safetensors").write_text(f"{self.name} {step}")

    def end(self):
        self.directory.release()


def start(root, *steps, **options):
    """A run that saves these steps and ends."""
    run = Run(root, **options).save(*steps)
    run.end()
    return run


def steps_in(root):
    """The steps of the checkpoints of a folder."""
    return [int(path.name.split("-")[1]) for path in list_checkpoints(root)]


def aside(root):
    """Paths below set-aside/, without the time in front of the reason."""
    found = [p.relative_to(root / "set-aside") for p in (root / "set-aside").rglob("*") if not p.is_dir()]
    return {"/".join([str(path.parts[0]).split("-", 2)[2], *path.parts[1:]]) for path in found}


def metrics(root, *steps):
    """Write a `metrics.csv` of these steps."""
    with (root / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "loss"], *([step, 0.5] for step in steps)])
