"""Training runs that take seconds."""

from pathlib import Path

from rfdetr_hf import RFDETRTrainingArguments


def quick_arguments(folder: str | Path, **options) -> RFDETRTrainingArguments:
    """Two images a micro-batch at one size, loaded in this process, without bars and without an audit of the data."""
    defaults = {
        "per_device_train_batch_size": 2, "dataloader_num_workers": 0, "disable_tqdm": True, "audit": "off",
        "multi_scale": "off",
    }  # fmt: skip
    return RFDETRTrainingArguments(output_dir=str(folder), **{**defaults, **options})
