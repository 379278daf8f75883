"""One process of a training run, started by the tests: `worker.py '<json job>'`.

The job names the output directory, options of the training arguments, and what is to go wrong. On a machine without
accelerators Accelerate runs FSDP2 as plain data parallelism; the shim below makes it take the sharded path.
"""

import json
import os
import sys


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
        "audit": "off", "save_strategy": "no", "eval_strategy": "no", "ema_tau": 10,
    }  # fmt: skip
    return RFDETRTrainingArguments(output_dir=job["output_dir"], **{**defaults, **job.get("options", {})})


def main(job: dict) -> None:
    import torch

    torch.set_num_threads(1)
    if job.get("fsdp_on_cpu"):
        run_fsdp_on_cpu()
    from events import events_of

    from rfdetr_hf import RFDETRTrainer, make_shapes_dataset

    rank = int(os.environ.get("RANK", "0"))
    model = build_model(job, rank)
    shapes = {"image_size": 64, "task": job.get("task", "detection")}
    data = make_shapes_dataset(job.get("images", 40), seed=1, **shapes)
    held_out = make_shapes_dataset(job["held_out"], seed=2, **shapes) if job.get("held_out") else None
    trainer = RFDETRTrainer(model, arguments(job), data, held_out)
    for event in events_of(job, trainer, rank):
        trainer.add_callback(event)
    trainer.train(resume_from_checkpoint=job.get("resume"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
