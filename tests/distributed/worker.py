"""One process of a training run, started by the tests: `worker.py '<json job>'`.

The job names the output directory, options of the training arguments, and what is to go wrong. On a machine without
accelerators Accelerate runs FSDP2 as plain data parallelism; the shim below makes it take the sharded path.
"""

import json
import os
import sys
import time
from pathlib import Path


def run_fsdp_on_cpu() -> None:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def patched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched


def build_model(job: dict, rank: int):
    import torch

    import rfdetr_hf

    classes = {"segmentation": "RFDETRForInstanceSegmentation", "keypoints": "RFDETRForKeypointDetection"}
    model_class = getattr(rfdetr_hf, classes.get(job.get("task"), "RFDETRForObjectDetection"))
    # Weights that differ by rank: the trainer has to make them equal.
    torch.manual_seed(rank if job.get("rank_seeds") else 0)
    model = model_class(rfdetr_hf.RFDETRConfig.from_pretrained(job["config"]))
    return model.double() if job.get("double") else model


def arguments(job: dict):
    from rfdetr_hf import RFDETRTrainingArguments

    defaults = {
        "max_steps": 20, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1,
        "dataloader_num_workers": 0, "disable_tqdm": True, "learning_rate": 1e-3, "learning_rate_encoder": 1e-3,
        "audit": "off", "plots": False, "save_strategy": "no", "eval_strategy": "no", "ema_tau": 10,
    }  # fmt: skip
    return RFDETRTrainingArguments(output_dir=job["output_dir"], **{**defaults, **job.get("options", {})})


class WaitWhile:
    """A transform of the user's that hangs as long as a file exists."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, image, target):
        while Path(self.path).exists():
            time.sleep(0.05)
        return image, target


def slow_disk(path: str, seconds: float) -> None:
    """Let every change of the disk take its time, and write down what is being done: `begin rename …`, `end`."""
    diary = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def slowed(name, function):
        def called(*args, **kwargs):
            os.write(diary, f"begin {name} {args[0]}\n".encode())
            time.sleep(seconds)
            try:
                return function(*args, **kwargs)
            finally:
                time.sleep(seconds)
                os.write(diary, f"end {name} {args[0]}\n".encode())

        return called

    for name in ("rename", "replace", "fsync"):
        setattr(os, name, slowed(name, getattr(os, name)))


def with_diary(path: str, rank: int):
    """A trainer that writes a line for each step: its number, the rank, and the ids of the images."""
    from rfdetr_hf import RFDETRTrainer

    class Writing(RFDETRTrainer):
        def training_step(self, window, state):
            ids = [i for batch in window for i in batch["labels"].fields["image_id"].tolist()]
            with open(path, "a") as file:
                file.write(json.dumps([state.global_step, rank, ids]) + "\n")
            return super().training_step(window, state)

    return Writing


def with_skips(job: dict, rank: int):
    """A trainer for which the loss of some steps is NaN on one rank."""
    import math

    from rfdetr_hf import RFDETRTrainer
    from rfdetr_hf.training.parallel import Parallel

    if job["skips"]["by"] == "host":
        Parallel.skips_on_device = False

    class Skipping(RFDETRTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True)
            broken = rank == job["skips"]["rank"] and self.state.global_step in job["skips"]["steps"]
            return loss * (math.nan if broken else 1.0), outputs

    return Skipping


def train(job: dict) -> None:
    from events import events_of

    from rfdetr_hf import RFDETRTrainer, load_detection_dataset, make_shapes_dataset
    from rfdetr_hf.training import batch_size

    rank = int(os.environ.get("RANK", "0"))
    model = build_model(job, rank)
    shapes = {"image_size": 64, "task": job.get("task", "detection")}
    data = make_shapes_dataset(job.get("images", 40), seed=1, **shapes)
    held_out = make_shapes_dataset(job["held_out"], seed=2, **shapes) if job.get("held_out") else None
    augmentation = WaitWhile(job["wait_while"]) if "wait_while" in job else None
    if "shards" in job:
        splits = load_detection_dataset(**job["shards"])
        data, held_out = splits["train"], splits.get("validation")
    if "free_memory" in job:
        batch_size.free_memory = lambda: job["free_memory"][rank]
    kind = with_diary(job["images_seen"], rank) if "images_seen" in job else RFDETRTrainer
    kind = with_skips(job, rank) if "skips" in job else kind
    trainer = kind(model, arguments(job), data, held_out, augmentation=augmentation)
    trainer.directory.lock.beat = job.get("beat", 30.0)
    for event in events_of(job, trainer, rank):
        trainer.add_callback(event)
    if "slow_disk" in job and rank == 0:
        slow_disk(**job["slow_disk"])
    trainer.train(resume_from_checkpoint=job.get("resume"))


def resume_each(job: dict) -> dict[str, str]:
    """Take a run up in each directory in turn; returns why some could not be."""
    refused = {}
    for folder in job["resume_each"]:
        try:
            train(job | {"output_dir": folder, "resume": True})
        except (ValueError, OSError) as error:
            refused[folder] = str(error)
    return refused


def main(job: dict) -> None:
    import torch

    torch.set_num_threads(1)
    if job.get("fsdp_on_cpu"):
        run_fsdp_on_cpu()
    if "resume_each" not in job:
        train(job)
        return
    refused = resume_each(job)
    if os.environ.get("RANK", "0") == "0":
        Path(job["refusals"]).write_text(json.dumps(refused))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
